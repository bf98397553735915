"""Files of numpy, .npy and .npz, read in place: of an archive that is not compressed, only the rows asked for."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.arrays import ArraySource, opened_by_all
from goco_mpi.data.readers.csr import CsrRows, refuse_csc
from goco_mpi.data.readers.file import InputFile, refusing
from goco_mpi.data.readers.memory import InMemory, held, held_by_rank_zero
from goco_mpi.data.readers.rows import BLOCK_BYTES, GAP_BYTES, LoadedRows, RowReader, check_numbers
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

CSR_MEMBERS = ("data", "indices", "indptr", "shape")
"""Of an archive, as scipy.sparse.save_npz names them."""


class NpyRows(RowReader):
    """An array in the format of .npy within a file, read by positioned reads.

    They are no slower than a memory map, and where the file was truncated meanwhile or its disk fails they end in a
    message, a map in SIGBUS.

    Parameters
    ----------
    file : InputFile
    offset : int
        Where the array's header begins.
    called : str, optional
        What messages call it (default: as they call the file).
    end : int, optional
        Where what belongs to it ends (default: with the file).

    Raises
    ------
    InputError
        If there is no such array, or not all of it.
    """

    def __init__(self, file: InputFile, offset: int = 0, called: str | None = None, end: int | None = None) -> None:
        self.called = called or file.called
        with refusing(f"{self.called} is not a numpy file of numbers"):
            file.seek(offset)
            version = npy.read_magic(file)
            # Version 3 differs in the names of columns of records, which are refused anyway.
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, fortran_order, self.dtype = header(file)
        self._file, self._offset = file, file.tell()
        if self.dtype.kind in "fiub":
            last = file.size if end is None else min(end, file.size)
            missing = self._offset + math.prod(self.shape) * self.dtype.itemsize - last
            if missing > 0 or min(self.shape, default=0) < 0:
                raise InputError(
                    f"{self.called} is truncated: {missing} bytes of its array of shape {self.shape} are missing."
                )
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._by_column = fortran_order and len(self.shape) == 2  # then columns are contiguous, one read for each
        if self._by_column:
            self.block = max(1, 16 * BLOCK_BYTES // max(1, self._row_bytes))
            self.gap = GAP_BYTES // max(1, self.dtype.itemsize)
        else:
            self.block = max(1, BLOCK_BYTES // max(1, self._row_bytes))
            self.gap = GAP_BYTES // max(1, self._row_bytes)

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """See `RowReader`."""
        if self._by_column:
            column = np.empty(stop - start, self.dtype)
            for j in range(self.shape[1]):
                self._file.read_at(self._offset + (j * self.shape[0] + start) * self.dtype.itemsize, column)
                out[:, j] = column
            return
        straight = out.dtype == self.dtype and out.flags.c_contiguous
        into = out if straight else np.empty(out.shape, self.dtype)
        self._file.read_at(self._offset + start * self._row_bytes, into)
        if not straight:
            out[...] = into


def open_npy(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open an array of features, with one of targets in the file ``config.targets``."""
    return opened_by_all(crew, lambda: _npy(config))


def _npy(config: DataConfig) -> ArraySource:
    targets = config.targets
    if targets is None:
        raise InputError(f"data.targets must name the .npy file with the targets of {config.source!r}.")
    if not os.path.isfile(targets):  # noqa: PTH113 - a name too long for a file is no file, not an error
        raise InputError(f"data.targets must be a file. There is no file {targets!r} seen from {Path.cwd()}.")
    files: list[InputFile] = []
    try:
        arrays = []
        for path, parameter, ndim in ((config.source, "data.source", 2), (targets, "data.targets", 1)):
            files.append(InputFile(path, parameter))
            arrays.append(NpyRows(files[-1]))
            check_numbers(files[-1].called, "it", arrays[-1].shape, arrays[-1].dtype, ndim)
        return ArraySource(config.source, arrays[0], arrays[1], config.dtype, files)
    except BaseException:
        for file in files:
            file.close()
        raise


def open_npz(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open an archive with the arrays ``features`` and ``targets``, or those of a CSR matrix and ``targets``."""
    compressed = crew.together(lambda: _is_compressed(config.source) if crew.rank == 0 else False)[0]
    if compressed:
        return held_by_rank_zero(crew, lambda: _inflated(config))
    return opened_by_all(crew, lambda: _in_place(config))


def _directory(file: InputFile) -> zipfile.ZipFile:
    with refusing(f"{file.called} is not an .npz archive, or damaged"):
        return zipfile.ZipFile(file)


def _is_compressed(path: str) -> bool:
    with InputFile(path) as file, _directory(file) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())


def _in_place(config: DataConfig) -> ArraySource:
    file = InputFile(config.source)
    try:
        with _directory(file) as archive:
            members = {Path(member.filename).stem: member for member in archive.infolist()}

        def array(name: str) -> NpyRows:
            begin = _data_offset(file, members[name])
            return NpyRows(file, begin, f"{file.called}, array {name!r},", begin + members[name].file_size)

        return _source(config, file, members, array)
    except BaseException:
        file.close()
        raise


def _inflated(config: DataConfig) -> InMemory:
    with InputFile(config.source) as file:
        with refusing(f"{file.called} cannot be read"), np.load(file, allow_pickle=False) as arrays:
            source = _source(config, file, arrays.files, lambda name: LoadedRows(file.called, arrays[name]))
        return held(source, config.partition_column)


def _source(
    config: DataConfig, file: InputFile, names: Collection[str], array: Callable[[str], RowReader]
) -> ArraySource:
    sparse = "features" not in names and set(CSR_MEMBERS) <= set(names)
    if not (sparse or "features" in names) or "targets" not in names:
        raise InputError(
            f"{file.called} must hold the arrays 'features' and 'targets', or those of a CSR matrix, "
            f"{', '.join(map(repr, CSR_MEMBERS))}, and 'targets'. It holds {', '.join(names) or 'none'}."
        )
    targets = array("targets")
    check_numbers(file.called, "targets", targets.shape, targets.dtype, 1)
    features: RowReader | CsrRows
    if sparse:
        if "format" in names:  # scipy.sparse.save_npz's
            refuse_csc(file.called, _text(array("format")))
        data, indices, indptr, shape = (array(name) for name in CSR_MEMBERS)
        stated = np.empty(shape.shape, shape.dtype) if len(shape.shape) == 1 and shape.dtype.kind in "iu" else None
        if stated is not None:
            shape.read(0, len(stated), stated)
        features = CsrRows(file.called, data, indices, indptr, stated)
    else:
        features = array("features")
        check_numbers(file.called, "features", features.shape, features.dtype, 2)
    return ArraySource(config.source, features, targets, config.dtype, [file])


def _text(array: RowReader) -> str | None:
    """Return the text that an array without dimensions is, None if it is none."""
    if array.shape or array.dtype.kind not in "SU":
        return None
    text = np.empty((), array.dtype)
    array.read(0, 1, text)
    return str(text)


def _data_offset(file: InputFile, member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored member begin: behind a header whose length only the header says."""
    header = np.empty(30, np.uint8)
    file.read_at(member.header_offset, header)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", header.tobytes())
    if signature != b"PK\x03\x04":
        raise InputError(f"{file.called} is damaged: member {member.filename!r} is not where the archive says.")
    return member.header_offset + 30 + int(name_length) + int(extra_length)
