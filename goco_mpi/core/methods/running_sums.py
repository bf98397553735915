"""GOCO on running sums: the average is conserved exactly, whatever is lost, late or overtaken.

    z_i <- z_i - eta omega_i g_i                 numerator; omega_i: weight, 1 at the start
    sigma_i += s_i (z_i, omega_i)                s_i = 1 / (1 + degree); sent: sigma_i
    (z_i, omega_i) <- s_i (z_i, omega_i) + sum_j (sigma_j - rho_ij) ;  rho_ij = sigma_j
    x_i = z_i / omega_i

A worker with less weight than a millionth does not split it until some comes in: what neighbours who are frozen take
away would leave nothing but rounding.

sum_i z_i + (what is under way) changes by the gradients alone. The sums grow without bound, so
that double precision is needed: each round loses one part in 1e16 of what has ever been sent.

Where a worker dies the others begin anew from their x_i, with weight 1, and hear only those who have done so too.

References
----------
Hadjicostis, Vaidya & Dominguez-Garcia, "Robust distributed average consensus via exchange of running
sums", IEEE TAC 2016; Nedic & Olshevsky, "Distributed optimization over time-varying directed graphs", IEEE TAC 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State
from goco_mpi.errors import InputError

LEAST_WEIGHT = 1e-6
"""omega below which a worker keeps its mass: see the module."""


@dataclass
class RunningSumsState(State):
    """As in the module; ``mass`` is (z, omega), shape (n_params + 1,)."""

    mass: Array
    sigma: Array
    rho: Array
    degree: int


class RunningSums(Method[RunningSumsState]):
    """See the module."""

    name = "goco"
    restarts = True

    def message_size(self, n_params: int) -> int:
        """Return the length of sigma."""
        return n_params + 1

    def start(self, params: Array, place: Place) -> RunningSumsState:
        """Return a state of weight one.

        Raises
        ------
        InputError
            If the parameters are not float64: see the module.
        """
        if params.dtype != np.float64:
            raise InputError(
                f"method.mixing = 'running' needs parameters of float64. Got {params.dtype}: the sums grow with every "
                "round, and what they round off is lost to the average. Use float64, or method.mixing = 'fold'."
            )
        n = params.size + 1
        degree = len(place.neighbors)
        return RunningSumsState(params.copy(), np.append(params, 1.0), np.zeros(n), np.zeros((degree, n)), degree)

    def lose(self, state: RunningSumsState, place: Place, alive: NDArray[np.bool_]) -> None:
        """Begin anew from the parameters."""
        state.degree = int(alive[list(place.neighbors)].sum())
        state.mass[:-1] = state.params
        state.mass[-1] = 1.0
        state.sigma[:] = 0.0
        state.rho[:] = 0.0

    def send(
        self, state: RunningSumsState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Take the step on the numerator, and send the running sum."""
        if gradient is not None:
            state.mass[:-1] -= step_size * state.mass[-1] * gradient.vector
        if state.mass[-1] >= LEAST_WEIGHT:
            state.mass *= 1.0 / (1.0 + state.degree)
            state.sigma += state.mass
        np.copyto(out, state.sigma)

    def receive(
        self, state: RunningSumsState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Take the new part of the neighbours' running sums."""
        for received, rho in zip(inbox, state.rho, strict=True):
            if received.value is not None:
                state.mass += received.value - rho
                np.copyto(rho, received.value)
        np.divide(state.mass[:-1], state.mass[-1], out=state.params)


RUNNING_SUMS = RunningSums()
