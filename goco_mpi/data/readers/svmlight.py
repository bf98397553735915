"""Text files of labels and sparse features, of which each process parses its part."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.arrays import check_same
from goco_mpi.data.readers.csr import CsrAssembly
from goco_mpi.data.readers.file import InputFile
from goco_mpi.data.readers.memory import held, held_by_rank_zero, is_small
from goco_mpi.data.readers.rows import BLOCK_BYTES, GAP_BYTES, check_csr_finite, check_finite, check_shapes, pieces
from goco_mpi.data.source import Rows, Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

NEWLINE, HASH, SPACE = b"\n# "
COLUMNS = 2**31
"""Feature numbers are below this: a larger one is a slip, and the parameters would fill the memory."""


def open_svmlight(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open a file of lines ``label index:value ...``.

    A small one rank 0 reads. Of others each member parses its part once, for targets, where rows begin and how long
    they are; what all found is exchanged. The features of a row are parsed again when they are asked for. Whether the
    first feature is 0 or 1 depends on whether any line has a 0, so that all must be known.
    """
    if is_small(crew, config.source):
        return held_by_rank_zero(crew, lambda: held(open_svmlight(config, seed, Crew()), config.partition_column))
    file: InputFile | None = None

    def scan() -> _Scan:
        nonlocal file
        file = InputFile(config.source)
        return _scan(file, crew.piece(file.size))

    try:
        found = crew.together(scan)
        assert file is not None  # or this rank had refused it
        check_same(file.called, [part.size for part in found], "a file of {} bytes")
        return SvmlightSource(config, file, found)
    except BaseException:
        if file is not None:
            file.close()
        raise


@dataclass(frozen=True, eq=False)
class _Scan:
    """What is known of the lines of a part of the file."""

    size: int
    """Of the whole file."""
    targets: NDArray[np.float64]
    starts: NDArray[np.int64]
    count: NDArray[np.int32]
    smallest: int
    """Feature number; a large one where there is none."""
    largest: int


