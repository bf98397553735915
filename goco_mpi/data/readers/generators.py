"""Synthetic samples of any size, of which a process draws only the blocks that it needs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.data.blocks import BlockSource
from goco_mpi.data.crew import Crew
from goco_mpi.data.source import Cut, Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

Array = NDArray[np.float64]

BLOCK_BYTES = 1 << 20
"""Of features drawn at a time. With another number the same seed gives other samples."""


def open_generated(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open a generator; the config is all that a process needs to draw its part."""
    return Generated(config, seed)


class Generated(BlockSource):
    """Samples that come shard after shard, and behind them those to test on, each block from a stream of its own.

    Features, by ``config.source``:

    - ``synthetic_regression``, ``synthetic_classification``: normal and independent. Their variances fall
      geometrically from 1 to 1 / condition_number: that of the covariance, and of least squares without l2.
    - ``synthetic_sparse``: there are ``density * n_features`` groups of columns (at least one), and a row has a 1 in
      one column of each, as encoded categories have. Of s columns it is the j-th with probability
      log(1 + 1 / j) / log(1 + s), nearly Zipf's law. CSR.

    Targets: with x* and one delta_k a shard standard normal, an output is row . (x* + heterogeneity delta_k). Of
    ``synthetic_regression`` the target is output + noise. Of the others it is a label 0, 1, ...: each has an output
    of its own, here divided by its standard deviation without heterogeneity, and the label is that of the largest
    output + noise Gumbel. That is a softmax model of outputs / noise; not every label need occur.

    The samples to test on are of all shards in equal parts.

    Parameters
    ----------
    config : DataConfig
    seed : int

    Raises
    ------
    InputError
        If there are fewer samples to train on than shards.

    Examples
    --------
    >>> data = DataConfig(source="synthetic_regression", n_samples=10**8, n_features=3, shards=1000)
    >>> with Generated(data, seed=1) as source:
    ...     source.features(slice(10**7, 10**7 + 2)).shape
    (2, 3)
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.name = config.source
        self.n_samples, self.n_features = config.n_samples, config.n_features
        self.sparse = config.source == "synthetic_sparse"
        self.dtype = np.dtype(config.dtype)
        self._config, self._seed = config, seed
        self._regression = config.source == "synthetic_regression"
        n_test, n_shards = round(config.n_samples * config.test_fraction), config.shards
        n_train = config.n_samples - n_test
        if n_train < n_shards:
            raise InputError(f"data.shards must be at most the number of training samples, {n_train}. Got {n_shards}.")
        if not self._regression:
            self.labels = np.arange(float(config.n_classes))
        self._groups = _ends(config.n_features, max(1, round(config.density * config.n_features)))
        self._deviations = np.ones(self.n_features)
        if not self.sparse and self.n_features > 1:
            self._deviations = config.condition_number ** (-0.5 * np.arange(self.n_features) / (self.n_features - 1))
        # What trains of every shard, then what there is to test on of every shard.
        self._parts = np.concatenate([_ends(n_train, n_shards), n_train + _ends(n_test, n_shards)[1:]])
        self.bounds = self._cut_blocks()
        if config.partition in ("iid", "in_order"):  # without heterogeneity the rows are independent already
            ends = self._parts[: n_shards + 1].tolist()
            shards = tuple(slice(start, stop) for start, stop in itertools.pairwise(ends))
            self.cut = Cut(shards, slice(n_train, self.n_samples))
        self._drawn: dict[int, Array] = {}
        self._common = stream(seed, Purpose.GENERATED).standard_normal((self.n_features, self._n_outputs))

    @property
    def _n_outputs(self) -> int:
        return 1 if self._regression else self._config.n_classes

    def _cut_blocks(self) -> NDArray[np.int64]:
        row_bytes = 12 * (len(self._groups) - 1) if self.sparse else 8 * self.n_features
        length = max(1, BLOCK_BYTES // max(row_bytes, 8 * self._n_outputs))
        starts = [np.arange(start, stop, length) for start, stop in itertools.pairwise(self._parts)]
        return np.concatenate([*starts, [self.n_samples]])

    def make_features(self, block: int) -> Any:
        """Draw a block; its targets are kept."""
        start, stop = self.bounds[block], self.bounds[block + 1]
        part = int(np.searchsorted(self._parts, start, side="right")) - 1
        place = block - int(np.searchsorted(self.bounds, self._parts[part]))
        rng = stream(self._seed, Purpose.GENERATED, part + 1, place + 1)
        features = (self._draw_sparse if self.sparse else self._draw_dense)(rng, int(stop - start))
        outputs = np.asarray(features @ self._solution(part % self._config.shards))
        noise = self._config.noise
        if self._regression:
            self._drawn[block] = outputs[:, 0] + noise * rng.standard_normal(len(outputs))
        else:
            deviation = np.sqrt(len(self._groups) - 1 if self.sparse else np.sum(self._deviations**2))
            scores = outputs / deviation + noise * rng.gumbel(size=outputs.shape)
            self._drawn[block] = scores.argmax(axis=1).astype(np.float64)
        return features if self.dtype == np.float64 else features.astype(self.dtype)

    def make_targets(self, block: int) -> Array:
        """Draw a block, unless that has been done."""
        if block not in self._drawn:
            self._features_of(block)
        return self._drawn[block]

    def _draw_dense(self, rng: np.random.Generator, n_rows: int) -> Array:
        features = rng.standard_normal((n_rows, self.n_features))
        features *= self._deviations
        return features

    def _draw_sparse(self, rng: np.random.Generator, n_rows: int) -> Any:
        import scipy.sparse as sp

        sizes = np.diff(self._groups)
        places = np.floor((sizes + 1.0) ** rng.random((n_rows, len(sizes)))).astype(np.int32)
        # A power may round up to what it is below.
        indices = (self._groups[:-1] + np.minimum(places, sizes) - 1).astype(np.int32)
        indptr = np.arange(0, indices.size + 1, len(sizes), dtype=np.int32)
        return sp.csr_array((np.ones(indices.size), indices.ravel(), indptr), shape=(n_rows, self.n_features))

    def _solution(self, shard: int) -> Array:
        """Return what makes outputs of a shard's rows, shape (n_features, n_outputs)."""
        if not self._config.heterogeneity:
            return self._common
        own = stream(self._seed, Purpose.GENERATED, shard + 1).standard_normal(self._common.shape)
        return self._common + self._config.heterogeneity * own


def _ends(n: int, parts: int) -> NDArray[np.int64]:
    """Return where ``n`` things cut into parts of sizes within one begin and end, shape (parts + 1,)."""
    places = np.arange(parts + 1)
    return (n // parts) * places + np.minimum(places, n % parts)
