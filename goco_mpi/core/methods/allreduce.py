"""Synchronous data-parallel gradient descent: what most people run today.

x <- x - eta_t mean_i g_i        the mean by an allreduce, which waits for the slowest worker
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State


class Allreduce(Method[State]):
    """See the module."""

    name = "allreduce"
    coded = False
    exchange = "allreduce"
    mixings = ()

    def start(self, params: Array, place: Place) -> State:
        """Return a state of parameters alone."""
        return State(params.copy())

    def send(self, state: State, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Send the gradient."""
        if gradient is None:
            out[:] = 0.0
        else:
            np.copyto(out, gradient.vector)

    def receive(self, state: State, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float) -> None:
        """Step along the mean gradient."""
        (mean,) = inbox
        assert mean.value is not None  # an allreduce is always complete
        state.params -= step_size * mean.value


ALLREDUCE = Allreduce()
