"""Conjugate gradients on the mean gradient, preconditioned by the mean of the workers' own inverse Hessians.

    z = mean_i w_i P_i^-1 g            P_i = H_i + c diag(H_i) , H_i: Hessian of the worker's loss / w_i, w_i its weight
    p = -z made conjugate to all directions before it
    x, g <- the minimum along p and the gradient there, from the gradient at x + t p

as in `goco_mpi.core.methods.allreduce_cg`, for quadratic losses. The workers' Hessians are alike where their data are,
and the mean of their inverses times the mean Hessian nearly the identity: few directions do, whatever the condition
number. c is that of `goco_mpi.core.methods.table_newton`: more than 0 where a worker has few rows for its parameters.

A round is one allreduce of one vector. z and the gradient at x + t p depend on each other, so they take turns: every
other round carries w_i P_i^-1 g, for which no gradient is computed. Before that, the first round carries the steps
P_i^-1 g_i to the minima of the workers' own losses and goes to their mean, and the second the gradient there.

References
----------
Zhang, Duchi & Wainwright, "Communication-efficient algorithms for statistical optimization", JMLR 2013: the mean of
minima; Wang, Roosta, Xu & Mahoney, "GIANT: globally improved approximate Newton method", NeurIPS 2018: the mean of
inverse Hessians.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from goco_mpi.core.methods.allreduce import Allreduce, is_rounding, n_remembered
from goco_mpi.core.methods.allreduce_cg import DIRECTIONS, ConjugateState, Directions, to_minimum
from goco_mpi.core.methods.base import Array, Gradient, Place
from goco_mpi.core.methods.scaling import Scaling, worker_scaling


class Phase(Enum):
    """What the round under way carries."""

    OWN_MINIMA = 1
    GRADIENT = 2
    PRECONDITIONED = 3
    TRIAL = 4
    NOTHING = 5


@dataclass
class PreconditionedState(ConjugateState):
    """``scaling`` is P_i, None where the worker holds nothing; ``weight`` is w_i."""

    scaling: Scaling | None = None
    weight: float = 0.0
    phase: Phase = Phase.OWN_MINIMA


class PreconditionedGradients(Allreduce[PreconditionedState]):
    """See the module."""

    def start(self, params: Array, place: Place) -> PreconditionedState:
        """Factorise P and return a state that knows of no gradient."""
        assert place.share.quadratic  # the config refuses the preconditioner with other losses
        n_kept = n_remembered(params.size, min(DIRECTIONS, params.size))
        return PreconditionedState(
            params.copy(),
            base=params.copy(),
            direction=np.zeros_like(params),
            directions=Directions(params.size, n_kept),
            quadratic=True,
            length=1.0,
            scaling=worker_scaling(place, params),
            weight=place.weight,
        )

    def needs_gradient(self, state: PreconditionedState, round_: int) -> bool:
        """Tell whether the next round carries gradients, or what is made of them."""
        return state.phase not in (Phase.PRECONDITIONED, Phase.NOTHING)

    def send(
        self, state: PreconditionedState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Send the gradient, or P^-1 times what is to be preconditioned."""
        if state.phase is Phase.PRECONDITIONED and state.scaling is not None:
            assert state.gradient is not None
            np.multiply(state.scaling.solve(state.gradient), state.weight, out=out)
        elif gradient is None:
            out[:] = 0.0
        elif state.phase is Phase.OWN_MINIMA and state.scaling is not None:
            out[:] = state.scaling.solve(gradient.vector)
        else:
            np.copyto(out, gradient.vector)

    def advance(self, state: PreconditionedState, mean: Array, step_size: float) -> None:
        """Take in what this round carried."""
        if state.phase is Phase.OWN_MINIMA:
            state.base = state.params = state.base - mean
            state.phase = Phase.GRADIENT
        elif state.phase is Phase.GRADIENT:
            state.gradient = mean.copy()
            state.first_norm = float(np.linalg.norm(mean))
            _rest_or_precondition(state, step_size)
        elif state.phase is Phase.PRECONDITIONED:
            state.direction = state.directions.conjugate(-mean)
            state.params = state.base + state.length * state.direction
            state.phase = Phase.TRIAL
        elif state.phase is Phase.TRIAL and to_minimum(state, mean, step_size):
            state.params = state.base
            _rest_or_precondition(state, step_size)


def _rest_or_precondition(state: PreconditionedState, step_size: float) -> None:
    assert state.gradient is not None
    done = is_rounding(state.gradient, state.base, state.first_norm, step_size)
    state.phase = Phase.NOTHING if done else Phase.PRECONDITIONED


PRECONDITIONED_GRADIENTS = PreconditionedGradients()
