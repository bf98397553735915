"""Exact diffusion with gradient memory: the exact optimum with one vector a message, on symmetric links.

    psi_i = x_i - eta m_i                        m_i = last finished coded gradient
    phi_i = psi_i + x_i - psi_i(before)          first round: phi_i = psi_i ; sent: phi_i
    x_i <- phi_i / 2 + 1/2 sum_j w_ij phi_j

Gradients may be late. Messages may not: a pair must mix both or neither, so that it asks
for ``deadline.gossip_s = inf`` or the symmetric rule.

sum_i (x_i - psi_i(before)) stays zero. A worker that dies takes its part with it: those who hear of it begin anew as
in the first round, and mix only with those who have done so too.

References
----------
Yuan, Ying, Zhao & Sayed, "Exact diffusion for distributed optimization and learning", arXiv 1702.05122.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State


@dataclass
class ExactDiffusionState(State):
    """As in the module: memory m, and psi of the round before (None in the first)."""

    memory: Array
    psi: Array | None = None


class ExactDiffusion(Method[ExactDiffusionState]):
    """See the module."""

    name = "exact_diffusion"
    in_step = True
    remembers = True
    mixings = ("symmetric",)
    restarts = True

    def start(self, params: Array, place: Place) -> ExactDiffusionState:
        """Return a state that has seen no gradient yet."""
        return ExactDiffusionState(params.copy(), np.zeros_like(params))

    def lose(self, state: ExactDiffusionState, place: Place, alive: NDArray[np.bool_]) -> None:
        """Begin anew from the parameters."""
        state.psi = None

    def send(
        self, state: ExactDiffusionState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Send phi."""
        if gradient is not None:
            np.copyto(state.memory, gradient.vector)
        psi = state.params - step_size * state.memory
        np.copyto(out, psi)
        if state.psi is not None:
            out += state.params
            out -= state.psi
        state.psi = psi

    def receive(
        self, state: ExactDiffusionState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Mix half way."""
        mixing.mix(own, inbox, state.params)
        state.params += own
        state.params *= 0.5


EXACT_DIFFUSION = ExactDiffusion()
