"""Samples that are arrays in files: features in rows or as CSR, and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.csr import CsrRows
from goco_mpi.data.readers.file import InputFile
from goco_mpi.data.readers.rows import RowReader, check_shapes
from goco_mpi.data.source import Rows, Source
from goco_mpi.errors import InputError

_S = TypeVar("_S", bound=Source)


class ArraySource(Source):
    """Samples whose rows are read from files when they are asked for.

    Parameters
    ----------
    name : str
    features : RowReader or CsrRows
    targets : RowReader
    dtype : str
        Of the features that are returned.
    files : iterable of InputFile
        What is read; closed with the source.

    Raises
    ------
    InputError
        If there are no samples or features, or lengths differ.
    """

    def __init__(
        self, name: str, features: RowReader | CsrRows, targets: RowReader, dtype: str, files: Iterable[InputFile]
    ) -> None:
        check_shapes(f"data.source {name!r}", features.shape, targets.shape)
        self.name = name
        self.n_samples, self.n_features = features.shape
        self.sparse = isinstance(features, CsrRows)
        self.dtype = np.dtype(dtype)
        self._features, self._targets, self._files = features, targets, tuple(files)
        self._count_bytes()

    def features(self, rows: Rows) -> Any:
        """See `Source`."""
        if isinstance(self._features, CsrRows):
            matrix = self._features.take(rows, self.dtype)
            self._count_bytes()
            return matrix
        out = np.empty((self.how_many(rows), self.n_features), self.dtype)
        self.read_into(rows, out)
        return out

    def read_into(self, rows: Rows, out: NDArray[Any]) -> None:
        """See `Source`."""
        if isinstance(self._features, CsrRows):
            raise TypeError("CSR features have no dense place to go to")
        self._features.take(rows, out, "feature")
        self._count_bytes()

    def targets(self, rows: Rows) -> NDArray[np.float64]:
        """See `Source`."""
        out = np.empty(self.how_many(rows))
        self._targets.take(rows, out, "target")
        self._count_bytes()
        return out

    def close(self) -> None:
        """See `Source`."""
        for file in self._files:
            file.close()

    def _count_bytes(self) -> None:
        self.bytes_read = sum(file.bytes_read for file in self._files)


def opened_by_all(crew: Crew, make: Callable[[], _S]) -> _S:
    """Open a source on every member; it must be the same to all.

    Raises
    ------
    InputError
        To all: that of the lowest rank that could not open it, or that they see different ones.
    """
    source: _S | None = None

    def told() -> tuple[int, int]:
        nonlocal source
        source = make()
        return source.n_samples, source.n_features

    try:
        shapes = crew.together(told)
        assert source is not None  # or this rank had refused it
        check_same(f"data.source {source.name!r}", shapes, "samples of shape {}")
    except InputError:
        if source is not None:
            source.close()
        raise
    return source


def check_same(called: str, seen: Sequence[object], what: str) -> None:
    """Refuse a file that is not the same to all who opened it.

    Parameters
    ----------
    called : str
    seen : sequence
        What each rank sees.
    what : str
        In words, with ``{}`` for that.

    Raises
    ------
    InputError
        If two see different things.
    """
    for rank, own in enumerate(seen):
        if own != seen[0]:
            raise InputError(
                f"{called} must be the same to all ranks. Rank 0 sees {what.format(seen[0])}, rank {rank} "
                f"{what.format(own)}. Put it on a file system that all nodes share."
            )
