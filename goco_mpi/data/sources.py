"""Reading samples: bundled sets, files, synthetic problems."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.data.dataset import Dataset, check_usable
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig
from goco_mpi.values import BUNDLED

SUFFIXES = {".svm": "svmlight", ".libsvm": "svmlight", ".svmlight": "svmlight", ".npz": "npz", ".npy": "npy"}


def load(config: DataConfig, seed: int) -> Dataset:
    """Load the samples that ``config.source`` names.

    Parameters
    ----------
    config : DataConfig
    seed : int
        For synthetic data.

    Raises
    ------
    InputError
        If the source is unknown, cannot be read, or holds values that are not finite.
    """
    if config.source in BUNDLED:
        dataset = _bundled(config.source)
    elif config.source == "synthetic":
        dataset = synthetic_least_squares(
            config.n_samples, config.n_features, config.shards, config.noise, config.heterogeneity, seed
        )
    else:
        dataset = _from_file(config)
    check_usable(dataset, config.source)
    return dataset


def _bundled(name: str) -> Dataset:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return Dataset(np.ascontiguousarray(bunch.data, np.float64), np.asarray(bunch.target, np.float64))


def synthetic_least_squares(
    n_samples: int, n_features: int, n_shards: int, noise: float, heterogeneity: float, seed: int
) -> Dataset:
    """Draw a linear regression whose rows come shard after shard.

    Rows are standard normal; targets are row . (x* + heterogeneity delta_k) + noise, with x* and
    one delta_k a shard standard normal. Cut ``in_order``, shard k then has its own solution.

    Parameters
    ----------
    n_samples, n_features, n_shards : int
    noise, heterogeneity : float
        Standard deviations.
    seed : int

    Examples
    --------
    >>> synthetic_least_squares(100, 3, 4, noise=0.1, heterogeneity=0.0, seed=1).features.shape
    (100, 3)
    """
    rng = stream(seed, Purpose.SYNTHETIC)
    solution = rng.standard_normal(n_features)
    features = rng.standard_normal((n_samples, n_features))
    targets = features @ solution + noise * rng.standard_normal(n_samples)
    for shard, rows in enumerate(np.array_split(np.arange(n_samples), n_shards)):
        own = stream(seed, Purpose.SYNTHETIC, worker=shard + 1).standard_normal(n_features)
        targets[rows] += heterogeneity * (features[rows] @ own)
    return Dataset(features, targets)


def _from_file(config: DataConfig) -> Dataset:
    path = Path(config.source)
    if not os.path.isfile(path):  # noqa: PTH113 - a name too long for a file is no file, not an error
        raise InputError(
            f"data.source must be one of {', '.join(BUNDLED)}, synthetic, or a file. "
            f"There is no file {config.source!r} seen from {Path.cwd()}."
        )
    kind = SUFFIXES.get(path.suffix) if config.format == "auto" else config.format
    if kind is None:
        raise InputError(
            f"data.format must be given for {config.source!r}, whose suffix says nothing. Use svmlight, npz or npy."
        )
    try:
        if kind == "svmlight":
            return _svmlight(path)
        return _npz(path) if kind == "npz" else _npy(path, config.targets)
    except OSError as error:
        raise InputError(f"data.source {config.source!r} cannot be read: {error.strerror or error}.") from None


def _svmlight(path: Path) -> Dataset:
    from sklearn.datasets import load_svmlight_file

    try:
        features, targets = load_svmlight_file(str(path), dtype=np.float64)
    except (ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"data.source {str(path)!r} is not an svmlight file (lines 'label index:value ...'): {error}."
        ) from None
    return Dataset(sp.csr_array(features), np.asarray(targets, np.float64))


def _npz(path: Path) -> Dataset:
    arrays = _numpy_load(path)
    if not hasattr(arrays, "files"):
        raise InputError(f"data.source {str(path)!r} is a single .npy array, not an .npz file.")
    with arrays:
        missing = {"features", "targets"} - set(arrays.files)
        if missing:
            raise InputError(
                f"data.source {str(path)!r} must hold the arrays 'features' and 'targets'. "
                f"It holds {', '.join(arrays.files) or 'none'}."
            )
        try:
            features, targets = arrays["features"], arrays["targets"]
        except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"data.source {str(path)!r} cannot be read: {error}.") from None
    return _numeric(path, features, targets)


def _npy(path: Path, targets: str | None) -> Dataset:
    if targets is None:
        raise InputError(f"data.targets must name the .npy file with the targets of {str(path)!r}.")
    if not os.path.isfile(targets):  # noqa: PTH113
        raise InputError(f"data.targets must be a file. There is no file {targets!r} seen from {Path.cwd()}.")
    arrays = [_numpy_load(file) for file in (path, Path(targets))]
    if any(not isinstance(array, np.ndarray) for array in arrays):
        raise InputError(
            f"data.source {str(path)!r} and data.targets {targets!r} must be single .npy arrays, not .npz archives."
        )
    return _numeric(path, *arrays)


def _numpy_load(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # numpy leaves a damaged archive open
            return np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{str(path)!r} is not a numpy file of numbers: {error}.") from None


def _numeric(path: Path, features: Any, targets: Any) -> Dataset:
    for name, array, ndim in (("features", features, 2), ("targets", targets, 1)):
        if array.ndim != ndim or array.dtype.kind not in "fiub":
            raise InputError(
                f"data.source {str(path)!r}: {name} must be a {ndim}-dimensional array of real numbers. "
                f"Got shape {array.shape}, dtype {array.dtype}."
            )
    return Dataset(np.ascontiguousarray(features, np.float64), np.asarray(targets, np.float64))
