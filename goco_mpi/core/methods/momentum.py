"""GOCO with quasi-global momentum: the momentum of how the parameters moved, mixing included.

    v_i = x_i - eta_t (g_i + beta m_i)             v_i = x_i without a gradient
    x_i+ = v_i + sum_j w_ij (v_j - v_i)
    m_i <- beta m_i + (1 - beta) (x_i - x_i+) / eta_t

Ordinary momentum of a worker's own gradients pushes it on towards its own data: where nothing moves any more
it still is g_i / (1 - beta), so that a run ends where one with the step eta / (1 - beta) does. Here m_i is zero at
a fixed point, which is that of GOCO without momentum; on the way m_i is what neighbours have in common.

References
----------
Lin, Karimireddy, Stich & Jaggi, "Quasi-global momentum: accelerating decentralized deep learning on
heterogeneous data", ICML 2021, arXiv 2102.04761.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State


@dataclass
class MomentumState(State):
    """As in the module: m."""

    momentum: Array


class QuasiGlobalMomentum(Method[MomentumState]):
    """See the module.

    Parameters
    ----------
    beta : float
        In (0, 1).
    """

    name = "goco"

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def start(self, params: Array, place: Place) -> MomentumState:
        """Return a state that has not moved yet."""
        return MomentumState(params.copy(), np.zeros_like(params))

    def send(self, state: MomentumState, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Send v."""
        if gradient is None:
            np.copyto(out, state.params)
        else:
            np.multiply(state.momentum, self.beta, out=out)
            out += gradient.vector
            out *= -step_size
            out += state.params

    def receive(
        self, state: MomentumState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Mix, and take note of how far that led."""
        before = state.params.copy()
        mixing.mix(own, inbox, state.params)
        before -= state.params
        before *= (1.0 - self.beta) / step_size
        state.momentum *= self.beta
        state.momentum += before
