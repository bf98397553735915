"""A set of samples in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in rows.

    Attributes
    ----------
    features : ndarray or csr_array of float64 or float32, shape (n_samples, n_features)
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
