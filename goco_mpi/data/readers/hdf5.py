"""HDF5 files: a dataset of features, or a group with the arrays of a CSR matrix, and a dataset of targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.arrays import ArraySource, opened_by_all
from goco_mpi.data.readers.csr import CsrRows, refuse_csc
from goco_mpi.data.readers.file import InputFile, needs, refusing
from goco_mpi.data.readers.rows import BLOCK_BYTES, GAP_BYTES, RowReader, check_numbers
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


def open_hdf5(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open the datasets ``config.features`` and ``config.target_column`` of a file."""
    return opened_by_all(crew, lambda: Hdf5Source(config))


class Hdf5Source(ArraySource):
    """Samples in an HDF5 file.

    HDF5 reads through our own file object: it counts the bytes, and no lock is asked for, which parallel file systems
    often refuse.
    """

    def __init__(self, config: DataConfig) -> None:
        h5py = needs("h5py", "hdf5", config.source)
        file = InputFile(config.source)
        self._hdf5: Any = None
        try:
            with refusing(f"{file.called} is not an HDF5 file, or damaged"):
                self._hdf5 = h5py.File(file, "r")
                features: RowReader | CsrRows
                name = config.features or "features"
                if isinstance(_node(file.called, self._hdf5, name, "data.features"), h5py.Group):
                    features = _csr(file.called, self._hdf5[name])
                else:
                    features = Hdf5Rows(file.called, _dataset(file.called, self._hdf5, name, "data.features"))
                    check_numbers(file.called, f"dataset {name!r}", features.shape, features.dtype, 2)
                name = config.target_column or "targets"
                targets = Hdf5Rows(file.called, _dataset(file.called, self._hdf5, name, "data.target_column"))
                check_numbers(file.called, f"dataset {name!r}", targets.shape, targets.dtype, 1)
            super().__init__(config.source, features, targets, config.dtype, [file])
        except BaseException:
            if self._hdf5 is not None:
                self._hdf5.close()
            file.close()
            raise

    def column(self, name: str) -> NDArray[Any]:
        """See `Source`: a dataset of that name."""
        called = f"data.source {self.name!r}"
        with refusing(f"{called}: dataset {name!r} cannot be read"):
            dataset = _dataset(called, self._hdf5, name, "data.partition_column")
        if dataset.shape != (self.n_samples,):
            raise InputError(
                f"{called}: dataset {name!r} must have one value a row, {self.n_samples}. Got shape {dataset.shape}."
            )
        with refusing(f"{called}: dataset {name!r} cannot be read"):
            values: NDArray[Any] = dataset.asstr()[:] if dataset.dtype.kind == "O" else dataset[:]
        self._count_bytes()
        return values

    def close(self) -> None:
        """See `Source`."""
        self._hdf5.close()
        super().close()


class Hdf5Rows(RowReader):
    """A dataset; of one in chunks, each chunk is read whole, and in one piece of `pieces`."""

    def __init__(self, called: str, dataset: Any) -> None:
        self.called, self._dataset = called, dataset
        self.shape, self.dtype = dataset.shape or (), dataset.dtype
        row_bytes = max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize)
        chunk = dataset.chunks[0] if dataset.chunks else 1
        self.block = chunk * max(1, BLOCK_BYTES // (row_bytes * chunk))
        self.gap = max(chunk - 1, GAP_BYTES // row_bytes)

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """See `RowReader`."""
        with refusing(f"{self.called}, {self._dataset.name!r}, cannot be read"):
            out[...] = self._dataset[start:stop]


def _csr(called: str, group: Any) -> CsrRows:
    refuse_csc(called, group.attrs.get("encoding-type"))  # AnnData's
    data, indices, indptr = (
        Hdf5Rows(called, _dataset(called, group, name, f"The group {group.name!r} of a CSR matrix, its member"))
        for name in ("data", "indices", "indptr")
    )
    # As AnnData keeps it, an attribute; as others do, a dataset.
    shape = group.attrs.get("shape", group["shape"][()] if "shape" in group else None)
    return CsrRows(called, data, indices, indptr, shape)


def _node(called: str, group: Any, name: str, parameter: str) -> Any:
    if name not in group:
        there = ", ".join(map(str, group)) or "none"
        raise InputError(f"{parameter} = {name!r}: {called} has no such dataset. It has {there}.")
    return group[name]


def _dataset(called: str, group: Any, name: str, parameter: str) -> Any:
    node = _node(called, group, name, parameter)
    if not hasattr(node, "dtype") or not hasattr(node, "chunks"):
        raise InputError(f"{parameter} = {name!r}: {called} has a group of that name. Name a dataset in it.")
    if not node.chunks:
        return node
    import h5py

    # Room to keep all chunks that a row lies in: who goes through the rows in small steps reads each chunk once.
    across = -(-math.prod(node.shape[1:]) // max(1, math.prod(node.chunks[1:])))
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(
        max(521, 10 * across), max(1 << 20, math.prod(node.chunks) * node.dtype.itemsize * across), 1.0
    )
    del node  # a dataset that is open already keeps the room that it had
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))
