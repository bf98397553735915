"""A set of samples and what is done to it before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives import is_sparse
from goco_mpi.core.rng import Purpose, stream
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


def train_test_split(dataset: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split at random, keeping the order of rows within both parts.

    Raises
    ------
    InputError
        If no sample would be left to train on.
    """
    n_test = round(dataset.n_samples * test_fraction)
    if n_test >= dataset.n_samples:
        raise InputError(
            f"data.test_fraction = {test_fraction:g} leaves none of {dataset.n_samples} samples to train on."
        )
    order = stream(seed, Purpose.SPLIT).permutation(dataset.n_samples)
    return dataset.rows(np.sort(order[n_test:])), dataset.rows(np.sort(order[:n_test]))


def standardize(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """Centre and scale both parts by the training part's mean and deviation.

    A constant column is only centred. CSR features are scaled by their root mean square and
    not centred, which would fill them.
    """
    if is_sparse(train.features):
        import scipy.sparse as sp

        scale = np.sqrt(np.asarray(train.features.power(2).mean(axis=0)).ravel())
        inverse = sp.diags_array(1.0 / np.where(scale > 0.0, scale, 1.0))
        return (
            Dataset(sp.csr_array(train.features @ inverse), train.targets),
            Dataset(sp.csr_array(test.features @ inverse), test.targets),
        )
    mean = train.features.mean(axis=0)
    deviation = train.features.std(axis=0)
    # A column of one repeated value can show a rounding-sized deviation; it is still constant.
    deviation[deviation <= 1e-12 * np.abs(mean)] = 1.0
    return (
        Dataset((train.features - mean) / deviation, train.targets),
        Dataset((test.features - mean) / deviation, test.targets),
    )


def add_intercept(dataset: Dataset) -> Dataset:
    """Append a column of ones."""
    ones = np.ones((dataset.n_samples, 1))
    if is_sparse(dataset.features):
        import scipy.sparse as sp

        return Dataset(sp.csr_array(sp.hstack([dataset.features, sp.csr_array(ones)])), dataset.targets)
    return Dataset(np.hstack([dataset.features, ones]), dataset.targets)


def encode_labels(targets: Array) -> tuple[Array, int] | None:
    """Replace labels by class numbers 0, 1, ... in the order of the labels.

    Returns
    -------
    (ndarray of shape (n_samples,), int) or None
        Class of each sample and the number of classes; None if the targets are not whole numbers.

    Examples
    --------
    >>> encode_labels(np.array([7.0, -1.0, 7.0]))
    (array([1., 0., 1.]), 2)
    """
    if not np.array_equal(targets, np.round(targets)):
        return None
    labels, classes = np.unique(targets, return_inverse=True)
    return classes.astype(np.float64), len(labels)
