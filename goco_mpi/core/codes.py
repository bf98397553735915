"""Exact gradient codes: the full gradient from any set of finished workers that is large enough.

With encoding weights B, shape (n_workers, n_shards), worker i sends sum_k B_ik grad f_k. A set of finished
workers is *decodable* when some a, zero on all others, has a' B = (1, ..., 1); then

    sum_i a_i sum_k B_ik grad f_k = sum_k grad f_k

With every shard on d workers, no code survives more than d - 1 stragglers whoever they are, and these two do.
They also decode what fewer workers happen to cover.

References
----------
Tandon, Lei, Dimakis & Karampatziakis, "Gradient coding: avoiding stragglers in distributed learning",
arXiv 1612.03301; Raviv, Tamo, Tandon & Dimakis, "Gradient coding from cyclic MDS codes and expander graphs",
arXiv 1707.03858.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.placement import Placement, cyclic_order
from goco_mpi.errors import InputError, check_one_of

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

KINDS = ("fractional_repetition", "cyclic")
"""Placements that have a code."""
EXACT = 1e-9
"""Largest deviation of a' B from 1 that counts as rounding; that of a set which cannot be decoded is far larger."""
WORST_AMPLIFICATION = 1e6
"""Growth of rounding in decoding beyond which a code is refused: ten digits are left."""


class Code(ABC):
    """An exact gradient code.

    Attributes
    ----------
    encoding : ndarray of shape (n_workers, n_shards)
        B; worker i holds the shards k with B_ik != 0.
    n_stragglers : int
        d - 1: any so many workers may be missing.
    """

    encoding: Array
    n_stragglers: int

    @abstractmethod
    def decoding(self, finished: Mask) -> Array | None:
        """Return a, or None where the finished workers do not determine the gradient.

        Parameters
        ----------
        finished : ndarray of bool, shape (n_workers,)

        Returns
        -------
        ndarray of shape (n_workers,) or None
            Zero for the others.
        """

    def decodable(self, finished: Mask) -> bool:
        """Tell whether the gradient can be had from the ``finished`` workers, shape (n_workers,)."""
        return self.decoding(finished) is not None

    def lost(self, finished: Mask) -> list[int]:
        """Return the shards of which no holder is among the ``finished``, ascending."""
        return [int(k) for k in np.flatnonzero(~(self.encoding[finished] != 0.0).any(axis=0))]


class FractionalRepetition(Code):
    """Groups of workers that hold the same: one of each group is enough, and several are averaged.

    Parameters
    ----------
    placement : Placement
        As `goco_mpi.core.placement.fractional_repetition` makes it.

    Examples
    --------
    >>> from goco_mpi.core.placement import fractional_repetition
    >>> code = FractionalRepetition(fractional_repetition(4, 8, 2, seed=0))
    >>> code.groups.tolist()
    [0, 1, 1, 0]
    >>> code.decoding(np.array([True, True, True, False])).tolist()
    [1.0, 0.5, 0.5, 0.0]
    >>> code.decodable(np.array([True, False, False, True]))
    False
    """

    def __init__(self, placement: Placement) -> None:
        self.encoding = placement.held.astype(np.float64)
        self.n_stragglers = int(placement.replication.min()) - 1
        keys: dict[bytes, int] = {}
        # Groups without shards, where there are fewer shards than groups, are no loss.
        self.groups: NDArray[np.int64] = np.array(
            [keys.setdefault(row.tobytes(), len(keys)) if row.any() else -1 for row in placement.held]
        )
        self._n_groups = len(keys)

    def decoding(self, finished: Mask) -> Array | None:
        """Return 1 / (finished members of the group)."""
        use = finished & (self.groups >= 0)
        counts = np.bincount(self.groups[use], minlength=self._n_groups)
        if not counts.all():
            return None
        a = np.zeros(len(finished))
        a[use] = 1.0 / counts[self.groups[use]]
        return a


