"""A shard store, of which a rank reads its own shards, and verifies them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data import store
from goco_mpi.data.blocks import BlockSource
from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.rows import check_finite
from goco_mpi.data.source import Cut, Scaling, Source
from goco_mpi.errors import InputError
from goco_mpi.manifest import Manifest, damage, read_manifest
from goco_mpi.schema import DataConfig

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is to be known of a store before any row is read.

    Attributes
    ----------
    manifest : Manifest
    offsets : dict of str to int
        Where the numbers of each array begin in its file.
    chunks : ndarray of `goco_mpi.data.store.CHUNK`
    scaling : ndarray of shape (2, n_features)
    """

    manifest: Manifest
    offsets: dict[str, int]
    chunks: NDArray[Any]
    scaling: Array


def open_store(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open a directory that ``goco shard`` made: rank 0 looks at its files, and tells the others."""

    def look() -> Facts | None:
        if crew.rank != 0:
            return None
        manifest = read_manifest(config.source)
        refuse_other_cut(config, manifest)
        return look_at(config.source, manifest)

    facts = crew.together(look)[0]
    assert facts is not None  # rank 0 returned them
    source = Store(config.source, facts, np.dtype(config.dtype))
    if crew.rank == 0:
        source.bytes_read = sum(facts.offsets.values()) + facts.chunks.nbytes + facts.scaling.nbytes
    return source


def refuse_other_cut(config: DataConfig, manifest: Manifest) -> None:
    """Refuse an experiment that wants the samples cut otherwise than they are.

    Raises
    ------
    InputError
    """
    for key, value in manifest.cut.items():
        given = getattr(config, key)
        if given != value:
            raise InputError(
                f"data.{key} must be {value!r} with the shard store {config.source!r}, whose samples are cut already. "
                f"Got {given!r}. Leave it out, or make another store with goco shard."
            )


def look_at(directory: str, manifest: Manifest) -> Facts:
    """Look at all files of a store, without reading its rows.

    Raises
    ------
    InputError
        If one is missing, or not of the size and type that it had.
    """
    for name, size in manifest.files.items():
        try:
            found = (Path(directory) / name).stat().st_size
        except OSError as error:
            raise damage(directory, f"{name}: {error.strerror}") from None
        if found != size:
            raise damage(directory, f"{name} has {found} bytes, and had {size} when it was made")
    offsets = {name: _offset(directory, name, *facts) for name, facts in store.arrays(manifest).items()}
    chunks = _whole(directory, manifest, store.CHUNKS)
    return Facts(manifest, offsets, chunks, _whole(directory, manifest, store.SCALING))


def _offset(directory: str, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Return where the numbers of an array begin, which is to be of a type and shape."""
    try:
        with (Path(directory) / name).open("rb") as file:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            found_shape, fortran_order, found_dtype = read[np.lib.format.read_magic(file)](file)
            if (found_shape, fortran_order, found_dtype) != (shape, False, dtype):
                raise damage(directory, f"{name} is of shape {found_shape} and {found_dtype}, not {shape} and {dtype}")
            return file.tell()
    except OSError as error:
        raise damage(directory, f"{name}: {error.strerror}") from None
    except (ValueError, KeyError):
        raise damage(directory, f"{name} is no .npy file") from None


def _whole(directory: str, manifest: Manifest, name: str) -> NDArray[Any]:
    try:
        with (Path(directory) / name).open("rb") as file:
            found: NDArray[Any] = np.load(file, allow_pickle=False)
    except OSError as error:
        raise damage(directory, f"{name}: {error.strerror or error}") from None
    except (ValueError, EOFError):
        raise damage(directory, f"{name} is no .npy file") from None
    if store.checksum(found) != manifest.checksums[name]:
        raise damage(directory, f"{name} has another checksum than when it was made")
    return found


class Store(BlockSource):
    """The samples of a shard store.

    Parameters
    ----------
    directory : str
    facts : Facts
    dtype : numpy.dtype
        Of the features that are returned.
    """

    def __init__(self, directory: str, facts: Facts, dtype: np.dtype[Any]) -> None:
        manifest = facts.manifest
        self.name = directory
        self.n_samples, self.n_features = manifest.n_samples, manifest.n_features
        self.sparse = manifest.sparse
        self.dtype = dtype
        self._facts, self._arrays = facts, store.arrays(manifest)
        self._files: dict[str, store.ArrayFile] = {}
        self._buffer = np.empty(0, np.uint8)
        self.bounds = np.append(facts.chunks["row"], self.n_samples)
        self._ends = np.cumsum(manifest.sizes)
        starts = [0, *self._ends.tolist()]
        shards = tuple(slice(start, stop) for start, stop in zip(starts, self._ends.tolist(), strict=False))
        self.cut = Cut(shards, slice(manifest.n_train, self.n_samples))
        self.scaling = Scaling(*facts.scaling)
        if manifest.labels is not None:
            self.labels = np.array(manifest.labels)

    def make_features(self, block: int) -> Any:
        """Read a chunk and verify it."""
        start, stop = int(self.bounds[block]), int(self.bounds[block + 1])
        if not self.sparse:
            rows = self._read(store.FEATURES, start, stop, reuse=True)
            self._verify(block, "features", store.FEATURES, rows)
            return self._typed(rows, start)
        import scipy.sparse as sp

        indptr = self._read(store.INDPTR, start, stop + 1)
        first, last = int(indptr[0]), int(indptr[-1])
        if not 0 <= first <= last <= self._facts.manifest.n_stored:
            raise self._damage(block, store.INDPTR)
        data, indices = (self._read(name, first, last) for name in (store.DATA, store.INDICES))
        self._verify(block, "features", f"{store.DATA}, {store.INDICES} or {store.INDPTR}", data, indices, indptr)
        ends = (indptr - first).astype(np.int32)
        matrix = sp.csr_array((data, indices, ends), shape=(stop - start, self.n_features))
        matrix.data = self._typed(data, start, ends)
        return matrix

    def _typed(self, values: NDArray[Any], start: int, indptr: NDArray[np.int32] | None = None) -> NDArray[Any]:
        """Return verified features in the type that is asked for, which may be too narrow for some."""
        if values.dtype == self.dtype:
            return values
        with np.errstate(over="ignore"):
            typed = values.astype(self.dtype)
        if self.dtype.itemsize < values.dtype.itemsize:
            rows = (lambda k: k) if indptr is None else (lambda k: int(np.searchsorted(indptr, k, side="right")) - 1)
            check_finite(typed, f"data.source {self.name!r}", "feature", lambda k: start + rows(k))
        return typed

    def make_targets(self, block: int) -> Array:
        """Read the targets of a chunk and verify them."""
        targets = self._read(store.TARGETS, int(self.bounds[block]), int(self.bounds[block + 1]))
        self._verify(block, "targets", store.TARGETS, targets)
        return targets

    def close(self) -> None:
        """See `Source`."""
        while self._files:
            self._files.popitem()[1].close()

    def _verify(self, block: int, column: str, name: str, *parts: NDArray[Any]) -> None:
        if store.checksum(*parts) != self._facts.chunks[column][block]:
            raise self._damage(block, name)

    def _damage(self, block: int, name: str) -> InputError:
        first, last = int(self.bounds[block]), int(self.bounds[block + 1]) - 1
        shard = int(np.searchsorted(self._ends, first, side="right"))
        where = f"shard {shard}" if shard < len(self._ends) else "the rows to test on"
        return damage(self.name, f"{name} in {where}, among rows {first} to {last}: the checksum is another")

    def _read(self, name: str, start: int, stop: int, reuse: bool = False) -> NDArray[Any]:
        """Return some rows of an array; with ``reuse`` in memory that the next one is read into."""
        dtype, shape = self._arrays[name]
        buffer = None
        if reuse:
            size = int(dtype.itemsize * np.prod((stop - start, *shape[1:]), dtype=np.int64))
            if self._buffer.size < size:
                self._buffer = np.empty(size, np.uint8)
            buffer = self._buffer
        try:
            if name not in self._files:
                self._files[name] = store.ArrayFile(Path(self.name) / name, dtype, shape, self._facts.offsets[name])
            content = self._files[name].get(start, stop, buffer)
        except OSError as error:
            raise damage(self.name, f"{name}: {error.strerror}") from None
        except EOFError:
            raise damage(self.name, f"{name} ends before row {stop}") from None
        self.bytes_read += content.nbytes
        return content
