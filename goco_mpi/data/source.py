"""What every source of samples offers: its shape at once, its rows when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from goco_mpi.errors import InputError

Rows = slice | NDArray[np.intp]
"""Row numbers, or a slice of step 1."""

BLOCK_BYTES = 4 << 20
"""Of features that are read or copied at a time: much to a file system, little in memory."""


@dataclass(frozen=True, eq=False)
class Cut:
    """The split into training and test rows, and the shards, that a source comes with.

    Attributes
    ----------
    shards : tuple of slice
        Training rows of each shard, one after the other from row 0: none is empty.
    test : slice
        The rows behind them, which may be none.
    """

    shards: tuple[slice, ...]
    test: slice


@dataclass(frozen=True, eq=False)
class Scaling:
    """What standardising subtracts from the features and divides them by, known of all training rows beforehand.

    Attributes
    ----------
    shift : ndarray of shape (n_features,)
        Their means; of CSR features 0.
    scale : ndarray of shape (n_features,)
        Their standard deviations, 1 where a column is constant; of CSR features their root mean squares, 1 where
        a column is empty.
    """

    shift: NDArray[np.float64]
    scale: NDArray[np.float64]


class Source(ABC):
    """Samples of which a process reads only those that it needs.

    Attributes
    ----------
    name : str
        As the user wrote it, for messages.
    n_samples, n_features : int
    sparse : bool
        Whether the features come as CSR.
    dtype : numpy.dtype
        Of the features as they are returned: float64 or float32. Targets are float64.
    whole : bool
        Whether rank 0 of the crew that opened it holds all samples in memory and must hand them out, and the others
        hold none: small sets, and formats that cannot be read in parts.
    bytes_read : int
        Of files, by this process, so far.
    cut : Cut or None
        What takes the place of ``data.partition`` and ``data.test_fraction``, as in a shard store; None: these hold.
    scaling : Scaling or None
        Where it is known without reading the features.
    labels : ndarray or None
        All different targets in ascending order, where they are known without reading them.
    """

    name: str
    n_samples: int
    n_features: int
    sparse: bool = False
    dtype: np.dtype[Any]
    whole: bool = False
    bytes_read: int = 0
    cut: Cut | None = None
    scaling: Scaling | None = None
    labels: NDArray[np.float64] | None = None

    @abstractmethod
    def features(self, rows: Rows) -> Any:
        """Return the features of some rows in their order, copied: ndarray or csr_array, shape (n_rows, n_features).

        Raises
        ------
        InputError
            If they cannot be read or are not finite.
        """

    def read_into(self, rows: Rows, out: NDArray[Any]) -> None:
        """Put the dense features of some rows into ``out``, shape (n_rows, n_features): no second copy of all.

        Raises
        ------
        InputError
            As `features` does.
        """
        n_rows = max(1, BLOCK_BYTES * len(out) // max(1, out.nbytes))
        for start in range(0, len(out), n_rows):
            part = slice(start, min(start + n_rows, len(out)))
            if isinstance(rows, slice):
                first = rows.start or 0
                out[part] = self.features(slice(first + start, first + part.stop))
            else:
                out[part] = self.features(rows[part])

    @abstractmethod
    def targets(self, rows: Rows) -> NDArray[np.float64]:
        """Return the targets of some rows in their order, shape (n_rows,).

        Raises
        ------
        InputError
            If they cannot be read or are not finite.
        """

    def how_many(self, rows: Rows) -> int:
        """Return how many rows are named, by a slice that may be open too."""
        return len(range(*rows.indices(self.n_samples))) if isinstance(rows, slice) else len(rows)

    def column(self, name: str) -> NDArray[Any]:
        """Return what stands in a named column, such as the site that each sample is from, shape (n_samples,).

        Raises
        ------
        InputError
            If there is no such column.
        """
        raise InputError(
            f"data.partition_column = {name!r}: {self.name!r} has no named columns. Use another partition."
        )

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Close the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
