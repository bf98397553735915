"""Readers of samples: one module a format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.bundled import open_bundled
from goco_mpi.data.readers.csv_table import open_csv
from goco_mpi.data.readers.generators import open_generated
from goco_mpi.data.readers.hdf5 import open_hdf5
from goco_mpi.data.readers.numpy_files import open_npy, open_npz
from goco_mpi.data.readers.parquet import open_parquet
from goco_mpi.data.readers.store import open_store
from goco_mpi.data.readers.svmlight import open_svmlight
from goco_mpi.data.readers.synthetic import open_synthetic
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.manifest import MANIFEST, is_store
from goco_mpi.schema import DataConfig
from goco_mpi.values import BUNDLED, GENERATED

Opener = Callable[[DataConfig, int, Crew], Source]

OPENERS: dict[str, Opener] = {
    **dict.fromkeys(BUNDLED, open_bundled),
    "synthetic": open_synthetic,
    **dict.fromkeys(GENERATED, open_generated),
}
"""What ``data.source`` may say other than a path. Those who open together call an opener together."""

FILE_OPENERS: dict[str, Opener] = {
    "svmlight": open_svmlight,
    "npz": open_npz,
    "npy": open_npy,
    "hdf5": open_hdf5,
    "parquet": open_parquet,
    "csv": open_csv,
}
"""By ``data.format``."""

STORE = "store"

SUFFIXES = {
    ".svm": "svmlight",
    ".libsvm": "svmlight",
    ".svmlight": "svmlight",
    ".npz": "npz",
    ".npy": "npy",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".parquet": "parquet",
    ".csv": "csv",
}

KEYS = {"targets": ("npy",), "features": ("hdf5",), "target_column": ("hdf5", "parquet", "csv")}
"""Which formats have a use for these keys."""


def open_source(config: DataConfig, seed: int, crew: Crew | None = None) -> Source:
    """Open the samples that ``config.source`` names: their shape is known, their rows are read when asked for.

    Parameters
    ----------
    config : DataConfig
    seed : int
        For synthetic data.
    crew : Crew, optional
        Those that open it together, all of which must call this (default: this process alone).

    Raises
    ------
    InputError
        If the source is unknown or cannot be read; to all, where one of them had to refuse it.

    Examples
    --------
    >>> with open_source(DataConfig(source="synthetic", n_samples=100, n_features=3), seed=0) as source:
    ...     source.n_samples, source.features(slice(0, 10)).shape
    (100, (10, 3))
    """
    crew = Crew() if crew is None else crew
    opener = OPENERS.get(config.source)
    if opener is None:
        # Rank 0 looks for all: a thousand looks are much to a file system.
        kind = crew.together(lambda: format_of(config) if crew.rank == 0 else "")[0]
        opener = open_store if kind == STORE else FILE_OPENERS[kind]
    return opener(config, seed, crew)


def format_of(config: DataConfig) -> str:
    """Return which of `FILE_OPENERS` reads the file that ``config.source`` names, or that it is a shard store.

    Raises
    ------
    InputError
        If there is no such file, neither its suffix nor ``config.format`` says what it is, or a key is given for
        which that format has no use.
    """
    if is_store(config.source):
        return STORE
    if os.path.isdir(config.source):  # noqa: PTH112 - see below
        raise InputError(
            f"data.source {config.source!r} is a directory, and no shard store (it has no {MANIFEST}). Name a file, or "
            "a directory that goco shard made."
        )
    if not os.path.isfile(config.source):  # noqa: PTH113 - a name too long for a file is no file, not an error
        raise InputError(
            f"data.source must be one of {', '.join(OPENERS)}, or a file. "
            f"There is no file {config.source!r} seen from {Path.cwd()}."
        )
    kind = SUFFIXES.get(Path(config.source).suffix) if config.format == "auto" else config.format
    if kind is None:
        *others, last = FILE_OPENERS
        raise InputError(
            f"data.format must be given for {config.source!r}, whose suffix says nothing. "
            f"Use {', '.join(others)} or {last}."
        )
    for key, kinds in KEYS.items():
        value = getattr(config, key)
        if value is not None and kind not in kinds:
            raise InputError(
                f"data.{key} goes with the formats {', '.join(kinds)}. Got {value!r} with {config.source!r}, whose "
                f"format is {kind}. Leave it out."
            )
    return kind
