"""What every source of samples offers: its shape at once, its rows when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from goco_mpi.errors import InputError

Rows = slice | NDArray[np.intp]
"""Row numbers, or a slice of step 1."""


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
        Whether rank 0 of those that opened it together holds all of it in memory and the others the targets alone:
        it must hand the features out. So it is with small sets and with formats that cannot be read in parts.
    bytes_read : int
        Of files, by this process, so far.
    """

    name: str
    n_samples: int
    n_features: int
    sparse: bool = False
    dtype: np.dtype[Any]
    whole: bool = False
    bytes_read: int = 0

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
        out[...] = self.features(rows)

    @abstractmethod
    def targets(self, rows: Rows) -> NDArray[np.float64]:
        """Return the targets of some rows in their order, shape (n_rows,).

        Raises
        ------
        InputError
            If they cannot be read or are not finite.
        """

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
        """Let go of files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
