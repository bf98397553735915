"""The launcher with which ``goco bench`` and ``goco sweep`` start ranks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from goco_mpi.errors import InputError


def words(given: str | None) -> list[str]:
    """Return the command of ``--mpiexec``; without one the launcher beside this Python, or the one on the path.

    Raises
    ------
    InputError
        If it is no command.

    Examples
    --------
    >>> words("/site/mpiexec --with-ft ulfm")
    ['/site/mpiexec', '--with-ft', 'ulfm']
    """
    if given is None:
        beside = Path(sys.executable).with_name("mpiexec")  # where an MPI wheel puts it
        return [str(beside) if beside.exists() else "mpiexec"]
    try:
        found = shlex.split(given)
    except ValueError as error:
        raise InputError(f"--mpiexec must be a command, as a shell has it. Got {given!r}: {error}.") from None
    if not found:
        raise InputError("--mpiexec must be a command. Got none. Name your MPI's launcher, or leave it out.")
    return found
