"""Accelerated gradient descent on the mean gradient.

    x+ = y - eta mean_i g_i(y)
    y+ = x+ + beta (x+ - x)            where the next gradient is taken

beta = (1 - sqrt(q)) / (1 + sqrt(q)), q = mu / L, where the extreme curvatures mu and L of the loss are known (a
quadratic one, step 1 / L): the loss falls by a factor of 1 - sqrt(q) a round. Elsewhere beta grows as in FISTA,
beta = (theta - 1) / theta+, theta+ = (1 + sqrt(1 + 4 theta^2)) / 2, and begins anew when a step goes uphill,
g(y)' (x+ - x) > 0, which finds the curvature by itself.

References
----------
Nesterov, "Lectures on convex optimization", 2018, section 2.2; O'Donoghue & Candes, "Adaptive restart for
accelerated gradient schemes", Found. Comput. Math. 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from goco_mpi.core.methods.allreduce import Allreduce
from goco_mpi.core.methods.base import Array, Place, State


@dataclass
class NesterovState(State):
    """``params`` is y; ``iterate`` is x, and ``theta`` serves where ``momentum`` (beta) is not given."""

    iterate: Array
    momentum: float | None
    theta: float = 1.0


class Nesterov(Allreduce[NesterovState]):
    """See the module."""

    def start(self, params: Array, place: Place) -> NesterovState:
        """Return a state at rest."""
        return NesterovState(params.copy(), params.copy(), place.momentum)

    def advance(self, state: NesterovState, mean: Array, step_size: float) -> None:
        """Step along the mean gradient, and beyond."""
        iterate = state.params - step_size * mean
        move = iterate - state.iterate
        beta = state.momentum
        if beta is None:
            if float(mean @ move) > 0.0:
                state.theta = 1.0
            theta = (1.0 + math.sqrt(1.0 + 4.0 * state.theta**2)) / 2.0
            beta = (state.theta - 1.0) / theta
            state.theta = theta
        state.iterate = iterate
        state.params = iterate + beta * move


def momentum(condition: float) -> float:
    """Return beta for a quadratic loss of this condition number L / mu.

    Examples
    --------
    >>> momentum(81.0)
    0.8
    """
    root = math.sqrt(condition)
    return (root - 1.0) / (root + 1.0)


NESTEROV = Nesterov()
