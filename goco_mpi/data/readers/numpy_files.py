"""Files of numpy: .npy and .npz."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.memory import InMemory, held_by_rank_zero
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


def open_npz(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open an archive with the arrays ``features`` and ``targets``."""
    return held_by_rank_zero(crew, lambda: _npz(config.source))


def open_npy(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open an array of features, with one of targets in the file ``config.targets``."""
    return held_by_rank_zero(crew, lambda: _npy(config.source, config.targets))


def _npz(name: str) -> InMemory:
    arrays, size = _numpy_load(name)
    if not hasattr(arrays, "files"):
        raise InputError(f"data.source {name!r} is a single .npy array, not an .npz file.")
    with arrays:
        missing = {"features", "targets"} - set(arrays.files)
        if missing:
            raise InputError(
                f"data.source {name!r} must hold the arrays 'features' and 'targets'. "
                f"It holds {', '.join(arrays.files) or 'none'}."
            )
        try:
            features, targets = arrays["features"], arrays["targets"]
        except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"data.source {name!r} cannot be read: {error}.") from None
    return _numeric(name, features, targets, size)


def _npy(name: str, targets: str | None) -> InMemory:
    if targets is None:
        raise InputError(f"data.targets must name the .npy file with the targets of {name!r}.")
    if not os.path.isfile(targets):  # noqa: PTH113
        raise InputError(f"data.targets must be a file. There is no file {targets!r} seen from {Path.cwd()}.")
    arrays, sizes = zip(*(_numpy_load(file) for file in (name, targets)), strict=True)
    if any(not isinstance(array, np.ndarray) for array in arrays):
        raise InputError(
            f"data.source {name!r} and data.targets {targets!r} must be single .npy arrays, not .npz archives."
        )
    return _numeric(name, arrays[0], arrays[1], sum(sizes))


def _numpy_load(name: str) -> tuple[Any, int]:
    try:
        content = Path(name).read_bytes()  # numpy leaves a damaged archive open
        return np.load(io.BytesIO(content), allow_pickle=False), len(content)
    except OSError as error:
        raise InputError(f"{name!r} cannot be read: {error.strerror or error}.") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{name!r} is not a numpy file of numbers: {error}.") from None


def _numeric(name: str, features: Any, targets: Any, size: int) -> InMemory:
    for what, array, ndim in (("features", features, 2), ("targets", targets, 1)):
        if array.ndim != ndim or array.dtype.kind not in "fiub":
            raise InputError(
                f"data.source {name!r}: {what} must be a {ndim}-dimensional array of real numbers. "
                f"Got shape {array.shape}, dtype {array.dtype}."
            )
    return InMemory(name, np.ascontiguousarray(features, np.float64), np.asarray(targets, np.float64), bytes_read=size)
