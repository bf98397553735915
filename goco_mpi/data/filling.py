"""Reading rows of a source into the array that a process trains on, which is made once and not copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.source import BLOCK_BYTES, Rows, Source
from goco_mpi.data.split import count

if TYPE_CHECKING:
    import scipy.sparse as sp

Array = NDArray[np.float64]

_FIRST_ROWS = 1024
"""Of CSR features, until it is seen how many values a row has; and so many are put in their places at a time."""


def features(source: Source, parts: Sequence[Rows], intercept: bool) -> Any:
    """Read the features of some rows, one part after the other.

    Parameters
    ----------
    source : Source
    parts : sequence of Rows
    intercept : bool
        Whether to append a column of ones.

    Returns
    -------
    ndarray or csr_array of shape (n_rows, n_features + intercept)

    Raises
    ------
    InputError
        If they cannot be read or are not finite.
    """
    return (_sparse if source.sparse else _dense)(source, parts, intercept)


def targets(source: Source, parts: Sequence[Rows]) -> Array:
    """Read the targets of some rows, one part after the other.

    Raises
    ------
    InputError
        As `features`.
    """
    return np.concatenate([np.empty(0), *(source.targets(rows) for rows in parts)])


def _dense(source: Source, parts: Sequence[Rows], intercept: bool) -> NDArray[Any]:
    n_rows, width = sum(count(rows) for rows in parts), source.n_features
    out = np.empty((n_rows, width + intercept), source.dtype)
    _fill(source, parts, out[:, :width])
    out[:, width:] = 1.0  # last: the system makes a page when it is first written to, best by what fills it
    return out


def _fill(source: Source, parts: Sequence[Rows], out: NDArray[Any]) -> None:
    """Put dense rows into ``out``, one part after the other."""
    if all(isinstance(rows, slice) for rows in parts):
        start = 0
        for rows in parts:
            end = start + count(rows)
            source.read_into(rows, out[start:end])
            start = end
        return
    wanted, order = _in_file_order(parts)
    if (np.diff(order) == 1).all():
        source.read_into(wanted, out)
        return
    block = max(1, BLOCK_BYTES * len(out) // out.nbytes)
    for start in range(0, len(out), block):
        places = order[start : start + block]
        out[places] = source.features(wanted[places])


def _in_file_order(parts: Sequence[Rows]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all row numbers, and what sorts them: what lies together is read together, whichever part it is of."""
    wanted = np.concatenate([np.r_[rows] for rows in parts])
    return wanted, np.argsort(wanted, kind="stable")


def _sparse(source: Source, parts: Sequence[Rows], intercept: bool) -> sp.csr_array:
    if all(isinstance(rows, slice) for rows in parts):
        return _appended(source, parts, intercept)
    wanted, order = _in_file_order(parts)
    found = _appended(source, [wanted[order]], intercept)
    if not (np.diff(order) == 1).all():
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        _permute(found, back)
    return found


def _appended(source: Source, parts: Sequence[Rows], intercept: bool) -> sp.csr_array:
    """Read CSR rows in order."""
    import scipy.sparse as sp

    n_rows, width = sum(count(rows) for rows in parts), source.n_features + intercept
    indptr = np.zeros(n_rows + 1, np.int64)
    # Grown as rows come, by `resize`: the system moves large arrays without copying them.
    data, indices = np.empty(0, source.dtype), np.empty(0, np.int32)
    row = stored = 0
    for rows in parts:
        start = 0
        while start < count(rows):
            # As many rows as are expected to fill a block, by those so far.
            length = _FIRST_ROWS if not row else max(1, BLOCK_BYTES * row // (12 * max(1, stored)))
            block = source.features(_piece(rows, start, start + length))
            lengths = np.diff(block.indptr) + intercept
            ends = stored + np.cumsum(lengths)
            end = int(ends[-1])
            if end > len(data):
                for array in (data, indices):
                    array.resize(end + end // 16, refcheck=False)
            indptr[row + 1 : row + len(lengths) + 1] = ends
            given = np.ones(end - stored, bool)
            if intercept:
                given[ends - stored - 1] = False
            ours = slice(stored, end)
            data[ours][given], indices[ours][given] = block.data, block.indices
            data[ours][~given], indices[ours][~given] = 1.0, width - 1
            row, start, stored = row + len(lengths), start + len(lengths), end
    for array in (data, indices):
        array.resize(stored, refcheck=False)
    if stored <= np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)
    return sp.csr_array((data, indices, indptr), shape=(n_rows, width))


def _permute(matrix: sp.csr_array, rows: NDArray[np.intp]) -> None:
    """Replace a matrix by ``matrix[rows]``, one array after the other: there is never a second copy of all."""
    starts, lengths = matrix.indptr[:-1][rows], np.diff(matrix.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(matrix.indptr.dtype)
    for name in ("data", "indices"):
        old = getattr(matrix, name)
        new = np.empty_like(old)
        for start in range(0, len(rows), _FIRST_ROWS):
            part = slice(start, start + _FIRST_ROWS)
            ours = slice(int(indptr[start]), int(indptr[min(start + _FIRST_ROWS, len(rows))]))
            shift = np.repeat(starts[part].astype(np.int64) - indptr[:-1][part], lengths[part])
            new[ours] = old[shift + np.arange(ours.start, ours.stop)]
        setattr(matrix, name, new)
    matrix.indptr = indptr


def _piece(rows: Rows, start: int, stop: int) -> Rows:
    """Return ``rows[start:stop]``."""
    if isinstance(rows, slice):
        return slice(rows.start + start, min(rows.start + stop, rows.stop))
    return rows[start:stop]
