"""How those who live go on together when others die: in the evaluation, and in writing the record."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import TypeVar, cast

from mpi4py import MPI

from goco_mpi.engine.deadline import overdue
from goco_mpi.engine.failures import is_death
from goco_mpi.engine.session import Session
from goco_mpi.errors import GocoError

T = TypeVar("T")


def together(session: Session, action: Callable[[], T], time_limit_s: float) -> T:
    """Return what a collective ``action`` returns, gone through anew without those who die in it. Collective.

    Where a death ends the job this is ``action()``.

    Parameters
    ----------
    session : Session
    action : callable () -> T
        The same when done again.
    time_limit_s : float
        For the living to meet.

    Raises
    ------
    GocoError
        What ``action`` raised, or if they do not meet in time.
    """
    if not session.survives:
        return action()
    while True:
        found: T
        agreed: GocoError | None = None
        whole = True
        try:
            found = action()
        except GocoError as error:
            if not error.agreed:
                raise
            agreed = error
        except MPI.Exception as error:
            if not is_death(error):
                raise
            whole = False
            session.comm.Revoke()  # who still waits in the action hears of it, too
        if _all_agree(session.comm, whole):
            if agreed is not None:
                raise agreed
            return found
        regroup(session, time_limit_s)


def _all_agree(comm: MPI.Intracomm, whole: bool) -> bool:
    """Tell, the same on all who live, whether all went through and nobody died meanwhile. Collective."""
    try:
        return bool(comm.Agree(int(whole)))
    except MPI.Exception as error:
        if not is_death(error):
            raise
        return False


def regroup(session: Session, time_limit_s: float) -> None:
    """Make ``session.comm`` one of the living; ``rank`` and ``size`` stay those of the layout. Collective among them.

    Raises
    ------
    RunError
        If they do not meet within ``time_limit_s``.
    """
    end = time.perf_counter() + time_limit_s
    while True:
        try:
            _meet(session.comm, end, time_limit_s)
            session.comm = cast("MPI.Intracomm", session.comm.Shrink())
            return
        except MPI.Exception as error:
            if not is_death(error):
                raise


def _meet(comm: MPI.Intracomm, end: float, time_limit_s: float) -> None:
    """Wait politely until all who live are here: what follows blocks, and Open MPI's Ishrink fails where some died."""
    try:
        request = comm.Iagree(array("i", [1]))
        while not request.Test():
            if time.perf_counter() >= end:
                raise overdue("not all living ranks ended", time_limit_s)
            time.sleep(1e-4)
    except MPI.Exception as error:
        if not is_death(error):  # they agree that somebody died
            raise
