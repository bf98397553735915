"""The small sets that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.memory import InMemory, held_by_rank_zero
from goco_mpi.data.source import Source
from goco_mpi.schema import DataConfig


def open_bundled(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open digits, breast_cancer or diabetes."""

    def read() -> InMemory:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{config.source}")()
        return InMemory(
            config.source, np.ascontiguousarray(bunch.data, config.dtype), np.asarray(bunch.target, np.float64)
        )

    return held_by_rank_zero(crew, read)
