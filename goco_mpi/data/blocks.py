"""Sources made of blocks of rows, each of which is drawn, or read and verified, as a whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.source import Rows, Source

Array = NDArray[np.float64]


class BlockSource(Source):
    """A source made of blocks of rows.

    The last block is kept: who goes through the rows in order makes each block once, however small the steps.

    Attributes
    ----------
    bounds : ndarray of int64, shape (n_blocks + 1,)
        First row of each block, ascending, and the number of rows: no block is empty.
    """

    bounds: NDArray[np.int64]
    _made: tuple[int, Any] | None = None

    @abstractmethod
    def make_features(self, block: int) -> Any:
        """Return the features of a block, ndarray or csr_array; the next block's may overwrite them.

        Raises
        ------
        InputError
            If they cannot be read.
        """

    @abstractmethod
    def make_targets(self, block: int) -> Array:
        """Return the targets of a block.

        Raises
        ------
        InputError
            If they cannot be read.
        """

    def features(self, rows: Rows) -> Any:
        """See `Source`."""
        if self.sparse:
            return self._sparse_features(rows)
        out = np.empty((self.how_many(rows), self.n_features), self.dtype)
        self.read_into(rows, out)
        return out

    def read_into(self, rows: Rows, out: NDArray[Any]) -> None:
        """See `Source`."""
        for block, inside, places in self._pieces(rows):
            out[places] = self._features_of(block)[inside]

    def targets(self, rows: Rows) -> Array:
        """See `Source`."""
        out = np.empty(self.how_many(rows))
        for block, inside, places in self._pieces(rows):
            out[places] = self.make_targets(block)[inside]
        return out

    def _sparse_features(self, rows: Rows) -> Any:
        import scipy.sparse as sp

        pieces = [(self._features_of(block)[inside], places) for block, inside, places in self._pieces(rows)]
        if not pieces:
            return sp.csr_array((0, self.n_features), dtype=self.dtype)
        together = sp.csr_array(sp.vstack([piece for piece, _ in pieces], format="csr"))
        if isinstance(rows, slice):
            return together
        back = np.empty(len(rows), np.intp)
        back[np.concatenate([places for _, places in pieces])] = np.arange(len(rows))
        return together[back]

    def _features_of(self, block: int) -> Any:
        if self._made is None or self._made[0] != block:
            self._made = None  # its memory may be the next one's
            self._made = block, self.make_features(block)
        return self._made[1]

    def _pieces(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """Yield each block that has some of the rows, which of the block's they are, and their places among them."""
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(self.n_samples)
            block, start = int(np.searchsorted(self.bounds, begin, side="right")) - 1, begin
            while start < end:
                first, stop = int(self.bounds[block]), min(int(self.bounds[block + 1]), end)
                yield block, slice(start - first, stop - first), slice(start - begin, stop - begin)
                start, block = stop, block + 1
            return
        blocks = np.searchsorted(self.bounds, rows, side="right") - 1
        order = np.argsort(rows, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
            if places.size:
                block = int(blocks[places[0]])
                yield block, rows[places] - self.bounds[block], places
