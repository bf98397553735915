"""Some coordinates as they are: drawn at random, or those that changed most."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.compression.base import Array, Codec, Copy

REFRESHED = 4
"""top_k: one in so many of the k coordinates is drawn, so that what was lost comes again."""


class SparseCodec(Codec):
    """``random_k``, and with ``largest`` ``top_k``.

    A message is: its number, the k values (those of the drawn coordinates first), the places of the largest
    as 32-bit numbers.

    Parameters
    ----------
    n_params, seed : int
    ratio : float
        k / n_params.
    largest : bool

    Examples
    --------
    >>> codec = SparseCodec(1000, seed=0, ratio=0.1, largest=True)
    >>> codec.size, codec.contraction
    (139, 0.1)
    """

    def __init__(self, n_params: int, seed: int, ratio: float, largest: bool) -> None:
        super().__init__(n_params, seed)
        self.k = min(n_params, max(2 if largest else 1, math.ceil(ratio * n_params - 1e-9)))
        self.n_drawn = max(1, self.k // REFRESHED) if largest else self.k
        self.n_largest = self.k - self.n_drawn
        self.size = 1 + self.k + -(-self.n_largest // 2)
        # Any coordinate is drawn with probability r/n, and the largest of the others hold their share at least:
        # r/n + (1 - r/n) (k - r)/(n - r) = k/n.
        self.contraction = self.k / n_params
        # e+ = s (e + move) at most, s^2 = 1 - delta: a geometric series. The largest come as in a cycle of n/k
        # messages, since those that wait get further off: not proven; at three times that step all was still stable.
        s, cycle = math.sqrt(1.0 - self.contraction), 1.0 / self.contraction
        self.lag = math.sqrt(cycle * (cycle - 1.0) / 2.0) if largest else s / (1.0 - s)

    def encode(self, vector: Array, copy: Copy, worker: int, out: Array) -> None:
        """Write the drawn coordinates, and those furthest off among the others."""
        out[0] = copy.number + 1
        drawn = self._draw(worker, copy.number + 1)
        out[1 : 1 + self.n_drawn] = vector[drawn]
        if self.n_largest:
            with np.errstate(all="ignore"):  # a run that diverges says so elsewhere
                places = self._furthest(vector - copy.value, drawn)
            out[1 + self.n_drawn : 1 + self.k] = vector[places]
            tail = out[1 + self.k :]
            tail[-1] = 0.0  # half of it may not be used
            tail.view(np.uint32)[: self.n_largest] = places
        self.decode(out, copy, worker, max_age=0)

    def _take_in(self, message: Array, copy: Copy, worker: int, number: int) -> None:
        places = self._draw(worker, number)
        if self.n_largest:
            largest = message[1 + self.k :].view(np.uint32)[: self.n_largest]
            places = np.concatenate([places, largest])
        copy.value[places] = message[1 : 1 + self.k]
        copy.known[places] = True

    def _draw(self, worker: int, number: int) -> NDArray[np.int64]:
        return self._stream(worker, number).choice(self.n_params, self.n_drawn, replace=False, shuffle=False)

    def _furthest(self, difference: Array, without: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of the largest; of equals the first, and equal is what single precision cannot tell apart.

        Equal columns of the data have equal parameters but for rounding, which must not decide: another
        order of the same sums would choose others.
        """
        sizes = np.abs(difference).astype(np.float32)
        sizes[without] = -1.0
        threshold = np.partition(sizes, self.n_params - self.n_largest)[self.n_params - self.n_largest]
        chosen = np.flatnonzero(sizes > threshold)
        equal = np.flatnonzero(sizes == threshold)[: self.n_largest - chosen.size]
        places = np.concatenate([chosen, equal])
        if places.size < self.n_largest:  # NaN, which is larger than nothing: the run has diverged
            return np.setdiff1d(np.arange(self.n_params), without)[: self.n_largest]
        return places
