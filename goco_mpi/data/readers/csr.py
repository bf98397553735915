"""Rows of a CSR matrix that lies in a file as three arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.readers.rows import (
    BLOCK_BYTES,
    GAP_BYTES,
    Piece,
    RowReader,
    check_csr_finite,
    check_finite,
    check_numbers,
    pieces,
)
from goco_mpi.data.source import Rows
from goco_mpi.errors import InputError


def refuse_csc(called: str, stored_as: object) -> None:
    """Refuse a matrix that its file says is CSC: the arrays have the same names, and of a square one the same lengths.

    Raises
    ------
    InputError
        If so.
    """
    if "csc" in str(stored_as):
        raise InputError(f"{called}: sparse features must be CSR. The file says that they are CSC. Use tocsr().")


class CsrRows:
    """A CSR matrix in a file.

    Parameters
    ----------
    called : str
        What messages call it.
    data, indices, indptr : RowReader
        As in scipy: row i has the values ``data[indptr[i]:indptr[i + 1]]`` in the columns of the same places.
    shape : array_like
        What the file says of rows and columns.

    Raises
    ------
    InputError
        If these cannot be the arrays of a CSR matrix.
    """

    def __init__(self, called: str, data: RowReader, indices: RowReader, indptr: RowReader, shape: Any) -> None:
        check_numbers(called, "data of the CSR features", data.shape, data.dtype, 1)
        for what, array in (("indices", indices), ("indptr", indptr)):
            if len(array.shape) != 1 or array.dtype.kind not in "iu":
                raise InputError(
                    f"{called}: {what} of the CSR features must be a 1-dimensional array of whole numbers. "
                    f"Got shape {array.shape}, dtype {array.dtype}."
                )
        stated = np.asarray(shape)
        if stated.shape != (2,) or stated.dtype.kind not in "iu" or int(stated[0]) != indptr.shape[0] - 1:
            raise InputError(
                f"{called}: the shape of the CSR features must be two whole numbers, the first one less than the "
                f"length of indptr, {indptr.shape[0]}. Got {stated.tolist()}."
            )
        self.called, self.shape = called, (int(stated[0]), int(stated[1]))
        self._data, self._indices, self._indptr = data, indices, indptr
        self._check_lengths()
        size = data.shape[0] * (data.dtype.itemsize + indices.dtype.itemsize) // max(1, self.shape[0]) + 1
        self._block, self._gap = max(1, BLOCK_BYTES // size), GAP_BYTES // size

    def _check_lengths(self) -> None:
        n_stored, n_pointers = self._data.shape[0], self._indptr.shape[0]
        ends = np.zeros(2, np.int64)
        if n_pointers:
            self._indptr.read(0, 1, ends[:1])
            self._indptr.read(n_pointers - 1, n_pointers, ends[1:])
        if not n_pointers or self._indices.shape[0] != n_stored or ends.tolist() != [0, n_stored]:
            raise InputError(
                f"{self.called}: indptr of the CSR features must go from 0 to the length of data and of indices. It "
                f"has {n_pointers} numbers and goes from {ends[0]} to {ends[1]}; data has {n_stored}, indices "
                f"{self._indices.shape[0]}."
            )

    def take(self, rows: Rows, dtype: np.dtype[Any]) -> Any:
        """Return some rows in their order: csr_array with sorted indices, shape (n_rows, n_features).

        Raises
        ------
        InputError
            If they cannot be read, are not finite, or columns do not exist.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        cut = list(pieces(rows, self.shape[0], self._block, self._gap))
        first, count = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for piece in cut:
            bounds = self._bounds(piece)
            first[piece.put] = bounds[:-1][piece.take]
            count[piece.put] = np.diff(bounds)[piece.take]
        assembly = CsrAssembly(count, self.shape[1], dtype)
        for piece in cut:
            self._fill(piece, first[piece.put], count[piece.put], assembly)
        matrix = assembly.matrix()
        if matrix.nnz < count.sum():  # repeated columns were added up, which may overflow
            check_csr_finite(matrix, self.called, lambda k: int(rows[k]))
        return matrix

    def _bounds(self, piece: Piece) -> NDArray[np.int64]:
        bounds = np.empty(piece.stop - piece.start + 1, np.int64)
        self._indptr.read(piece.start, piece.stop + 1, bounds)
        wrong = np.flatnonzero((np.diff(bounds) < 0) | (bounds[1:] > self._data.shape[0]) | (bounds[:-1] < 0))
        if wrong.size:
            row = piece.start + int(wrong[0])
            raise InputError(
                f"{self.called}: indptr of the CSR features must not decrease or leave the data. Row {row} (counted "
                f"from 0) goes from {bounds[wrong[0]]} to {bounds[wrong[0] + 1]}."
            )
        return bounds

    def _fill(self, piece: Piece, first: NDArray[np.int64], count: NDArray[np.int64], assembly: CsrAssembly) -> None:
        if not count.any():
            return
        start, stop = int(first.min()), int((first + count).max())
        values, columns = np.empty(stop - start, assembly.dtype), np.empty(stop - start, self._indices.dtype)
        with np.errstate(over="ignore"):  # the check below names the row
            self._data.read(start, stop, values)
        self._indices.read(start, stop, columns)
        if not isinstance(piece.take, slice):
            chosen = spans(first - start, count)
            values, columns = values[chosen], columns[chosen]

        def row_of(k: int) -> int:
            return piece.row(int(np.searchsorted(np.cumsum(count), k, side="right")))

        check_finite(values, self.called, "feature", row_of)
        wrong = np.flatnonzero((columns < 0) | (columns >= self.shape[1]))
        if wrong.size:
            raise InputError(
                f"{self.called}: columns of the CSR features must be at least 0 and below {self.shape[1]}. Row "
                f"{row_of(int(wrong[0]))} (counted from 0) has column {columns[wrong[0]]}."
            )
        assembly.put(piece.put, values, columns)


