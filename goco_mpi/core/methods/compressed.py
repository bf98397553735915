"""Compressed gossip: the step of GOCO, with copies in the place of the neighbours' vectors.

    v_i = x_i - eta_t g_i                          v_i = x_i without a gradient
    xhat_i <- xhat_i + C(v_i - xhat_i)             public copy; sent: what makes it, see core.compression
    x_i <- v_i + gamma sum_j w_ij (xhat_ij - xhat_i)       xhat_ij: this worker's copy of j

over the neighbours heard from in the last ``max_age`` rounds. The worker compares the copies with its own public
one, not with v_i: what two neighbours take from each other then cancels while both are up to date, and the mean moves
by the gradients alone, however coarse the compression. A fixed point is one of GOCO with the mixing matrix
(1 - gamma) I + gamma W.

References
----------
Koloskova, Stich & Jaggi, "Decentralized stochastic optimization and gossip algorithms with compressed
communication" (CHOCO-SGD), ICML 2019, arXiv 1902.00340.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goco_mpi.core.compression import Codec, Compression, Copy
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State


@dataclass
class CompressedState(State):
    """As in the module: v, the public copy, and those of the neighbours in the order of the inbox."""

    worker: int
    neighbors: tuple[int, ...]
    codec: Codec
    consensus_step: float
    local: Array
    public: Copy
    copies: list[Copy]


class CompressedGossip(Method[CompressedState]):
    """See the module.

    Parameters
    ----------
    compression : Compression
    norm : float
        ||I - W||, for the automatic consensus step.
    """

    name = "goco"

    def __init__(self, compression: Compression, norm: float) -> None:
        self._compression = compression
        self._norm = norm

    def message_size(self, n_params: int) -> int:
        """Return the length of a compressed message."""
        return self._compression.codec(n_params).size

    def start(self, params: Array, place: Place) -> CompressedState:
        """Return a state in which everybody knows everybody's first parameters."""
        codec = self._compression.codec(params.size)
        return CompressedState(
            params.copy(),
            worker=place.worker,
            neighbors=place.neighbors,
            codec=codec,
            consensus_step=self._compression.step(params.size, self._norm),
            local=params.copy(),
            public=codec.copy(params),
            copies=[codec.copy(params) for _ in place.neighbors],
        )

    def send(
        self, state: CompressedState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Take the local step, and send what brings the public copy nearer to it."""
        np.copyto(state.local, state.params)
        if gradient is not None:
            state.local -= step_size * gradient.vector
        state.codec.encode(state.local, state.public, state.worker, out)

    def receive(
        self, state: CompressedState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Bring the copies up to date, and mix them."""
        np.copyto(state.params, state.local)
        for received, j, copy, weight in zip(inbox, state.neighbors, state.copies, mixing.weights, strict=True):
            if received.value is None:
                continue
            state.codec.decode(received.value, copy, j, mixing.max_age)
            if received.age <= mixing.max_age:
                with np.errstate(all="ignore"):  # a run that diverges says so elsewhere
                    difference = copy.value - state.public.value
                    difference *= state.consensus_step * weight
                    state.params += np.where(copy.known, difference, 0.0)
