"""Directories of results: they appear whole or not at all, and replace no other without being told to."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from goco_mpi.errors import InputError


def refuse_existing(out: Path, force: bool, name: str, what: str, mark: str) -> None:
    """Refuse to begin when the result could not be written, or would destroy an earlier one.

    Parameters
    ----------
    out : Path
    force : bool
        Whether an earlier result may be replaced.
    name : str
        What the user calls ``out``, such as ``--out``.
    what : str
        What the result is, such as ``run``.
    mark : str
        File by which a directory is known to be one.

    Raises
    ------
    InputError
        If ``out`` exists and ``force`` is not given, or is no such directory at all, or its place cannot be
        written to.
    """
    try:
        free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
        known = (out / mark).is_file()
        place = next(parent for parent in _real(out).parents if parent.exists())
    except OSError as error:
        raise InputError(f"{name} {str(out)!r} cannot be a directory: {error.strerror}.") from None
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{name} {str(out)!r} cannot be written: {str(place)!r} is no directory one may write to.")
    if free:
        return
    if not force:
        raise InputError(
            f"The {what} directory {str(out)!r} exists. Choose another {name}, or replace it with --force."
        )
    if not known:
        raise InputError(
            f"--force replaces an earlier {what}, and {str(out)!r} is none (it has no {mark}). Choose another {name}."
        )


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Give a directory to write into, beside ``out``, which takes its place once everything went well.

    Where ``out`` is a symbolic link, it is what the link points to that is written, and the link stays.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then, and what was there is as it was.
    """
    fresh: Path | None = None
    out = _real(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield fresh
        fresh.chmod(0o777 & ~_umask())
        _swap_in(fresh, out)
    finally:
        if fresh is not None:  # gone if all went well
            shutil.rmtree(fresh, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file or the entries of a directory on the disk before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _real(path: Path) -> Path:
    """Return where a path leads, through links to what may not be there yet."""
    return Path(os.path.realpath(path))


def _swap_in(fresh: Path, out: Path) -> None:
    if not out.exists():
        fresh.rename(out)
        return
    old = fresh.with_name(fresh.name + ".old")
    out.rename(old)
    try:
        fresh.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