class CsrAssembly:
    """A CSR matrix made once and filled some rows at a time, in any order.

    Parameters
    ----------
    count : ndarray of int, shape (n_rows,)
        How many values each row will have.
    n_columns : int
    dtype : numpy.dtype

    Examples
    --------
    >>> assembly = CsrAssembly(np.array([2, 1]), 3, np.dtype(float))
    >>> assembly.put(np.array([1, 0]), np.array([5.0, 6.0, 7.0]), np.array([2, 0, 1]))
    >>> assembly.matrix().toarray()
    array([[6., 7., 0.],
           [0., 0., 5.]])
    """

    def __init__(self, count: NDArray[np.integer[Any]], n_columns: int, dtype: np.dtype[Any]) -> None:
        self.dtype, self._count, self._n_columns = dtype, count, n_columns
        self._indptr = np.concatenate(([0], np.cumsum(count, dtype=np.int64)))
        total = int(self._indptr[-1])
        self._index_type = np.int32 if max(total, n_columns) < 2**31 else np.int64
        self._data, self._indices = np.empty(total, dtype), np.empty(total, self._index_type)

    def put(self, rows: Rows, data: NDArray[Any], indices: NDArray[Any]) -> None:
        """Fill rows with values that come row after row."""
        if isinstance(rows, slice):
            into: Rows = slice(int(self._indptr[rows.start]), int(self._indptr[rows.stop]))
        else:
            into = spans(self._indptr[rows], self._count[rows])
        self._data[into], self._indices[into] = data, indices

    def matrix(self) -> Any:
        """Return the csr_array, with sorted indices and no duplicates."""
        import scipy.sparse as sp

        shape = (len(self._count), self._n_columns)
        matrix = sp.csr_array((self._data, self._indices, self._indptr.astype(self._index_type)), shape)
        matrix.sum_duplicates()  # which also sorts; nothing to do for most files
        return matrix


def spans(first: NDArray[Any], count: NDArray[Any]) -> NDArray[np.intp]:
    """Return the numbers of all spans of ``count`` from ``first`` on, one span after the other.

    Examples
    --------
    >>> spans(np.array([10, 20]), np.array([2, 3]))
    array([10, 11, 20, 21, 22])
    """
    ends = np.cumsum(count)
    numbers: NDArray[np.intp] = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + count, count)
    return numbers
