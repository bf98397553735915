"""What the ranks of a running job say of themselves, for `goco watch`: small files beside the run directory ``DIR``.

=====================  ==========================================================================================
``DIR.status/job``     of what run, written once
``DIR.status/rank3``   where rank 3 is: the same `SIZE` bytes over and over, with a checksum
=====================  ==========================================================================================

They are there while the job runs. A file is opened, written and closed each time: that is when a network file system
shows it to others. None is ever waited for, and what is damaged or not there yet is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = 512
"""Bytes of a rank's file: one block."""
PERIOD_S = 1.0
"""Seconds between two writes of a rank."""
WRITES_PER_S = 100.0
"""Of all ranks together at most: a parallel file system has other users."""
MOST_SUSPECTS = 12
"""Suspects that a rank names."""
SCHEMA_VERSION = 1
_JOB = "job"


@dataclass(frozen=True)
class RankStatus:
    """What a rank said last.

    Attributes
    ----------
    rank : int
    said : dict
        Host, round, gradients, seconds and so on: see `goco_mpi.engine.telling`.
    time_s : float
        When its file was written, by the file system's clock.
    """

    rank: int
    said: dict[str, Any]
    time_s: float


@dataclass(frozen=True)
class JobStatus:
    """A running job.

    Attributes
    ----------
    job : dict
        ``n_ranks``, ``rounds``, ``first_rounds`` (of each rank: after a resumption not 0), ``method``, ``source``,
        ``period_s``.
    ranks : dict of int to RankStatus
        Those that have said something.
    begun_s : float
        When it began, by the file system's clock: its record will be younger.
    """

    job: dict[str, Any]
    ranks: dict[int, RankStatus]
    begun_s: float


def directory_of(out: Path) -> Path:
    """Return where the ranks of a run directory's job say where they are.

    Examples
    --------
    >>> directory_of(Path("/runs/mine"))
    PosixPath('/runs/mine.status')
    """
    return Path(f"{out.absolute()}.status")  # absolute: "." has no name to put anything behind


def period_s(n_ranks: int) -> float:
    """Return the seconds between two writes of a rank.

    Examples
    --------
    >>> period_s(8), period_s(2000)
    (1.0, 20.0)
    """
    return max(PERIOD_S, n_ranks / WRITES_PER_S)


def begin(directory: Path, job: dict[str, Any]) -> list[Path]:
    """Make the directory of a job, and remove what a job before left of it. What cannot be written is left out.

    Returns
    -------
    list of Path
        Directories around it that had to be made too, for `end`.
    """
    around = [parent for parent in directory.parents if not parent.exists()]
    with contextlib.suppress(OSError):
        end(directory)
        directory.mkdir(parents=True, exist_ok=True)
        fresh = directory / f".{_JOB}"
        fresh.write_text(json.dumps({"schema_version": SCHEMA_VERSION, **job}) + "\n")
        fresh.replace(directory / _JOB)
    return around


def end(directory: Path, around: Sequence[Path] = ()) -> None:
    """Remove what a job has written that has ended, and the directories made for it if nothing else is in them."""
    with contextlib.suppress(OSError):
        (directory / _JOB).unlink(missing_ok=True)  # the first: what is half removed is no job
        for file in (directory / f".{_JOB}", *directory.glob("rank[0-9]*")):
            file.unlink(missing_ok=True)
        directory.rmdir()
    with contextlib.suppress(OSError):
        for parent in around:
            parent.rmdir()


def encode(said: dict[str, Any]) -> bytes:
    """Return what a rank says as `SIZE` bytes.

    Examples
    --------
    >>> said = {"round": 7}
    >>> len(encode(said)), decode(encode(said)) == said
    (512, True)
    """
    text = json.dumps(said, separators=(",", ":")).encode()
    line = f"{zlib.crc32(text):08x} ".encode() + text
    if len(line) >= SIZE:
        raise ValueError(f"a rank's status takes {len(line)} bytes")
    return line.ljust(SIZE - 1) + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """Return what a rank said; None where that is not what was written, or not all of it."""
    checksum, _, text = line.rstrip().partition(b" ")
    try:
        if len(line) != SIZE or int(checksum, 16) != zlib.crc32(text):
            return None
        said: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return said


def write(directory: Path, rank: int, line: bytes) -> None:
    """Write a rank's file.

    Raises
    ------
    OSError
        If that does not work, as where the node does not see the directory; none is made.
    """
    descriptor = os.open(directory / f"rank{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, line, 0)
    finally:
        os.close(descriptor)


def read(directory: Path) -> JobStatus | None:
    """Return what is known of a job; None where there is none."""
    try:
        with (directory / _JOB).open() as file:
            job, begun_s = json.load(file), os.fstat(file.fileno()).st_mtime
        if job.get("schema_version") != SCHEMA_VERSION:
            return None
        found = {}
        for rank in range(int(job["n_ranks"])):
            with contextlib.suppress(FileNotFoundError), (directory / f"rank{rank}").open("rb") as line:
                said = decode(line.read(SIZE + 1))
                if said is not None:
                    found[rank] = RankStatus(rank, said, os.fstat(line.fileno()).st_mtime)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return JobStatus(job, found, begun_s)
