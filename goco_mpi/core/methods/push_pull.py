"""Coded push-pull with gradient memory: linear convergence to the optimum, whoever is late.

    m_i   last finished coded gradient           y_i   tracker of the mean gradient
    u_i = y_i + m_i+ - m_i                       m_i+ = g_i if finished, else m_i
    sigma_i += s_i u_i                           s_i = 1 / (1 + degree): what a neighbour gets of u_i
    y_i = s_i u_i + sum_j (sigma_j - rho_ij) ;  rho_ij = sigma_j       over the neighbours j heard from
    v_i = x_i - eta y_i                          sent: (v_i, sigma_i)
    x_i <- v_i + sum_j w_ij (v_j - v_i)          any row-stochastic rule

sigma is cumulative, so that a message that is lost or overtaken loses nothing: the next one
brings its share. At any time sum_i y_i + (what is under way) = sum_i m_i.

A worker that dies takes its y_j with it, and what was under way. Those who hear of it begin anew, y_i = m_i with all
sums at zero, and hear only those who have done so too: among them the sum is as above.

References
----------
Tian, Sun & Scutari, "ASY-SONATA", arXiv 1803.10359; Pu, Shi, Xu & Nedic, "Push-pull gradient
methods for distributed optimization in networks", IEEE TAC 2021; running sums: Hadjicostis, Vaidya &
Dominguez-Garcia, "Robust distributed average consensus via exchange of running sums", IEEE TAC 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State


@dataclass
class PushPullState(State):
    """As in the module: memory m, tracker y, running sum sigma, rho of each neighbour, what came in; the degree."""

    memory: Array
    tracker: Array
    sigma: Array
    rho: Array
    inflow: Array
    degree: int


class PushPull(Method[PushPullState]):
    """See the module."""

    name = "push_pull"
    remembers = True
    mixings = ("fold", "stale", "symmetric")
    restarts = True

    def message_size(self, n_params: int) -> int:
        """Return the length of (v, sigma)."""
        return 2 * n_params

    def start(self, params: Array, place: Place) -> PushPullState:
        """Return a state that has seen no gradient yet."""
        n = params.size
        return PushPullState(
            params.copy(),
            memory=np.zeros(n),
            tracker=np.zeros(n),
            sigma=np.zeros(n),
            rho=np.zeros((len(place.neighbors), n)),
            inflow=np.zeros(n),
            degree=len(place.neighbors),
        )

    def lose(self, state: PushPullState, place: Place, alive: NDArray[np.bool_]) -> None:
        """Begin to track anew, from the gradient memory."""
        state.degree = int(alive[list(place.neighbors)].sum())
        np.copyto(state.tracker, state.memory)
        for vector in (state.sigma, state.rho, state.inflow):
            vector[:] = 0.0

    def send(self, state: PushPullState, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Update the tracker and send (v, sigma)."""
        n = state.params.size
        share = 1.0 / (1.0 + state.degree)
        u = state.tracker.copy()
        if gradient is not None:
            u += gradient.vector - state.memory
            np.copyto(state.memory, gradient.vector)
        u *= share
        state.sigma += u
        np.add(u, state.inflow, out=state.tracker)
        state.inflow[:] = 0.0
        np.subtract(state.params, step_size * state.tracker, out=out[:n])
        out[n:] = state.sigma

    def receive(
        self, state: PushPullState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Mix the first halves; take the new part of the running sums."""
        n = state.params.size
        halves = [
            received if received.value is None else replace(received, value=received.value[:n]) for received in inbox
        ]
        mixing.mix(own[:n], halves, state.params)
        for received, rho in zip(inbox, state.rho, strict=True):
            if received.value is not None:
                state.inflow += received.value[n:] - rho
                np.copyto(rho, received.value[n:])


PUSH_PULL = PushPull()
