"""The facts about a job that its ranks find together: who runs where, on what, and how well they are connected."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import mpi4py
import numpy as np
from mpi4py import MPI

from goco_mpi import __version__
from goco_mpi.doctor import Facts, Link, RankFacts
from goco_mpi.engine import launcher, scheduler
from goco_mpi.engine.deadline import waitsome_until
from goco_mpi.engine.session import LAUNCH, THREADS, Session, library
from goco_mpi.errors import RunError

TAG = 2
PAIR_LIMIT_S = 60.0
"""How long a neighbour may take to answer; then the job is ended, with its name."""
SEEING_S = 5.0
"""How long a file that rank 0 wrote may take to be seen on another node."""
LATENCY = (1, 0.2, 50)
"""Numbers in a message, seconds to spend, and messages at most."""
BANDWIDTH = ((1 << 20) // 8, 0.4, 8)


def examine(session: Session, out: Path, expected_ranks: int | None, margin_s: float) -> Facts | None:
    """Find the facts about this job. Collective.

    Parameters
    ----------
    session : Session
    out : Path
        Where a run directory would be.
    expected_ranks : int or None
        How many ranks the user asked for.
    margin_s : float
        How long before the scheduler's end a run stops.

    Returns
    -------
    Facts or None
        On rank 0; None on the others.

    Raises
    ------
    RunError
        If a rank does not answer its neighbour.
    """
    now = time.time()
    end = scheduler.job_end(os.environ, now)
    session.barrier()  # politely: of many ranks some come late
    hosts = session.comm.allgather(session.host)
    place, refusal, blind = _place(session, hosts, out)
    mine = RankFacts(
        host=session.host,
        ranks_on_node=session.ranks_on_node,
        threads=THREADS,
        cores=launcher.usable_cores(),
        node_cores=launcher.node_cores(),
        software=f"goco_mpi {__version__}, Python {platform.python_version()}, numpy {np.__version__}",
        mpi=_mpi(),
        tick_s=_tick(time.perf_counter),
        wall_offset_s=session.clock_offset(clock=time.time),
    )
    links = _links(session)
    session.barrier()
    ranks = session.comm.gather(mine)
    found = session.comm.gather(links)
    if ranks is None or found is None:
        return None
    return Facts(
        ranks=ranks,
        launcher=LAUNCH.launcher,
        launched=LAUNCH.n_ranks,
        expected=expected_ranks,
        outlives=_outlives(session),
        place=str(place),
        refusal=refusal,
        blind=blind,
        batch=any(name in os.environ for name in scheduler.JOBS),
        left_s=None if end is None else end - now,
        margin_s=margin_s,
        links=[link for several in found for link in several],
    )


def _mpi() -> str:
    """Return the MPI library, its standard, and what mpi4py was built for."""
    built = Path(MPI.__file__ or "").name.split(".")[1:-1]
    abi = built[0] if len(built) > 1 else "this library"
    standard = ".".join(map(str, MPI.Get_version()))
    return f"{library()}, MPI {standard}, mpi4py {mpi4py.__version__} for {abi}"


def _outlives(session: Session) -> bool | None:
    """Return whether the job outlives a dead rank; None where MPI could, and was not started for it."""
    vendor, version = MPI.get_vendor()
    return session.survives or (None if vendor == "Open MPI" and version >= (5, 0, 0) else False)


def _tick(clock: Callable[[], float]) -> float:
    """Return the smallest step of a clock that is seen, in seconds."""
    readings = np.array([clock() for _ in range(2000)])
    steps = np.diff(readings)
    return float(steps[steps > 0.0].min(initial=math.inf))


def _place(session: Session, hosts: list[str], out: Path) -> tuple[Path, str, list[str]]:
    """Return where a run directory would be, why rank 0 cannot write there, and who does not share it. Collective."""
    token = uuid.uuid4().hex

    def leave() -> tuple[Path, str, str]:
        """Write a file where the run directory would be, or as near as there is a directory."""
        place = out.absolute().parent
        try:
            place = next(parent for parent in out.absolute().parents if parent.exists())
            (place / f".goco-check-{token}").write_text(token)
        except OSError as error:
            return place, error.strerror or str(error), token
        return place, "", token

    place, refusal, token = session.share(leave)
    mark = place / f".goco-check-{token}"
    shares = True
    if not refusal and session.rank == hosts.index(session.host):  # one a node looks
        shares = _sees(mark, token) and os.access(place, os.W_OK)
    session.barrier()
    everybody = session.comm.allgather(shares)
    if session.rank == 0 and not refusal:
        mark.unlink(missing_ok=True)
    return place, refusal, [host for host, sees in zip(hosts, everybody, strict=True) if not sees]


def _sees(mark: Path, token: str) -> bool:
    """Wait for a file of another node, which caches of a file system may keep from this one for a while."""
    end = time.perf_counter() + SEEING_S
    while True:
        try:
            if mark.read_text() == token:
                return True
        except OSError:
            pass
        if time.perf_counter() >= end:
            return False
        time.sleep(0.05)


def _links(session: Session) -> list[Link]:
    """Measure between neighbours on the ring of ranks, in two or three turns of pairs. Collective."""
    size, found = session.size, []
    edges = [(first, (first + 1) % size) for first in range(size if size > 2 else size - 1)]
    for turn in range(3):
        session.barrier()
        for place, (first, second) in enumerate(edges):
            # Every other edge; the last of an odd ring meets both.
            own_turn = 2 if place == size - 1 and size % 2 else place % 2
            if own_turn == turn and session.rank in (first, second):
                partner = second if session.rank == first else first
                latency = _exchange(session, partner, session.rank == first, *LATENCY)
                seconds = _exchange(session, partner, session.rank == first, *BANDWIDTH)
                if session.rank == first:
                    found.append(Link((first, second), latency, 8 * BANDWIDTH[0] / seconds))
    return found


def _exchange(session: Session, partner: int, leads: bool, n_numbers: int, time_s: float, most: int) -> float:
    """Send a message to and fro until the leading rank says that it was the last; return the seconds of one way."""
    buffer = np.zeros(n_numbers)
    times: list[float] = []
    begin = time.perf_counter()
    going_on = True
    while going_on:
        start = time.perf_counter()
        if leads:
            going_on = len(times) < most and start - begin < time_s
            buffer[0] = going_on
            _finish(session, session.comm.Isend(buffer, partner, TAG), partner)
        _finish(session, session.comm.Irecv(buffer, partner, TAG), partner)
        if not leads:
            going_on = bool(buffer[0])
            _finish(session, session.comm.Isend(buffer, partner, TAG), partner)
        times.append(0.5 * (time.perf_counter() - start))
    return statistics.median(times[1:] or times)  # the first sets the connection up


def _finish(session: Session, request: MPI.Request, partner: int) -> None:
    if not waitsome_until([request], time.perf_counter() + PAIR_LIMIT_S, session.poll_s):
        raise RunError(f"rank {partner} did not answer within {PAIR_LIMIT_S:g} s. Is its node alive, and the network?")
