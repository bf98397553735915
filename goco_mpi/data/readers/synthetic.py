"""A linear regression drawn in one piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.memory import InMemory, held_by_rank_zero
from goco_mpi.data.source import Source
from goco_mpi.schema import DataConfig

Array = NDArray[np.float64]


def open_synthetic(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open `synthetic_least_squares`."""

    def read() -> InMemory:
        features, targets = synthetic_least_squares(
            config.n_samples, config.n_features, config.shards, config.noise, config.heterogeneity, seed
        )
        return InMemory(config.source, features.astype(config.dtype, copy=False), targets)

    return held_by_rank_zero(crew, read)


def synthetic_least_squares(
    n_samples: int, n_features: int, n_shards: int, noise: float, heterogeneity: float, seed: int
) -> tuple[Array, Array]:
    """Draw a linear regression whose rows come shard after shard.

    Rows are standard normal; targets are row . (x* + heterogeneity delta_k) + noise, with x* and
    one delta_k a shard standard normal. Cut ``in_order``, shard k then has its own solution.

    Parameters
    ----------
    n_samples, n_features, n_shards : int
    noise, heterogeneity : float
        Standard deviations.
    seed : int

    Returns
    -------
    (ndarray of shape (n_samples, n_features), ndarray of shape (n_samples,))
        Features and targets.

    Examples
    --------
    >>> synthetic_least_squares(100, 3, 4, noise=0.1, heterogeneity=0.0, seed=1)[0].shape
    (100, 3)
    """
    rng = stream(seed, Purpose.SYNTHETIC)
    solution = rng.standard_normal(n_features)
    features = rng.standard_normal((n_samples, n_features))
    targets = features @ solution + noise * rng.standard_normal(n_samples)
    for shard, rows in enumerate(np.array_split(np.arange(n_samples), n_shards)):
        own = stream(seed, Purpose.SYNTHETIC, worker=shard + 1).standard_normal(n_features)
        targets[rows] += heterogeneity * (features[rows] @ own)
    return features, targets
