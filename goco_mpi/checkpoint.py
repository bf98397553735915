"""Checkpoints on disk: sets of files, one a rank, that a run can go on from.

They stand beside the run directory ``DIR``:

===============================================  ==================================================================
``DIR.checkpoints/set-00000042/rank00003.npz``   what rank 3 keeps in its memory (`goco_mpi.core.flatten`)
``DIR.checkpoints/set-00000042/whole.json``      of what run, and that every rank's file is there
===============================================  ==================================================================

Every rank writes its own file when it gets there, and whoever finds that it was the last names the set whole. A file
appears whole or not at all: it is written under another name, flushed to the disk and renamed. Only whole sets are
ever read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import flat, parse_config, to_dict
from goco_mpi.core.flatten import restore
from goco_mpi.errors import InputError
from goco_mpi.schema import RunConfig

SCHEMA_VERSION = 1
EARLY = ("signal", "stop_file", "scheduler", "time_limit_s")
"""Values of ``stopped_by`` of a run that is meant to go on."""
MAY_CHANGE = ("rounds", "stop", "checkpoint", "record")
"""Keys and tables of an experiment that may be others when a run goes on."""
_TEXT = "text"
_HEAD = "head"
_WHOLE = "whole.json"


class DamagedError(Exception):
    """A set cannot be read; an older one may."""


@dataclass(frozen=True)
class WholeSet:
    """A set of which every rank's file was written.

    Attributes
    ----------
    path : Path
    number : int
        Sets of one directory are numbered in the order of their time, whatever run they are of.
    document : dict
        ``whole.json``: schema version, number of ranks, facts, config, each rank's round; empty where it is damaged.
    """

    path: Path
    number: int
    document: dict[str, Any]

    @property
    def rounds(self) -> list[int]:
        """Round in which each rank goes on."""
        return list(self.document["rounds"])


def directory_of(out: Path) -> Path:
    """Return where the checkpoints of a run directory are.

    Examples
    --------
    >>> directory_of(Path("runs/a")).as_posix()
    'runs/a.checkpoints'
    """
    named = out if out.name else out.absolute()  # "." has no name to put anything behind
    return named.with_name(named.name + ".checkpoints")


class CheckpointFiles:
    """The checkpoints of one run, as one of its ranks writes them.

    Parameters
    ----------
    directory : Path
    config : RunConfig
    n_ranks : int
    facts : dict
        What the run found out of itself before its first round, and has to know when it goes on: numbers and texts.
    keep : int
        Whole sets that are kept: the newest.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        n_ranks: int,
        facts: Mapping[str, Any],
        keep: int = 2,
    ) -> None:
        self.directory = directory
        self._document = {
            "schema_version": SCHEMA_VERSION,
            "n_ranks": n_ranks,
            "facts": dict(facts),
            "config": to_dict(config),
        }
        self._n_ranks = n_ranks
        self._keep = keep
        self._pinned: set[str] = set()

    def pin(self, *sets: WholeSet) -> None:
        """Keep these as well, however old they are, and no others any more."""
        self._pinned = {one.path.name for one in sets}

    def refuse_unwritable(self, rank: int) -> None:
        """Make the directory, and write and remove a file.

        Raises
        ------
        InputError
            If that does not work; better now than when the work of hours is to be kept.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _write_whole(self.directory / f".rank{rank:05d}", lambda file: file.write(b"\0" * 4096))
            (self.directory / f".rank{rank:05d}").unlink()
        except OSError as error:
            raise InputError(
                f"Checkpoints cannot be written to {str(self.directory)!r}: {error.strerror or error}. Choose another "
                "--out, or leave [checkpoint] out."
            ) from None

    def write(self, number: int, rank: int, round_: int, text: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a rank's file of a set; name the set whole if it was the last; remove what is not kept any more.

        Parameters
        ----------
        number : int
        rank : int
        round_ : int
            In which the rank goes on.
        text, arrays
            As of `goco_mpi.core.flatten.flatten`.

        Raises
        ------
        OSError
            If it cannot be written; nothing is left behind then.
        """
        head = json.dumps({"rank": rank, "round": round_, **self._document})
        content: dict[str, Any] = {
            _HEAD: _bytes(head),
            _TEXT: _bytes(text),
            **{f"array{name}": array for name, array in arrays.items()},
        }
        place = self.directory / _name(number)
        place.mkdir(parents=True, exist_ok=True)
        _write_whole(place / _file(rank), lambda file: np.savez(file, **content))
        self.tidy()

    def tidy(self) -> None:
        """Name sets whole that are, and remove those that are not kept.

        Also older sets than a rank's own are looked at: where ranks see each other's files late, none may have
        been the last to its own eyes.
        """
        for path in _sets(self.directory):
            if not (path / _WHOLE).exists() and all((path / _file(rank)).exists() for rank in range(self._n_ranks)):
                with contextlib.suppress(DamagedError, FileNotFoundError):  # or removed by another rank meanwhile
                    rounds = [_head(path / _file(rank))["round"] for rank in range(self._n_ranks)]
                    text = json.dumps({**self._document, "rounds": rounds}, indent=2) + "\n"
                    _write_whole(path / _WHOLE, partial(_write_text, text))
        whole = [path for path in _sets(self.directory) if (path / _WHOLE).exists()]
        kept = {path.name for path in whole[-self._keep :]} | self._pinned
        for path in _sets(self.directory):
            # What is older than the newest whole set and not whole never will be: all ranks are past it.
            if whole and path < whole[-1] and path.name not in kept:
                remove_set(path)


