"""The arrays of a shard store: which files there are, and what their checksums are of.

===================  =================================================================================
``features.npy``     dense: shape (n_samples, n_features)
``data.npy``         CSR: the values that are not 0, row after row
``indices.npy``      CSR: their columns, int32
``indptr.npy``       CSR: where each row begins among them, int64, shape (n_samples + 1,)
``targets.npy``      float64, shape (n_samples,)
``scaling.npy``      shift and scale of `goco_mpi.data.source.Scaling`, shape (2, n_features)
``chunks.npy``       one entry a chunk of rows, `CHUNK`
``manifest.json``    everything else: `goco_mpi.manifest`
===================  =================================================================================

A chunk is a few MiB of rows of one shard: what is read, and verified, at a time.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.manifest import Manifest

FEATURES = "features.npy"
DATA, INDICES, INDPTR = "data.npy", "indices.npy", "indptr.npy"
TARGETS = "targets.npy"
SCALING = "scaling.npy"
CHUNKS = "chunks.npy"

CHUNK_BYTES = 4 << 20
"""Of features: large enough for a parallel file system, small enough to be in the cache still when it is verified."""
CHUNK = np.dtype([("row", "<i8"), ("features", "<u4"), ("targets", "<u4")])
"""First row of a chunk, checksums of its features (CSR: of data, indices and indptr) and of its targets."""

_WORDS = 521
"""64-bit words in a row of what `checksum` adds up: a prime, so that no page or sector fills whole rows."""

Shapes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def arrays(manifest: Manifest) -> Shapes:
    """Return type and shape of each array that is read in parts."""
    n_samples, dtype = manifest.n_samples, np.dtype(manifest.dtype).newbyteorder("<")
    found: Shapes = {TARGETS: (np.dtype("<f8"), (n_samples,))}
    if not manifest.sparse:
        return {FEATURES: (dtype, (n_samples, manifest.n_features)), **found}
    return {
        DATA: (dtype, (manifest.n_stored,)),
        INDICES: (np.dtype("<i4"), (manifest.n_stored,)),
        INDPTR: (np.dtype("<i8"), (n_samples + 1,)),
        **found,
    }


def checksum(*parts: NDArray[Any]) -> int:
    """Return a checksum of contiguous arrays: whatever changes a few bytes of them, or moves some, changes it.

    The 64-bit words are the rows of a table, which are added up modulo 2^64; of the sums it is the CRC-32. A CRC-32 of
    all bytes would take longer than reading them from the memory of the system; this takes a fraction of that.

    Examples
    --------
    >>> numbers = np.arange(3000.0)
    >>> changed = numbers.copy()
    >>> changed[[7, 8]] = changed[[8, 7]]
    >>> checksum(numbers) == checksum(numbers.copy()), checksum(numbers) == checksum(changed)
    (True, False)
    """
    total = 0
    for part in parts:
        content = part.reshape(-1).view(np.uint8)
        whole = len(content) - len(content) % (8 * _WORDS)
        words = content[:whole].view("<u8").reshape(-1, _WORDS)
        total = zlib.crc32(words.sum(axis=0).astype("<u8", copy=False).data, total)
        total = zlib.crc32(content[whole:].data, total)
        total = zlib.crc32(str(len(content)).encode(), total)
    return total


class ArrayFile:
    """An array in a .npy file, of which some rows are read or written at a time.

    By positions rather than mapped into memory: a page of a mapped file that cannot be had ends a process.

    Parameters
    ----------
    path : Path
    dtype : numpy.dtype
    shape : tuple of int
    offset : int, optional
        Where its numbers begin in the file (default: it is a new file).

    Raises
    ------
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int | None = None) -> None:
        self._dtype, self._shape = dtype, shape
        self._row_bytes = int(dtype.itemsize * np.prod(shape[1:], dtype=np.int64))
        if offset is None:
            with path.open("xb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                offset = file.tell()
            self._descriptor = os.open(path, os.O_RDWR)
        else:
            self._descriptor = os.open(path, os.O_RDONLY)
        self._offset = offset

    def put(self, row: int, array: NDArray[Any]) -> None:
        """Write some rows, the first of them at ``row``.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        content = np.ascontiguousarray(array, self._dtype).reshape(-1).view(np.uint8)
        offset = self._offset + row * self._row_bytes
        while len(content):
            written = os.pwrite(self._descriptor, content.data, offset)
            content, offset = content[written:], offset + written

    def get(self, start: int, stop: int, out: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Read some rows; into the beginning of ``out`` where it is given.

        Raises
        ------
        OSError
            If they cannot be read.
        EOFError
            If the file ends before them.
        """
        size = (stop - start) * self._row_bytes
        content = np.empty(size, np.uint8) if out is None else out[:size]
        offset, done = self._offset + start * self._row_bytes, 0
        while done < size:
            # One call reads 2 GiB at most.
            read = os.preadv(self._descriptor, [content[done:].data], offset + done)
            if not read:
                raise EOFError
            done += read
        return content.view(self._dtype).reshape(stop - start, *self._shape[1:])

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
