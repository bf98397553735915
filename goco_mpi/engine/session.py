"""The MPI session of a run: world-size guard, private communicator, errors that end the job."""

from __future__ import annotations

import atexit
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from goco_mpi.engine import launcher
from goco_mpi.errors import GocoError, InputError, RunError

LAUNCH = launcher.inspect()
THREADS = launcher.limit_threads(LAUNCH)  # before mpi4py or anything else imports numpy

try:
    import mpi4py

    # MPI starts at the end of this module: MPICH under Open MPI's launcher would abort in its start.
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = not launcher.asks_for_fault_tolerance()
    from mpi4py import MPI

    from goco_mpi.engine import failures
except (ImportError, RuntimeError) as error:
    reason = str(error).splitlines()[0]
    raise InputError(
        f"No usable MPI library: {reason}. Load your site's MPI module, or install one: pip install 'goco-mpi[mpich]'."
    ) from None

LAST_WORDS_S = 0.3
"""Time for the launcher to pass on what a rank printed: an abort may overtake it on a busy machine."""

FIRST_WORDS_S = 4.0
"""Time for rank 0 to say what is wrong: srun ends all ranks when one of them has failed, be it silently."""

BARRIER_PAUSE_S = 1e-3
"""Between two looks whether all ranks have come."""

CLOCK_TRIALS = 5
"""Times that a rank asks for rank 0's clock: the quickest answer counts."""

T = TypeVar("T")


