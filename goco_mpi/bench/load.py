"""What `goco bench load` measures: a rank's way to its shards against a bare read of the same files.

In one process that holds all shards, from the system's cache, in seconds of the processor: what is compared is work,
not a disk, and what else runs counts little. Ours is all that
a run does from opening the source to having the rows to train on: a bare read has no column of ones, does not look for
NaN, and verifies no checksum. Text is compared with what scikit-learn's loader takes for it.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from goco_mpi.config import parse_config
from goco_mpi.data.crew import Crew
from goco_mpi.data.readers import open_source
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_share
from goco_mpi.schema import RunConfig, replace

N_SHARDS = 8


def load(repeats: int, kind: str, n_rows: int, n_features: int) -> list[float]:
    """Return our seconds / those of a bare read (or scikit-learn), in turn, after one of each that is thrown away.

    Parameters
    ----------
    repeats : int
    kind : {'store', 'npy', 'hdf5', 'svmlight'}
        The first three dense, the last with 14 ones a row.
    n_rows, n_features : int
    """
    with tempfile.TemporaryDirectory(prefix="goco-bench-") as directory:
        source, targets = WRITERS[kind](Path(directory), n_rows, n_features)
        config = _config(source, targets)

        def reference_s() -> float:
            return _scikit_learn_s(source) if kind == "svmlight" else _bare_s(Path(directory))

        return [_ours_s(config) / reference_s() for _ in range(repeats + 1)][1:]


def _config(source: Path, targets: Path | None) -> RunConfig:
    data = {"source": str(source), "shards": N_SHARDS, "partition": "in_order", "test_fraction": 0.0}
    if targets is not None:
        data["targets"] = str(targets)
    return parse_config({"data": data, "objective": {"kind": "least_squares"}, "topology": {"kind": "complete"}})


def _ours_s(config: RunConfig) -> float:
    layout = lay_out(config, 1)
    start = time.process_time()
    with open_source(config.data, config.seed) as source:
        share, _ = load_share(source, layout, 0, Crew())
    seconds = time.process_time() - start
    assert share.n_rows == source.n_samples
    return seconds


def _bare_s(directory: Path) -> float:
    """Return the seconds of reading all files into arrays of their size."""
    files = [file for file in directory.rglob("*") if file.is_file()]
    start = time.process_time()
    for file in files:
        content = np.empty(file.stat().st_size, np.uint8)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            done = 0
            while done < len(content):
                done += os.preadv(descriptor, [content[done:].data], done)
        finally:
            os.close(descriptor)
    return time.process_time() - start


def _scikit_learn_s(file: Path) -> float:
    from sklearn.datasets import load_svmlight_file

    start = time.process_time()
    load_svmlight_file(str(file))
    return time.process_time() - start


def _write_npy(directory: Path, n_rows: int, n_features: int) -> tuple[Path, Path | None]:
    features, targets = directory / "features.npy", directory / "targets.npy"
    rng = np.random.default_rng(0)
    np.save(features, rng.standard_normal((n_rows, n_features)))
    np.save(targets, rng.standard_normal(n_rows))
    return features, targets


def _write_store(directory: Path, n_rows: int, n_features: int) -> tuple[Path, Path | None]:
    from goco_mpi.data.sharding import make_store

    data = _config(Path("synthetic_regression"), None).data
    data = replace(data, n_samples=n_rows, n_features=n_features)
    make_store(data, 0, directory / "store", force=False, origin={})
    return directory / "store", None


def _write_hdf5(directory: Path, n_rows: int, n_features: int) -> tuple[Path, Path | None]:
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(directory / "data.h5", "w") as file:
        file["features"] = rng.standard_normal((n_rows, n_features))
        file["targets"] = rng.standard_normal(n_rows)
    return directory / "data.h5", None


def _write_svmlight(directory: Path, n_rows: int, n_features: int) -> tuple[Path, Path | None]:
    rng = np.random.default_rng(0)
    groups = np.linspace(0, n_features, 15).astype(int)
    columns = np.stack([rng.integers(*bounds, n_rows) + 1 for bounds in itertools.pairwise(groups)], axis=1)
    with (directory / "data.svm").open("w") as file:
        for label, row in zip(rng.choice([-1, 1], n_rows), columns, strict=True):
            file.write(f"{label:+d} {' '.join(f'{column}:1' for column in row)}\n")
    return directory / "data.svm", None


WRITERS: dict[str, Callable[[Path, int, int], tuple[Path, Path | None]]] = {
    "store": _write_store,
    "npy": _write_npy,
    "hdf5": _write_hdf5,
    "svmlight": _write_svmlight,
}
