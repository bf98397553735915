"""Which ranks have died, where the MPI lives on without them: Open MPI, started with ``mpiexec --with-ft ulfm``.

Elsewhere a rank's death ends the job, and nothing here is used.
"""

from __future__ import annotations

import time

from mpi4py import MPI

from goco_mpi.engine import launcher

TURN_S = 1.0
"""How long others wait for the first to say what all have to say: longer than it takes to end the job."""


def tolerated() -> bool:
    """Tell whether the job goes on when one of its ranks dies (ULFM).

    MPICH has the same functions, and its launcher ends the job all the same.

    References
    ----------
    Bland, Bouteiller, Herault, Bosilca & Dongarra, "Post-failure recovery of MPI communication capability", IJHPCA
    2013; the interface is in MPI 5 (User-Level Failure Mitigation).
    """
    return launcher.asks_for_fault_tolerance() and MPI.Get_library_version().startswith("Open MPI")


def finalize_unless_bereaved() -> None:
    """End MPI, at the end of the process; where a rank has died leave that out.

    Open MPI 5.0 may wait there for the dead for ever (its issue 11404). Its mpiexec takes a process that just ends for
    one more that died, and ends with the exit code of the others.
    """
    if not MPI.Is_finalized() and not Failures(MPI.COMM_WORLD).look():
        MPI.Finalize()


def is_death(error: MPI.Exception) -> bool:
    """Tell whether an error says that a rank is dead, or that another rank found one to be."""
    return error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


def let_the_first_speak(comm: MPI.Intracomm) -> None:
    """Return at once on the first rank that lives, later on others: many meet a death at once, and one ends the job."""
    dead = Failures(comm).look()
    if comm.Get_rank() != next(rank for rank in range(comm.Get_size()) if rank not in dead):
        time.sleep(TURN_S)


def obituary(comm: MPI.Intracomm) -> str | None:
    """Return what to say where all ranks were needed and some have died, None where nobody has."""
    from goco_mpi.core.survivors import ranks_text  # not before BLAS has its threads

    dead = Failures(comm).look()
    if not dead:
        return None
    return (
        f"{ranks_text(dead).capitalize()} died while all ranks were needed: in setting up the run, or by a method.kind "
        "that does not go on without. Start again; push_pull and goco go on when ranks die."
    )


class Failures:
    """The dead of a communicator, as far as this process has been told: a look is local and takes a microsecond.

    Parameters
    ----------
    comm : MPI.Intracomm

    Attributes
    ----------
    dead : set of int
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._group = comm.Get_group()
        self.dead: set[int] = set()

    def look(self) -> list[int]:
        """Return who is found dead for the first time, ascending."""
        failed = self._comm.Get_failed()
        count = failed.Get_size()
        if count == 0:
            return []
        news: list[int] = []
        if count > len(self.dead):
            ranks = failed.Translate_ranks(list(range(count)), self._group)
            news = sorted(set(ranks) - self.dead)
            self.dead.update(news)
        failed.Free()
        return news
