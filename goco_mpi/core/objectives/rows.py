"""Samples with weights, and their cutting into blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Features = Any  # an ndarray or a scipy.sparse.csr_array, float64 or float32, shape (n_rows, n_features)

BLOCK_BYTES = 1 << 20
"""Size of a row block where nobody knows the cache: a few hundred microseconds of work between two looks at the
messages."""


def nbytes(features: Features) -> int:
    """Return the bytes that a pass over features reads.

    Examples
    --------
    >>> nbytes(np.ones((3, 2), np.float32))
    24
    """
    if isinstance(features, np.ndarray):
        return features.nbytes
    return int(features.data.nbytes + features.indices.nbytes + features.indptr.nbytes)


class Buffers:
    """Arrays that are made once, grow where they must, and hold nothing from one block of rows to the next.

    Whoever was interrupted between two blocks may therefore go on after others have used them. They are not for two
    threads at a time. A copy begins without any.

    Examples
    --------
    >>> buffers = Buffers()
    >>> buffers("outputs", 2, 3).base is buffers("outputs", 3, 2).base
    True
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, *shape: int, dtype: type = np.float64) -> NDArray[Any]:
        """Return the array of a name, its values undefined."""
        size = math.prod(shape)
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = self._arrays[name] = np.empty(size, dtype)
        return array[:size].reshape(shape)

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Samples with the weight each has in an objective.

    Attributes
    ----------
    features : ndarray or csr_array of shape (n_rows, n_features), float64 or float32
    targets : ndarray of shape (n_rows,)
        Real numbers (least squares), -1 and 1 (logistic), or classes 0, 1, ... (softmax).
    weights : ndarray of shape (n_rows,)
        c_s, the weight of each row's loss.
    l2_weight : float
        c_reg, the weight of the regulariser.
    """

    features: Features
    targets: Array
    weights: Array
    l2_weight: float
    known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """What has been found out about these rows: nothing that could not be found out again."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "known": {}}

    @property
    def n_rows(self) -> int:
        """Number of samples."""
        return int(self.features.shape[0])

    def part(self, index: slice, l2_weight: float) -> WeightedRows:
        """Return some of the rows, as views, and always the same object."""
        key = (index.start, index.stop, l2_weight)
        part: WeightedRows | None = self.known.get(key)
        if part is None:
            features = _view(self.features, index)
            part = self.known[key] = WeightedRows(features, self.targets[index], self.weights[index], l2_weight)
        return part

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
        """Yield row slices of about ``block_bytes`` of features each."""
        if self.n_rows == 0:
            return
        rows = max(1, int(block_bytes / max(1.0, nbytes(self.features) / self.n_rows)))
        for start in range(0, self.n_rows, rows):
            yield slice(start, min(start + rows, self.n_rows))

    def block(self, index: slice, buffers: Buffers) -> tuple[Features, Features]:
        """Return the features of a block, as float64, and their transpose: views, or in a buffer.

        Those of CSR are made once and kept.
        """
        if isinstance(self.features, np.ndarray):
            features = self.features[index]
            if features.dtype != np.float64:
                converted = buffers("features", *features.shape)
                np.copyto(converted, features)
                features = converted
            return features, features.T
        pair: tuple[Features, Features] | None = self.known.get((index.start, index.stop))
        if pair is None:
            piece = _view(self.features, index)
            pair = self.known[index.start, index.stop] = piece, piece.T
        return pair


def _view(features: Features, index: slice) -> Features:
    """Return some rows, not copied, as cutting a csr_array would."""
    if isinstance(features, np.ndarray):
        return features[index]
    import scipy.sparse as sp

    ends = features.indptr[index.start : index.stop + 1]
    within = slice(int(ends[0]), int(ends[-1]))
    view = sp.csr_array((len(ends) - 1, features.shape[1]), dtype=features.dtype)
    # Set one by one: the constructor would look at every index, and might copy them.
    view.data, view.indices, view.indptr = features.data[within], features.indices[within], ends - ends[0]
    return view