class Session:
    """A private, named duplicate of a communicator, and how its ranks fail together.

    Use as a context manager: an exception that not all ranks agreed on aborts the whole job,
    so that no other rank hangs. Collective.

    Parameters
    ----------
    comm : MPI.Intracomm, optional
        Default: all ranks of the job.
    expected_ranks : int, optional
        How many ranks the user asked for, in addition to what the launcher says.
    guard : bool
        Refuse a world of another size than was asked for; `goco info` looks at one instead.

    Raises
    ------
    InputError
        If the world has another size than was asked for.
    """

    def __init__(
        self, comm: MPI.Intracomm | None = None, expected_ranks: int | None = None, guard: bool = True
    ) -> None:
        parent: MPI.Intracomm = MPI.COMM_WORLD if comm is None else comm
        if comm is None and guard:
            _guard_world_size(parent.Get_size(), expected_ranks)
        self.comm = parent.Dup()
        self.survives = failures.tolerated()
        self.comm.Set_name("goco_mpi")
        self.rank = self.comm.Get_rank()
        self.size = self.comm.Get_size()
        self.host = MPI.Get_processor_name()
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.ranks_on_node = node.Get_size()
        node.Free()

    @property
    def root(self) -> bool:
        """Whether this rank speaks and writes for all: rank 0, or the first that lives."""
        return self.comm.Get_rank() == 0

    @property
    def prefix(self) -> str:
        """Which rank speaks, for messages that not all ranks agreed on."""
        return f"[rank {self.rank}/{self.size} on {self.host}]"

    @property
    def poll_s(self) -> float:
        """Seconds to sleep between two looks at the messages: none where a rank has a core of its own."""
        return 50e-6 if self.ranks_on_node > launcher.node_cores() else 0.0

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        agreed = isinstance(error, GocoError) and (error.agreed or self.size == 1)  # a rank alone agrees with itself
        if error is None or isinstance(error, SystemExit) or agreed:
            self.close()
        elif isinstance(error, GocoError):
            self.abort(f"{self.prefix} {error}")
        elif isinstance(error, KeyboardInterrupt):
            self.abort(f"{self.prefix} interrupted")
        elif self.survives and isinstance(error, MPI.Exception) and (why := failures.obituary(self.comm)):
            self.abort(f"{self.prefix} {why}")
        else:
            text = "".join(traceback.format_exception(kind, error, trace))
            self.abort(f"{self.prefix} unexpected error; please report it, unless it comes from code of yours:\n{text}")

    def close(self) -> None:
        """Free the private communicator; twice is safe. Collective."""
        if self.comm != MPI.COMM_NULL:
            self.comm.Free()

    def abort(self, message: str) -> None:
        """Print ``message`` and end the whole job, unless this is a session of one rank."""
        if self.survives:
            failures.let_the_first_speak(self.comm)
        print(message, file=sys.stderr, flush=True)
        if self.size > 1:
            time.sleep(LAST_WORDS_S)
            self.comm.Abort(1)

    def agree(self, action: Callable[[], T]) -> T:
        """Run ``action`` on every rank and fail on all of them if it fails on one. Collective.

        Returns
        -------
        T
            What ``action`` returned here.

        Raises
        ------
        GocoError
            On every rank, the first failing rank's error, marked as agreed.
        """
        result: T
        mine: GocoError | None = None
        try:
            result = action()
        except GocoError as error:
            mine = error
        self.barrier()  # politely: some ranks may have much to do in ``action`` and others nothing
        errors = self.comm.allgather(None if mine is None else (type(mine), str(mine)))
        first = next((error for error in errors if error is not None), None)
        if first is not None:
            kind, text = first
            raise self.agreed(kind(text))
        return result

    def agreed(self, error: GocoError) -> GocoError:
        """Return ``error`` marked as one that every rank raises, so that rank 0 alone says it."""
        error.agreed = True
        error.silent = not self.root
        return error

    def share(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0 and give every rank its result, or its error. Collective."""
        result = self.agree(lambda: action() if self.root else None)
        return cast("T", self.comm.bcast(result))

    def agree_on(self, what: str, fingerprint: int) -> None:
        """Refuse to go on unless all ranks have the same ``fingerprint``. Collective.

        Raises
        ------
        RunError
            On every rank.
        """

        def compare() -> None:
            if first != fingerprint:
                raise RunError(
                    f"{self.prefix} {what} differs from rank 0's. Do all nodes have the same version of "
                    "goco_mpi and see the same files?"
                )

        first = self.comm.bcast(fingerprint)
        self.agree(compare)

    def barrier(self) -> None:
        """Wait for all ranks without burning a core. Collective."""
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(BARRIER_PAUSE_S)

    def clock_offset(self, clock: Callable[[], float] | None = None) -> float:
        """Return how far this rank's clock is ahead of rank 0's, in seconds. Collective.

        Rank 0 answers each rank on another node in turn; the quickest answer of several tells best.
        On rank 0's node all have one clock.

        Parameters
        ----------
        clock : callable () -> float, optional
            Default: `time.perf_counter`.

        References
        ----------
        Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989.
        """
        clock = clock or time.perf_counter
        offset, quickest = 0.0, float("inf")
        hosts = self.comm.allgather(self.host)
        for rank in (rank for rank in range(1, self.size) if hosts[rank] != hosts[0]):
            for _ in range(CLOCK_TRIALS):
                if self.rank == 0:
                    self.comm.recv(source=rank)
                    self.comm.send(clock(), rank)
                elif self.rank == rank:
                    asked = clock()
                    self.comm.send(None, 0)
                    theirs = self.comm.recv(source=0)
                    answered = clock()
                    if answered - asked < quickest:
                        quickest = answered - asked
                        offset = (asked + answered) / 2.0 - theirs
        return offset

    def environment(self) -> dict[str, Any]:
        """Return what the run ran on: MPI, hosts, ranks, threads, cores. Collective."""
        return {
            "mpi_library": library(),
            "mpi_standard": ".".join(str(part) for part in MPI.Get_version()),
            "launcher": LAUNCH.launcher,
            "n_ranks": self.size,
            "hosts": self.comm.allgather(self.host),
            "ranks_on_node": self.comm.allgather(self.ranks_on_node),
            "cores": self.comm.allgather(launcher.usable_cores()),
            "threads": self.comm.allgather(THREADS),
        }


def _start_mpi() -> None:
    """Start MPI unless it runs already.

    Raises
    ------
    InputError
        If the launcher is Open MPI's, or srun --mpi=pmix, and the library is MPICH: that cannot start.
    """
    if MPI.Is_initialized():
        return
    if LAUNCH.launcher == launcher.OPEN_MPI and "MPICH" in library():
        raise _mismatch(f"The launcher is Open MPI's, and the MPI library in use is {library()}.")
    if launcher.speaks_pmix_alone() and "MPICH" in library() and "pmix" not in MPI.Get_library_version().lower():
        raise _mismatch(f"{LAUNCH.launcher} speaks PMIx, which the MPI library in use does not ({library()}).")
    with warnings.catch_warnings():
        # mpi4py warns of a launcher of another MPI; the world size tells, and we say how to mend it.
        warnings.simplefilter("ignore", RuntimeWarning)
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    if not mpi4py.rc.finalize:
        atexit.register(failures.finalize_unless_bereaved)


def _guard_world_size(size: int, expected_ranks: int | None) -> None:
    """Refuse n jobs of one rank each, which a launcher of another MPI starts silently."""
    if LAUNCH.n_ranks not in (None, size):
        raise _mismatch(
            f"{LAUNCH.launcher} started {LAUNCH.n_ranks} ranks, and each of them is alone: this process sees {size}. "
            f"The launcher does not belong to the MPI library in use ({library()})."
        )
    if expected_ranks not in (None, size):
        error = InputError(
            f"--ranks asks for {expected_ranks} ranks. Got {size}. Start as many, such as mpiexec -n {expected_ranks}."
        )
        error.silent = MPI.COMM_WORLD.Get_rank() != 0
        raise error


def _mismatch(cause: str) -> InputError:
    """Return the error of a launcher that does not fit, to be printed by one process only."""
    own = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    error = InputError(
        f"{cause} Launch with that library's own mpiexec{f' ({own})' if own else ''}, or under Slurm with a fitting "
        "srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)."
    )
    if LAUNCH.rank != 0:
        error.silent = True
        if launcher.is_srun():
            time.sleep(FIRST_WORDS_S)
    return error


def library() -> str:
    """Return the name and version of the MPI library in use."""
    return " ".join(MPI.Get_library_version().splitlines()[0].strip("\0 ").split(",")[0].split())


_start_mpi()  # as importing mpi4py does, but not before it is clear that it can