class Cyclic(Code):
    """Every worker holds d consecutive blocks of shards; from any n - d + 1 workers all is decoded.

    Take the workers in cyclic order, and s = d - 1. The rows of B, over the n blocks, are words of a code that
    contains (1, ..., 1) and any n - s of whose words at different positions span it: those c with

        sum_j w_j c_j exp(2 pi i f j / n) = 0    for the s frequencies f = (n - s + 1) / 2, ..., (n + s - 1) / 2

    They are symmetric about n / 2, so that there are real words. Where n + s is odd they are whole, w = 1 and B is a
    circulant matrix, a cyclic MDS code (Raviv et al.). Otherwise they are halves, the words are
    antiperiodic, and w_j = sin(pi (j + 1/2) / n), which is orthogonal to them, puts (1, ..., 1) into the code.
    The word on s + 1 consecutive positions is the polynomial with the roots exp(2 pi i f / n), divided by w.

    Random codes (Tandon et al., algorithm 2) amplify rounding ten to a thousand times more for few stragglers.

    Parameters
    ----------
    n_workers, n_shards, replication, seed : int
        As of `goco_mpi.core.placement.cyclic`.

    Raises
    ------
    InputError
        If decoding would cost more than six digits: many stragglers among many workers.

    Examples
    --------
    >>> code = Cyclic(4, 4, 2, seed=0)
    >>> a = code.decoding(np.array([True, False, True, True]))
    >>> bool(np.allclose(a @ code.encoding, 1.0))
    True
    >>> code.decodable(np.array([True, False, False, False]))
    False
    """

    def __init__(self, n_workers: int, n_shards: int, replication: int, seed: int) -> None:
        order, block_of = cyclic_order(n_workers, n_shards, seed)
        self.n_stragglers = replication - 1
        blocks = np.empty((n_workers, n_workers))
        blocks[order] = _words(n_workers, self.n_stragglers)
        self.encoding = blocks[:, block_of]
        self._blocks = blocks[:, np.unique(block_of)]  # nothing is owed to empty ones
        self._order = order
        if not self.amplification <= WORST_AMPLIFICATION:
            raise InputError(
                f"placement.replication = {replication} makes a cyclic code for {n_workers} workers that loses more "
                f"than {np.log10(WORST_AMPLIFICATION):.0f} of 16 digits in decoding. Lower it, or use placement.kind = "
                "'fractional_repetition', which loses none."
            )

    @cached_property
    def amplification(self) -> float:
        """How much decoding enlarges rounding: max_k sum_i |a_i B_ik| with s in a row missing, which is the worst."""
        n_workers, worst = len(self._blocks), 1.0
        for first in range(n_workers):
            finished = np.ones(n_workers, dtype=bool)
            finished[self._order[(first + np.arange(self.n_stragglers)) % n_workers]] = False
            a = self.decoding(finished)
            if a is None:
                return np.inf
            worst = max(worst, float((np.abs(a) @ np.abs(self._blocks)).max()))
        return worst

    def decoding(self, finished: Mask) -> Array | None:
        """Return the shortest a."""
        if self.lost(finished):
            return None
        a = np.zeros(len(finished))
        rows = self._blocks[finished]
        a[finished] = np.linalg.lstsq(rows.T, np.ones(rows.shape[1]), rcond=None)[0]
        return a if np.abs(a @ self._blocks - 1.0).max() <= EXACT else None

    def decodable(self, finished: Mask) -> bool:
        """Tell by their number; fewer may do where some blocks are empty or the sum happens to be there."""
        return int(finished.sum()) >= len(finished) - self.n_stragglers or super().decodable(finished)


def _words(n: int, s: int) -> Array:
    """Return the words of `Cyclic`, one a row: that of position i on the blocks i - s, ..., i (mod n)."""
    frequencies = (n - s + 1) / 2 + np.arange(s)
    coefficients = np.atleast_1d(np.poly(np.exp(2j * np.pi * frequencies / n))).real[::-1]
    position = np.arange(n)[:, None] - s + np.arange(s + 1)
    block = position % n
    if (n + s) % 2:
        values = np.broadcast_to(coefficients, block.shape)
    else:  # antiperiodic: the other sign on the other side of the end
        values = coefficients * np.where(position < 0, -1.0, 1.0) / np.sin(np.pi * (block + 0.5) / n)
    words = np.zeros((n, n))
    np.put_along_axis(words, block, values / np.abs(values).max(axis=1, keepdims=True), axis=1)
    return words


def build(kind: str, placement: Placement, seed: int) -> Code:
    """Build the code for a placement that `goco_mpi.core.placement.build` made of ``kind`` and ``seed``.

    Raises
    ------
    InputError
        If ``kind`` is not ``fractional_repetition`` or ``cyclic``, or its code cannot be decoded well.
    """
    check_one_of("placement.kind", kind, KINDS)
    if kind == "fractional_repetition":
        return FractionalRepetition(placement)
    return Cyclic(placement.n_workers, placement.n_shards, int(placement.replication[0]), seed)
