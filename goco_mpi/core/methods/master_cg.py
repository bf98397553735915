"""Conjugate gradients for a master: preconditioned by the Hessian of its own shards, one gradient a round.

    y = x + s d                          where the gradient is taken: s is the last step that was right
    H d = (g(y) - g(x)) / s              exact where the loss is quadratic
    alpha = r / (d' H d) ,  r = g(x)' P^-1 g(x)
    x+ = x + alpha d ,  g(x+) = g(x) + alpha H d
    d+ = -z + max(z' (g(x+) - g(x)) / r, 0) d ,  z = P^-1 g(x+)

P is the mean Hessian of the shards that the master holds, with c of its diagonal added as in
`goco_mpi.core.methods.table_newton`. As it is nearly that of all, alpha is near 1, and already y the better part of the
step. g(x+) is extrapolated from g(y), which was measured, by (alpha - s) H d: errors of earlier rounds die out.

Nothing has to be sent for P, so that a round is one gradient; an allreduce, whose workers hold different P, needs two
(`goco_mpi.core.methods.allreduce_pcg`).

References
----------
Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. NBS 49, 1952;
Polak & Ribiere, "Note sur la convergence de methodes de directions conjuguees", 1969.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from goco_mpi.core.methods.allreduce import Allreduce
from goco_mpi.core.methods.base import Array, Place, State
from goco_mpi.core.methods.scaling import Scaling, damping

SHORTEST = 1e-13
"""Step, relative to x, below which the differences of gradients are rounding."""


@dataclass
class MasterCgState(State):
    """``params`` is y, ``base`` x, ``gradient`` that at x; ``direction`` is None where all begins anew."""

    scaling: Scaling | None
    base: Array
    gradient: Array
    direction: Array | None = None
    step: float = 1.0
    r: float = 0.0

    def precondition(self, gradient: Array) -> Array:
        """Return P^-1 times ``gradient``; a master without shards has no P."""
        return gradient.copy() if self.scaling is None else self.scaling.solve(gradient)


class MasterCg(Allreduce[MasterCgState]):
    """See the module; only a master's mean is of use to it."""

    def start(self, params: Array, place: Place) -> MasterCgState:
        """Factorise P."""
        share = place.share
        assert share.quadratic  # the config refuses the preconditioner with other losses
        scaling = None
        if share.n_shards:
            alike = share.reweighted(np.full(share.n_shards, 1.0 / share.n_shards))
            scaling = Scaling(alike.hessian(params), damping(share))
        return MasterCgState(params.copy(), scaling, params.copy(), np.zeros_like(params))

    def advance(self, state: MasterCgState, mean: Array, step_size: float) -> None:
        """Take the exact step along the direction, and turn."""
        direction, change = state.direction, mean - state.gradient
        curvature = 0.0 if direction is None else float(direction @ change) / state.step
        if direction is None or not curvature > 0.0:  # the first, or rounding at the optimum
            _begin(state, mean)
            return
        step = state.r / curvature
        state.base = state.base + step * direction
        turn = step / state.step * change
        state.gradient = state.gradient + turn
        z = state.precondition(state.gradient)
        beta = max(float(z @ turn) / state.r, 0.0)
        state.r, state.step = float(state.gradient @ z), step
        _go(state, beta * direction - z)


def _begin(state: MasterCgState, mean: Array) -> None:
    """Start anew from the point, along the preconditioned gradient."""
    state.base, state.gradient, state.step = state.params, mean.copy(), 1.0
    z = state.precondition(mean)
    state.r = float(mean @ z)
    _go(state, -z)


def _go(state: MasterCgState, direction: Array) -> None:
    length = state.step * float(np.linalg.norm(direction))
    if length > SHORTEST * float(np.linalg.norm(state.base)):
        state.direction, state.params = direction, state.base + state.step * direction
    else:
        state.direction, state.params = None, state.base


MASTER_CG = MasterCg()
