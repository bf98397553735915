"""Writing a shard store: any source, once, in the memory of a few blocks of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from goco_mpi.data import store
from goco_mpi.data.readers import open_source
from goco_mpi.data.scaling import from_moments
from goco_mpi.data.source import Source
from goco_mpi.data.split import needs_groups, needs_targets, split
from goco_mpi.directories import flush, refuse_existing, written_whole
from goco_mpi.errors import RunError
from goco_mpi.manifest import MANIFEST, SCHEMA_VERSION, Manifest, write_manifest
from goco_mpi.schema import DataConfig

Array = NDArray[np.float64]
Owners = NDArray[np.int32]
Progress = Callable[[str, int, int], None]

BLOCK_BYTES = 32 << 20
"""Of features read at a time."""
_FIRST_ROWS = 1024
"""Of CSR features, until it is seen how many values a row has."""
MANY_LABELS = 4096
"""More different targets than these are no labels to keep."""


def make_store(
    config: DataConfig,
    seed: int,
    out: Path,
    force: bool,
    origin: dict[str, Any],
    progress: Progress = lambda what, row, n: None,
) -> Manifest:
    """Write the samples that ``config`` names into a shard store: one shard after the other, then those to test on.

    They are split and cut as a run with the same ``[data]`` and seed would do it, but within a shard they are in
    the order in which they come, so that they are read once from beginning to end (CSR features twice). In memory
    are 32 MiB of features at a time, 4 bytes a sample, and what the partition needs: targets where it is by label.

    Parameters
    ----------
    config : DataConfig
    seed : int
    out : Path
    force : bool
        Whether an earlier store may be replaced.
    origin : dict
        From where and how it is made, for the record.
    progress : callable (what, row, n) -> None
        Called after each block.

    Returns
    -------
    Manifest

    Raises
    ------
    InputError
        If the samples cannot be read or cut, or ``out`` exists.
    RunError
        If it cannot be written; nothing is left behind then, and an earlier store is as it was.
    """
    refuse_existing(out, force, name="OUT", what="shard store", mark=MANIFEST)
    with open_source(config, seed) as source:
        owners, sizes = _owners(config, source, seed)
        try:
            with written_whole(out) as fresh:
                manifest = _Writer(fresh, source, owners, sizes, progress).write(_cut(config), origin)
                write_manifest(fresh, manifest)
                for path in (*fresh.iterdir(), fresh):
                    flush(path)
            flush(out.absolute().parent)
        except OSError as error:
            raise RunError(
                f"The shard store {str(out)!r} cannot be written: {error.strerror or error}. Choose another OUT."
            ) from None
    return manifest


def _cut(config: DataConfig) -> dict[str, Any]:
    """Return the keys of ``[data]`` that have no say any more in a store."""
    cut = {"shards": config.shards, "partition": config.partition, "test_fraction": config.test_fraction}
    if config.partition == "dirichlet":
        cut["alpha"] = config.alpha
    if config.partition == "by_column":
        cut["partition_column"] = config.partition_column
    return cut


def _owners(config: DataConfig, source: Source, seed: int) -> tuple[Owners, NDArray[np.int64]]:
    """Return the shard of each sample, M for those to test on, and how many each of them has."""
    everything = slice(0, source.n_samples)
    targets = source.targets(everything) if needs_targets(config, source) else None
    groups = source.column(str(config.partition_column)) if needs_groups(config, source) else None
    rows = split(config, source, seed, targets, groups)
    n_shards = len(rows.shards)
    owners = np.full(source.n_samples, n_shards, np.int32)
    for shard in range(n_shards):
        owners[rows.rows(shard)] = shard
    return owners, np.array([*rows.sizes, rows.n_test])


class _Writer:
    """The files of a store that is being made."""

    def __init__(
        self, directory: Path, source: Source, owners: Owners, sizes: NDArray[np.int64], progress: Progress
    ) -> None:
        self._directory, self._source, self._progress = directory, source, progress
        self._owners, self._sizes = owners, sizes
        self._files: dict[str, store.ArrayFile] = {}

    def write(self, cut: dict[str, Any], origin: dict[str, Any]) -> Manifest:
        """Write the arrays; return the manifest."""
        source = self._source
        n_stored = self._count_stored() if source.sparse else self._sizes * source.n_features
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            n_features=source.n_features,
            sizes=tuple(self._sizes[:-1].tolist()),
            n_test=int(self._sizes[-1]),
            sparse=source.sparse,
            dtype=source.dtype.name,
            n_stored=int(n_stored.sum()),
            labels=None,
            cut=cut,
            origin=origin,
            files={},
            checksums={},
        )
        try:
            for name, (dtype, shape) in store.arrays(manifest).items():
                self._files[name] = store.ArrayFile(self._directory / name, dtype, shape)
            self._copy(_starts(n_stored))
            chunks, scaling, labels = self._examine(manifest)
        finally:
            for file in self._files.values():
                file.close()
        for name, array in ((store.CHUNKS, chunks), (store.SCALING, scaling)):
            np.save(self._directory / name, array)
        return msgspec.structs.replace(
            manifest,
            labels=labels,
            files={path.name: path.stat().st_size for path in sorted(self._directory.iterdir())},
            checksums={store.CHUNKS: store.checksum(chunks), store.SCALING: store.checksum(scaling)},
        )

    def _blocks(self, what: str) -> Iterator[tuple[slice, Any]]:
        """Read the features from beginning to end."""
        source, start = self._source, 0
        length = _FIRST_ROWS if source.sparse else max(1, BLOCK_BYTES // (source.n_features * source.dtype.itemsize))
        while start < source.n_samples:
            rows = slice(start, min(start + length, source.n_samples))
            features = source.features(rows)
            yield rows, features
            if source.sparse:  # as many as fill a block if they are like these, but they may be longer
                row_bytes = 24 + 12 * features.nnz // (rows.stop - start)
                length = min(4 * length, max(1, BLOCK_BYTES // row_bytes))
            start = rows.stop
            self._progress(what, start, source.n_samples)

    def _count_stored(self) -> NDArray[np.int64]:
        """Return how many values each shard's rows have, and those to test on."""
        n_stored = np.zeros(len(self._sizes), np.int64)
        for rows, features in self._blocks("counting"):
            found = np.bincount(self._owners[rows], np.diff(features.indptr), len(n_stored))
            n_stored += found.astype(np.int64)
        return n_stored

    def _copy(self, next_value: NDArray[np.int64]) -> None:
        """Put every row behind those that its shard has so far."""
        source, next_row = self._source, _starts(self._sizes)
        for rows, features in self._blocks("writing"):
            targets, owners = source.targets(rows), self._owners[rows]
            order = np.argsort(owners, kind="stable")
            for places in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
                owner = int(owners[places[0]])
                part = features if len(places) == len(owners) else features[places]
                row = int(next_row[owner])
                self._files[store.TARGETS].put(row, targets[places])
                if source.sparse:
                    value = int(next_value[owner])
                    self._files[store.INDPTR].put(row, value + part.indptr[:-1].astype(np.int64))
                    self._files[store.DATA].put(value, part.data)
                    self._files[store.INDICES].put(value, part.indices)
                    next_value[owner] += part.nnz
                else:
                    self._files[store.FEATURES].put(row, part)
                next_row[owner] += len(places)
        if source.sparse:
            self._files[store.INDPTR].put(source.n_samples, np.array([next_value[-1]]))

    def _examine(self, manifest: Manifest) -> tuple[NDArray[Any], Array, tuple[float, ...] | None]:
        """Read what was written: return its chunks with their checksums, the scaling and the labels."""
        bounds = self._bounds()
        chunks = np.zeros(len(bounds) - 1, store.CHUNK)
        chunks["row"] = bounds[:-1]
        moments = _Moments(manifest.n_features)
        labels: NDArray[np.float64] | None = np.empty(0)
        for place, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            targets = self._files[store.TARGETS].get(start, stop)
            chunks["targets"][place] = store.checksum(targets)
            if labels is not None:
                labels = np.union1d(labels, targets)
                if len(labels) > MANY_LABELS or not np.array_equal(labels, np.round(labels)):
                    labels = None
            trains = stop <= manifest.n_train
            if not manifest.sparse:
                features = self._files[store.FEATURES].get(start, stop)
                chunks["features"][place] = store.checksum(features)
                if trains:
                    moments.add(features)
            else:
                indptr = self._files[store.INDPTR].get(start, stop + 1)
                data, indices = (
                    self._files[name].get(int(indptr[0]), int(indptr[-1])) for name in (store.DATA, store.INDICES)
                )
                chunks["features"][place] = store.checksum(data, indices, indptr)
                if trains:
                    moments.add_sparse(data, indices, stop - start)
            self._progress("verifying", stop, manifest.n_samples)
        scaling = moments.scaling()
        return chunks, scaling, None if labels is None else tuple(labels.tolist())

    def _bounds(self) -> NDArray[np.int64]:
        """Return where chunks begin and end: all rows of one are of one shard."""
        ends = np.append(0, np.cumsum(self._sizes))
        if not self._source.sparse:
            length = max(1, store.CHUNK_BYTES // (self._source.n_features * self._source.dtype.itemsize))
            starts = [np.arange(start, stop, length) for start, stop in itertools.pairwise(ends)]
            return np.append(np.concatenate(starts), ends[-1])
        bounds: list[int] = []
        length = max(1, BLOCK_BYTES // 32)  # of four numbers a row
        for start, stop in itertools.pairwise(ends.tolist()):
            origin, last = 0, -1
            for first in range(start, stop, length):
                # Rows by the bytes that they begin at, in the data and in indptr itself.
                indptr = self._files[store.INDPTR].get(first, min(first + length, stop))
                at = 12 * indptr + 8 * np.arange(first, first + len(indptr))
                if first == start:
                    origin = int(at[0])
                chunk = (at - origin) // store.CHUNK_BYTES
                bounds += (first + np.flatnonzero(np.diff(chunk, prepend=last))).tolist()
                last = int(chunk[-1])
        return np.array([*bounds, ends[-1]])


class _Moments:
    """Mean and squares about it of the columns, of one chunk after the other.

    References
    ----------
    Chan, Golub & LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.
    """

    def __init__(self, n_features: int) -> None:
        self._n = 0
        self._mean, self._squares = np.zeros(n_features), np.zeros(n_features)

    def add(self, features: NDArray[Any]) -> None:
        n, before = len(features), self._n
        mean = features.mean(axis=0, dtype=np.float64)
        centred = features - mean
        difference = mean - self._mean
        self._n += n
        self._mean += difference * (n / self._n)
        self._squares += np.einsum("ij,ij->j", centred, centred) + difference**2 * (before * n / self._n)

    def add_sparse(self, data: NDArray[Any], indices: NDArray[np.int32], n_rows: int) -> None:
        """Add CSR rows, whose squares are about 0."""
        self._n += n_rows
        self._squares += np.bincount(indices, data.astype(np.float64) ** 2, minlength=len(self._squares))

    def scaling(self) -> Array:
        found = from_moments(self._mean, self._squares / self._n)
        return np.stack([found.shift, found.scale])


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(sizes)[:-1])
