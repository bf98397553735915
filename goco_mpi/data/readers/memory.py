"""Samples that are whole in memory: small sets, and formats that cannot be read in parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.rows import check_csr_finite, check_finite, check_shapes
from goco_mpi.data.source import Rows, Source
from goco_mpi.errors import InputError

SMALL_BYTES = 16 << 20
"""Text of this length takes rank 0 a second to parse."""


class InMemory(Source):
    """Samples of which this process holds all.

    Parameters
    ----------
    name : str
    features : ndarray or csr_array, shape (n_samples, n_features)
    targets : ndarray of float64, shape (n_samples,)
    columns : mapping of str to ndarray of shape (n_samples,), optional
        What the samples may be partitioned by, such as the site that each is from.
    bytes_read : int, optional

    Raises
    ------
    InputError
        If there are no samples or features, lengths differ, or a value is not finite.

    Examples
    --------
    >>> InMemory("mine", np.eye(3), np.arange(3.0)).features(slice(1, 3))
    array([[0., 1., 0.],
           [0., 0., 1.]])
    """

    whole = True

    def __init__(
        self,
        name: str,
        features: Any,
        targets: NDArray[np.float64],
        columns: Mapping[str, NDArray[Any]] | None = None,
        bytes_read: int = 0,
    ) -> None:
        called = f"data.source {name!r}"
        check_shapes(called, features.shape, targets.shape)
        self.sparse = not isinstance(features, np.ndarray)
        if self.sparse:
            check_csr_finite(features, called, int)
        else:
            check_finite(features, called, "feature", int)
        check_finite(targets, called, "target", int)
        self.name = name
        self.n_samples, self.n_features = map(int, features.shape)
        self.dtype = features.dtype
        self.bytes_read = bytes_read
        self._features, self._targets, self._columns = features, targets, columns

    def features(self, rows: Rows) -> Any:
        """See `Source`."""
        return self._features[rows].copy()

    def targets(self, rows: Rows) -> NDArray[np.float64]:
        """See `Source`."""
        return self._targets[rows].copy()

    def column(self, name: str) -> NDArray[Any]:
        """See `Source`."""
        if self._columns is None:
            return super().column(name)
        if name not in self._columns:
            raise InputError(
                f"data.partition_column = {name!r}: {self.name!r} has no such column. "
                f"It has {', '.join(self._columns)}."
            )
        return self._columns[name].copy()


class HeldByRankZero(Source):
    """Samples that are in the memory of rank 0; here is what they are like."""

    whole = True

    def __init__(self, name: str, shape: tuple[int, int], sparse: bool, dtype: np.dtype[Any]) -> None:
        self.name = name
        self.n_samples, self.n_features = shape
        self.sparse, self.dtype = sparse, dtype

    def features(self, rows: Rows) -> Any:
        """See `Source`."""
        raise RuntimeError(f"{self.name!r} is with rank 0, which hands it out")

    def targets(self, rows: Rows) -> NDArray[np.float64]:
        """See `Source`."""
        raise RuntimeError(f"{self.name!r} is with rank 0, which hands it out")


def held_by_rank_zero(crew: Crew, read: Callable[[], InMemory]) -> Source:
    """Let rank 0 alone read: it spares the file system the others, and them the library that reads.

    Raises
    ------
    InputError
        That of rank 0, to all.
    """
    here: InMemory | None = None

    def told() -> Any:
        nonlocal here
        if crew.rank != 0:
            return None
        here = read()
        return here.name, (here.n_samples, here.n_features), here.sparse, here.dtype

    facts = crew.together(told)[0]
    return HeldByRankZero(*facts) if here is None else here


def is_small(crew: Crew, path: str) -> bool:
    """Return whether rank 0 had better read a file for all: so the others need not import the library that reads it."""

    def look() -> bool:
        try:
            return crew.rank == 0 and os.path.getsize(path) <= SMALL_BYTES  # noqa: PTH202 - of a name as it is given
        except OSError:
            return False  # who opens it will say why

    return crew.size > 1 and crew.together(look)[0]


def held(source: Source, partition_column: str | None) -> InMemory:
    """Read all of a source into memory, and close it."""
    with source:
        every = slice(None)
        columns = None if partition_column is None else {partition_column: source.column(partition_column)}
        features, targets = source.features(every), source.targets(every)
        return InMemory(source.name, features, targets, columns, source.bytes_read)
