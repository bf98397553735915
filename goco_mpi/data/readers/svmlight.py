"""Text files of labels and sparse features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.memory import InMemory, held_by_rank_zero
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


def open_svmlight(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open a file of lines ``label index:value ...``."""
    return held_by_rank_zero(crew, lambda: _read(config.source))


def _read(name: str) -> InMemory:
    import scipy.sparse as sp
    from sklearn.datasets import load_svmlight_file

    try:
        features, targets = load_svmlight_file(name, dtype=np.float64)
    except OSError as error:
        raise InputError(f"data.source {name!r} cannot be read: {error.strerror or error}.") from None
    except (ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"data.source {name!r} is not an svmlight file (lines 'label index:value ...'): {error}."
        ) from None
    return InMemory(name, sp.csr_array(features), np.asarray(targets, np.float64), bytes_read=Path(name).stat().st_size)
