"""A set of samples and what is done to it before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives import is_sparse
from goco_mpi.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in rows.

    Attributes
    ----------
    features : ndarray or csr_array of float64, shape (n_samples, n_features)
    targets : ndarray of float64, shape (n_samples,)
    """

    features: Any
    targets: Array

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.features.shape[0])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.features.shape[1])

    def rows(self, index: NDArray[np.intp]) -> Dataset:
        """Return the rows named by ``index``, copied."""
        return Dataset(self.features[index], self.targets[index])


def check_usable(dataset: Dataset, name: str) -> None:
    """Refuse data that would poison a run.

    Raises
    ------
    InputError
        If there are no samples or features, lengths differ, or a value is NaN or infinite.
    """
    if dataset.n_samples == 0 or dataset.n_features == 0:
        raise InputError(f"data.source {name!r} is empty: shape {dataset.features.shape}.")
    if dataset.targets.shape != (dataset.n_samples,):
        raise InputError(
            f"data.source {name!r} must have one target a row. Got features of shape "
            f"{dataset.features.shape} and targets of shape {dataset.targets.shape}."
        )
    values = dataset.features.data if is_sparse(dataset.features) else dataset.features
    for what, array in (("feature", values), ("target", dataset.targets)):
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            dense = what == "target" or not is_sparse(dataset.features)
            where = f" (first in row {bad[0][0]}, counted from 0)" if dense else ""
            raise InputError(
                f"data.source {name!r} must hold finite numbers. {len(bad)} {what} values are NaN or "
                f"infinite{where}. Remove or impute them first."
            )