def remove_all(directory: Path) -> None:
    """Remove all sets of a directory, and the directory if there is nothing else in it."""
    for path in _sets(directory):
        remove_set(path)
    with contextlib.suppress(OSError):
        directory.rmdir()


def remove_set(path: Path) -> None:
    """Remove a set, its name first: what is half removed is not whole."""
    with contextlib.suppress(OSError):
        (path / _WHOLE).unlink()
    shutil.rmtree(path, ignore_errors=True)


def newest_number(directory: Path) -> int:
    """Return the largest number of the sets in a directory, whole or not; 0 where there is none."""
    return max((_number(path) for path in _sets(directory)), default=0)


def whole_sets(directory: Path) -> list[WholeSet]:
    """Return the whole sets of a directory, the newest first.

    Raises
    ------
    InputError
        If one was written by another schema.
    """
    found = []
    for path in reversed(_sets(directory)):
        try:
            said = json.loads((path / _WHOLE).read_text())
        except OSError:
            continue  # not whole, or just removed
        except ValueError:
            said = None
        document = said if isinstance(said, dict) else {}
        version = document.get("schema_version")
        if version not in (None, SCHEMA_VERSION):
            raise InputError(
                f"{str(path)!r} has schema version {version}, and this goco reads {SCHEMA_VERSION}. Go on with the "
                "version of goco that wrote it, or start from its parameters with --warm-start."
            )
        found.append(WholeSet(path, _number(path), document))
    return found


def refuse_other_run(found: WholeSet, config: RunConfig, n_ranks: int) -> None:
    """Refuse to go on from a set of another run.

    Raises
    ------
    InputError
        Naming what differs: the number of ranks, or keys of the experiment (but for those of ``MAY_CHANGE``).
    DamagedError
        If it does not say what it is of.
    """
    _refuse_damaged(found)
    theirs = found.document["n_ranks"]
    if theirs != n_ranks:
        raise InputError(
            f"The checkpoint {str(found.path)!r} is of {theirs} ranks. Got {n_ranks}. Start as many, or take its "
            "parameters into a new run with --warm-start."
        )
    before, now = (flat(to_dict(one)) for one in (parse_config(found.document["config"]), config))
    for key in sorted(before.keys() | now.keys()):
        if key.split(".")[0] not in MAY_CHANGE and before.get(key) != now.get(key):
            raise InputError(
                f"The checkpoint {str(found.path)!r} is of another experiment: {key} was {before.get(key)!r}. Got "
                f"{now.get(key)!r}. Only {', '.join(MAY_CHANGE)} may change when a run goes on; for the rest start "
                "anew, with --warm-start from its parameters."
            )


def _refuse_damaged(found: WholeSet) -> None:
    if not {"n_ranks", "rounds", "facts", "config"} <= found.document.keys():
        raise DamagedError(f"{str(found.path / _WHOLE)!r} is damaged")


def read_rank(path: Path, rank: int, like: object = None) -> dict[str, Any]:
    """Return what a rank kept, from a set or the copy of one.

    Parameters
    ----------
    path : Path
        Of the set.
    rank : int
    like : object
        A fresh state of its method; see `goco_mpi.core.flatten.restore`.

    Raises
    ------
    DamagedError
        If the file is missing or damaged.
    """
    file = path / _file(rank)
    content = _read(file)
    try:
        text = content.pop(_TEXT).tobytes().decode()
        content.pop(_HEAD)
        kept = restore(text, {name.removeprefix("array"): array for name, array in content.items()}, like)
        if not isinstance(kept, dict):
            raise ValueError("it holds no state")
    except (ValueError, KeyError) as error:
        raise DamagedError(f"{str(file)!r} is damaged: {error}") from None
    return kept


def mean_params(directory: Path) -> NDArray[np.float64] | None:
    """Return the mean over all ranks of the parameters in the newest whole set; None where there is none.

    Raises
    ------
    DamagedError
        If it cannot be read.
    """
    sets = whole_sets(directory)
    if not sets:
        return None
    _refuse_damaged(sets[0])
    params = [_params(sets[0].path / _file(rank)) for rank in range(sets[0].document["n_ranks"])]
    return np.asarray(np.mean(params, axis=0))


def _params(file: Path) -> NDArray[np.float64]:
    """Return the parameters in a file without the rest, which may be of a method's own."""
    content = _read(file)
    try:
        items = dict(json.loads(content[_TEXT].tobytes())["dict"])
        return np.asarray(content["array" + items["params"]["array"]], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{str(file)!r} is damaged: {error}") from None


def _read(file: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of a file; every one has a checksum, which numpy compares."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DamagedError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive fails in a dozen ways
        raise DamagedError(f"{str(file)!r} is damaged: {error}") from None


def _head(file: Path) -> dict[str, Any]:
    """Return what a file says of itself, without the rest of it."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            head: dict[str, Any] = json.loads(archive[_HEAD].tobytes())
            return head
    except FileNotFoundError:
        raise
    except Exception as error:
        raise DamagedError(f"{str(file)!r} is damaged: {error}") from None


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears whole or not at all, and is there after a power failure."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # nobody else's, on whatever node
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a directory be flushed
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _name(number: int) -> str:
    return f"set-{number:08d}"


def _file(rank: int) -> str:
    return f"rank{rank:05d}.npz"


def _number(path: Path) -> int:
    return int(path.name.removeprefix("set-"))


def _sets(directory: Path) -> list[Path]:
    """Return the sets of a directory, whole or not, the oldest first."""
    return sorted(path for path in directory.glob("set-*") if path.name.removeprefix("set-").isdigit())
