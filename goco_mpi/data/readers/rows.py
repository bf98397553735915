"""Rows of an array in a file: those asked for, in few reads and the order asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.source import Rows
from goco_mpi.errors import InputError

BLOCK_BYTES = 4 << 20
"""Of a read: as long as a parallel file system's stripes, and still in the cache when its values are checked."""

GAP_BYTES = 64 << 10
"""What lies between two wanted rows is read too if it is no more: another request would take longer (data sieving:
Thakur, Gropp, Lusk, "Data sieving and collective I/O in ROMIO", 1999)."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows that one read brings.

    Attributes
    ----------
    start, stop : int
        Rows of the file.
    take : slice or ndarray of int
        Which of these are wanted, counted from ``start``.
    put : slice or ndarray of int
        Where these go in the result.
    """

    start: int
    stop: int
    take: Rows
    put: Rows

    def row(self, k: int) -> int:
        """Return the row of the file that the k-th of the wanted is."""
        return self.start + (k if isinstance(self.take, slice) else int(self.take[k]))


def pieces(rows: Rows, n_rows: int, block: int, gap: int) -> Iterator[Piece]:
    """Cut what is asked for into reads, in the order of the file.

    Parameters
    ----------
    rows : slice or ndarray of int
    n_rows : int
        In the file.
    block : int
        No read goes over a multiple of this many rows.
    gap : int
        So many unwanted rows between wanted ones are read too.

    Examples
    --------
    >>> [(piece.start, piece.stop) for piece in pieces(np.array([6, 1, 2, 4, 9]), 10, block=5, gap=1)]
    [(1, 5), (6, 7), (9, 10)]
    """
    if isinstance(rows, slice):
        start, end, _ = rows.indices(n_rows)
        first = start
        while first < end:
            stop = min(end, (first // block + 1) * block)
            yield Piece(first, stop, slice(None), slice(first - start, stop - start))
            first = stop
        return
    if not len(rows):
        return
    steps = np.diff(rows)
    order = np.arange(len(rows)) if (steps >= 0).all() else np.argsort(rows, kind="stable")
    ordered = rows[order]
    if ordered[0] < 0 or ordered[-1] >= n_rows:
        raise IndexError(f"rows {ordered[0]} to {ordered[-1]} of {n_rows}")
    steps = np.diff(ordered)
    ends = np.flatnonzero((steps > gap + 1) | (np.diff(ordered // block) > 0)) + 1
    begin = 0
    for end in (*ends.tolist(), len(rows)):
        start, stop = int(ordered[begin]), int(ordered[end - 1]) + 1
        put = order[begin:end]
        if (steps[begin : end - 1] == 1).all() and (np.diff(put) == 1).all():
            yield Piece(start, stop, slice(None), slice(int(put[0]), int(put[-1]) + 1))
        else:
            yield Piece(start, stop, ordered[begin:end] - start, put)
        begin = end


class RowReader(ABC):
    """An array in a file, numbers in rows.

    Attributes
    ----------
    called : str
        What messages call it.
    shape : tuple of int
        One or two dimensions.
    dtype : numpy.dtype
        In the file.
    block, gap : int
        As of `pieces`.
    """

    called: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block: int
    gap: int

    @abstractmethod
    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Put rows of the file into ``out``, converted to its type."""

    def take(self, rows: Rows, out: NDArray[Any], what: str) -> None:
        """Put the rows asked for into ``out``, in their order.

        Parameters
        ----------
        rows : slice or ndarray of int
        out : ndarray of shape (n_rows, ...)
        what : str
            What the values are, for messages.

        Raises
        ------
        InputError
            If they cannot be read or are not finite.
        """
        for piece in pieces(rows, self.shape[0], self.block, self.gap):
            straight = isinstance(piece.put, slice)
            into = out[piece.put] if straight else np.empty((piece.stop - piece.start, *self.shape[1:]), out.dtype)
            with np.errstate(over="ignore"):  # the check below names the row
                self.read(piece.start, piece.stop, into)
            if not straight:
                into = into[piece.take]
            if self.dtype.kind == "f":
                check_finite(into, self.called, what, piece.row)
            if not straight:
                out[piece.put] = into


class LoadedRows(RowReader):
    """An array that is in memory already."""

    def __init__(self, called: str, array: NDArray[Any]) -> None:
        self.called, self.shape, self.dtype, self._array = called, array.shape, array.dtype, array
        self.block = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes)) if array.ndim else 1
        self.gap = 0

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """See `RowReader`."""
        out[...] = self._array[start:stop] if self._array.ndim else self._array


def check_finite(values: NDArray[Any], called: str, what: str, row_of: Callable[[int], int]) -> None:
    """Refuse numbers that would poison a run.

    Parameters
    ----------
    values : ndarray
    called, what : str
        What messages call the source and the values.
    row_of : callable (int) -> int
        Row of the file of the k-th of ``values``.

    Raises
    ------
    InputError
        If one is NaN or infinite.
    """
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(values)):  # a NaN or an infinity would show in it, and no array of truths is made
            return
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        place = tuple(bad[0])
        raise InputError(
            f"{called} must hold finite numbers. A {what} in row {row_of(int(place[0]))} (counted from 0) is "
            f"{values[place]} as {values.dtype}. Remove or impute such rows first."
        )


def check_csr_finite(matrix: Any, called: str, row_of: Callable[[int], int]) -> None:
    """Do the same for the features of a csr_array; ``row_of`` tells the row of the file of its k-th row."""
    check_finite(
        matrix.data, called, "feature", lambda k: row_of(int(np.searchsorted(matrix.indptr, k, side="right")) - 1)
    )


def check_numbers(called: str, what: str, shape: tuple[int, ...], dtype: np.dtype[Any], ndim: int) -> None:
    """Refuse an array that is no table or list of real numbers.

    Raises
    ------
    InputError
        If its dimensions are not ``ndim`` or its type is not real.
    """
    if len(shape) != ndim or dtype.kind not in "fiub":
        raise InputError(
            f"{called}: {what} must be a {ndim}-dimensional array of real numbers. Got shape {shape}, dtype {dtype}."
        )


def check_shapes(called: str, features: tuple[int, ...], targets: tuple[int, ...]) -> None:
    """Refuse samples of which there are none, or not one target for each.

    Raises
    ------
    InputError
        If so.
    """
    if 0 in features:
        raise InputError(f"{called} is empty: shape {features}.")
    if targets != features[:1]:
        raise InputError(
            f"{called} must have one target a row. Got features of shape {features} and targets of shape {targets}."
        )
