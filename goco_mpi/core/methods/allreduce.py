"""Synchronous data-parallel minimisation: every round the mean gradient of all workers, by one allreduce.

What a solver makes of that mean is the same arithmetic on the same numbers on every worker, so that all stay at
the same parameters to the last bit and nothing else is ever sent. This module has what the solvers share, and the
plainest of them, gradient descent, which most people run today:

x <- x - eta_t mean_i g_i        the mean waits for the slowest worker
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State

S = TypeVar("S", bound=State)

ROUNDING = 8.0 * float(np.finfo(np.float64).eps)
"""Part of the largest gradient that may be rounding."""
MEMORY_BYTES = 64 << 20
"""What a solver that remembers its steps may remember."""


class Allreduce(Method[S]):
    """What all solvers share: gradients are sent, and their mean is what comes."""

    name = "allreduce"
    coded = False
    exchange = "allreduce"
    mixings = ()

    def send(self, state: S, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Send the gradient."""
        if gradient is None:
            out[:] = 0.0
        else:
            np.copyto(out, gradient.vector)

    def receive(self, state: S, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float) -> None:
        """Go on from the mean gradient."""
        (mean,) = inbox
        assert mean.value is not None  # an allreduce is always complete
        self.advance(state, mean.value, step_size)

    @abstractmethod
    def advance(self, state: S, mean: Array, step_size: float) -> None:
        """Take in the mean of what was sent, and choose where the next gradient is taken: ``state.params``."""


class GradientDescent(Allreduce[State]):
    """See the module."""

    def start(self, params: Array, place: Place) -> State:
        """Return a state of parameters alone."""
        return State(params.copy())

    def advance(self, state: State, mean: Array, step_size: float) -> None:
        """Step along the mean gradient."""
        state.params -= step_size * mean


def largest_gradient(params: Array, first_norm: float, step_size: float) -> float:
    """Return how large the terms of a gradient at ``params`` are that cancel: what its rounding is measured by.

    As large as the first gradient was, or as the largest curvature, 1 / ``step_size``, times the parameters.
    """
    return max(first_norm, float(np.linalg.norm(params)) / step_size)


def is_rounding(gradient: Array, params: Array, first_norm: float, step_size: float) -> bool:
    """Tell whether a gradient at ``params`` is zero but for rounding: a solver that divides by differences must stop.

    Examples
    --------
    >>> is_rounding(np.array([1e-16]), np.array([1.0]), 0.5, 1.0)
    True
    >>> is_rounding(np.array([1e-13]), np.array([1.0]), 0.5, 1.0)
    False
    """
    return float(np.linalg.norm(gradient)) <= ROUNDING * largest_gradient(params, first_norm, step_size)


def n_remembered(n_params: int, most: int) -> int:
    """Return how many pairs of vectors a solver remembers: as many as are of use, or fit.

    Examples
    --------
    >>> n_remembered(50, 100), n_remembered(10**6, 100), n_remembered(10**9, 100)
    (100, 4, 1)
    """
    return max(1, min(most, MEMORY_BYTES // (16 * n_params)))


ALLREDUCE = GradientDescent()