class SvmlightSource(Source):
    """Samples whose features are parsed when they are asked for."""

    sparse = True

    def __init__(self, config: DataConfig, file: InputFile, found: list[_Scan]) -> None:
        self.name, self.dtype = config.source, np.dtype(config.dtype)
        self._file, self._targets = file, np.concatenate([part.targets for part in found])
        self._starts = np.concatenate([*(part.starts for part in found), [file.size]])
        self._count = np.concatenate([part.count for part in found])
        largest = max(part.largest for part in found)
        self._zero_based = largest < 0 or min(part.smallest for part in found) == 0
        self.n_samples, self.n_features = len(self._targets), largest + self._zero_based
        check_shapes(file.called, (self.n_samples, max(1, self.n_features)), self._targets.shape)
        self.n_features = max(1, self.n_features)
        check_finite(self._targets, file.called, "target", int)
        self.bytes_read = file.bytes_read

    def features(self, rows: Rows) -> Any:
        """See `Source`."""
        wanted = self._count[rows]
        assembly = CsrAssembly(wanted, self.n_features, self.dtype)
        mean = max(1, self._file.size // self.n_samples)
        for piece in pieces(rows, self.n_samples, max(1, BLOCK_BYTES // mean), GAP_BYTES // mean):
            bounds = self._starts[piece.start : piece.stop + 1]
            text = _read(self._file, int(bounds[0]), int(bounds[-1]))
            if not isinstance(piece.take, slice):
                offsets = (bounds - bounds[0]).tolist()
                text = b"".join(text[offsets[k] : offsets[k + 1]] for k in piece.take)
            parsed, _ = _parse(self._file, text, int(bounds[0]), self.dtype, self.n_features, self._zero_based)
            if np.diff(parsed.indptr).tolist() != wanted[piece.put].tolist():
                raise InputError(f"{self._file.called} changes while it is read.")
            check_csr_finite(parsed, self._file.called, piece.row)
            assembly.put(piece.put, parsed.data, parsed.indices)
        self.bytes_read = self._file.bytes_read
        return assembly.matrix()

    def targets(self, rows: Rows) -> NDArray[np.float64]:
        """See `Source`."""
        return self._targets[rows].copy()

    def close(self) -> None:
        """See `Source`."""
        self._file.close()


def _scan(file: InputFile, part: slice) -> _Scan:
    """Parse the lines that begin in a part of the file."""
    begin, end = _line_after(file, part.start), _line_after(file, part.stop)
    targets, starts, count = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    smallest, largest = COLUMNS, -1
    while begin < end:
        stop = min(end, _line_after(file, begin + BLOCK_BYTES))
        text = _read(file, begin, stop)
        features, labels = _parse(file, text, begin, np.dtype(np.float64), None, True)
        lines = begin + _row_starts(text)
        if len(lines) != len(labels):
            raise _refusal(file, "a line is broken", begin, text)
        targets.append(labels)
        starts.append(lines)
        count.append(np.diff(features.indptr).astype(np.int32))
        if features.nnz:
            smallest, largest = min(smallest, int(features.indices.min())), max(largest, int(features.indices.max()))
        begin = stop
    if largest >= COLUMNS:
        raise InputError(f"{file.called} is not an svmlight file: its features have numbers up to {largest}.")
    return _Scan(file.size, np.concatenate(targets), np.concatenate(starts), np.concatenate(count), smallest, largest)


def _read(file: InputFile, start: int, stop: int) -> bytes:
    text = np.empty(stop - start, np.uint8)
    file.read_at(start, text)
    return text.tobytes()


def _line_after(file: InputFile, place: int) -> int:
    """Return where the first line begins at ``place`` or behind it."""
    if place <= 0:
        return 0
    place -= 1
    while place < file.size:
        text = _read(file, place, min(file.size, place + 4096))
        found = text.find(NEWLINE)
        if found >= 0:
            return place + found + 1
        place += len(text)
    return file.size


def _row_starts(text: bytes) -> NDArray[np.int64]:
    """Return where lines begin that are neither blank nor mere comments."""
    codes = np.frombuffer(text, np.uint8)
    begins = np.concatenate(([0], np.flatnonzero(codes == NEWLINE) + 1))
    lines: NDArray[np.int64] = begins[begins < len(codes)]
    plain = (codes[lines] > SPACE) & (codes[lines] != HASH)
    for k in np.flatnonzero(~plain):
        line = text[lines[k] : lines[k + 1] if k + 1 < len(lines) else len(text)]
        plain[k] = bool(line.partition(b"#")[0].split())
    chosen: NDArray[np.int64] = lines[plain]
    return chosen


def _parse(
    file: InputFile, text: bytes, begin: int, dtype: np.dtype[Any], n_features: int | None, zero_based: bool
) -> tuple[Any, NDArray[np.float64]]:
    from sklearn.datasets import load_svmlight_file

    try:
        features, targets = load_svmlight_file(
            io.BytesIO(text), n_features=n_features, dtype=dtype, zero_based=zero_based
        )
    except Exception as error:  # a parser of any text raises nearly anything
        half = (text.rfind(b"\n", 0, len(text) // 2) + 1) or (text.find(b"\n") + 1)
        if 0 < half < len(text):  # narrows it down to the first line at fault
            _parse(file, text[:half], begin, dtype, n_features, zero_based)
            _parse(file, text[half:], begin + half, dtype, n_features, zero_based)
        raise _refusal(file, str(error), begin, text) from None
    return features, np.asarray(targets, np.float64)


def _refusal(file: InputFile, error: str, begin: int, text: bytes) -> InputError:
    return InputError(
        f"{file.called} is not an svmlight file (lines 'label index:value ...'): {error.rstrip('.')} in "
        f"{text[:40].decode(errors='replace')!r} at byte {begin}."
    )
