"""What a rank that is stopped for a while costs the others, and when they trust it again.

Members of `goco bench`, as in `goco_mpi.engine.benchmarks`.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core import topology
from goco_mpi.core.events import NONE, Events
from goco_mpi.core.pace.suspicion import TRUSTED_AFTER
from goco_mpi.engine.benchmarks import experiment
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.schema import replace

_OFFERED, _WAITED, _MIXED = range(3)  # columns of a timeline table, before those of the neighbours

Window = tuple[float, float]


def frozen(session: Session, rank: int, frozen_s: float, repeats: int) -> list[float]:
    """Return the seconds that the fast rank that loses most loses while another is frozen.

    One run a repeat, in which ``rank`` is stopped (SIGSTOP) for ``frozen_s``. A fast rank loses what
    is left of that time beside the rounds that it did meanwhile; see `seconds_lost`.
    """
    samples = []
    for _ in range(repeats):
        outcome, window = _run_with_a_freeze(session, rank, frozen_s, before_s=2.5, after_s=1.0)
        if outcome is not None:
            tables = zip(_tables(outcome.timeline), _events(session, outcome), strict=True)
            samples.append(max(seconds_lost(*table, window) for r, table in enumerate(tables) if r != rank))
    return samples


def seconds_lost(times: NDArray[np.float64], events: Events, window: Window) -> float:
    """Return how much of a window of time one rank lost.

    That is the window less the rounds that ended in it, each counted as this rank's median round before
    the window. Only rounds with a gradient count: a rank that does no work loses its time,
    though it may go through rounds.

    Parameters
    ----------
    times : ndarray of shape (n_steps, 3 + 2 degree)
        The rank's timeline.
    events : Events
        The rank's.
    window : (float, float)
        Its start and end, on the clock of ``times``.
    """
    start, end = window
    ends = times[:, _MIXED][events.points[: len(times)] != NONE]
    round_s = float(np.median(np.diff(ends[ends < start])))
    return end - start - round_s * int(np.count_nonzero((ends >= start) & (ends < end)))


def recovery(session: Session, rank: int, frozen_s: float, repeats: int) -> list[float]:
    """Return in how many rounds a recovered rank is waited for again, by the neighbour that takes most.

    One run a repeat, in which ``rank`` is stopped (SIGSTOP) for ``frozen_s``, which makes it a suspect of
    all its neighbours, and is as fast as the others for 3 s afterwards. A neighbour's rounds count from
    the one in which ``rank`` has caught up with it; see `rounds_to_trust`. Runs in which it catches up with
    nobody are done once more.
    """
    samples: list[float] = []
    for _ in range(3 * repeats):
        outcome, (_, thawed) = _run_with_a_freeze(session, rank, frozen_s, before_s=1.0, after_s=3.0)
        if outcome is not None:
            samples += _longest_recovery(session, outcome, rank, thawed)
        if session.comm.bcast(len(samples)) >= repeats:
            return samples
    text = f"The recovered rank caught up with its neighbours in fewer than {repeats} of {3 * repeats} runs."
    raise session.agreed(RunError(f"{text} Measure again on a machine that does nothing else."))


def _longest_recovery(session: Session, outcome: Outcome, rank: int, recovered_s: float) -> list[float]:
    """Return the largest `rounds_to_trust` of the neighbours since a rank's recovery; empty if there is none."""
    graph = _graph(session)
    events = _events(session, outcome)
    counts = []
    for neighbor in graph.neighbors(rank):
        times = _tables(outcome.timeline)[neighbor]
        place = graph.neighbors(neighbor).index(rank)
        used = events[neighbor].used[: len(times), place]
        in_time = (used != NONE) & (events[rank].rounds[used] >= events[neighbor].rounds[: len(times)])
        suspect = times[:, _MIXED + 1 + graph.degrees[neighbor] + place] > 0.0
        # Steps in the middle of a gradient wait for nobody and judge nobody.
        judged = (times[:, _MIXED] > recovered_s) & (times[:, _WAITED] > times[:, _OFFERED])
        counts.append(rounds_to_trust(in_time[judged].tolist(), suspect[judged].tolist()))
    return [float(max(count for count in counts if count is not None))] if any(counts) else []


def rounds_to_trust(in_time: Sequence[bool], suspect: Sequence[bool]) -> int | None:
    """Return after how many rounds from catching up a neighbour is waited for again.

    A suspect is *in time* in a round if its message of that round, or a newer one, is there when mixing,
    although nobody waits for it. It has *caught up* in the first of several such rounds in a row, the last of
    which makes it trusted, and those rounds are counted, the first and the last included:
    `goco_mpi.core.pace.suspicion` makes them three. A late round in between, and it has not caught up.

    What this leaves out is how long catching up takes. A rank that was held up stays out of step by less than a round,
    so its messages may be late for long although it is as fast as the others. It is then trusted
    for its pace, on trial; see ADR 2. If the wait brings it into step it was waited for before it was in time, and
    that counts for nothing here.

    Parameters
    ----------
    in_time : sequence of bool
        For each round of one rank: whether the neighbour's message was there.
    suspect : sequence of bool
        Whether the neighbour was a suspect at the end of that round; it is one at the start.

    Returns
    -------
    int or None
        Of the longest such row, or of one that is longer than it should be and ends without trust; None if
        the neighbour never caught up.

    Examples
    --------
    >>> rounds_to_trust([False, True, False, True, True, True], [True, True, True, True, True, False])
    3
    """
    longest, row, was_suspect = 0, 0, True
    for here, suspected in zip(in_time, suspect, strict=True):
        row = row + 1 if here and was_suspect else 0
        if not suspected or row > TRUSTED_AFTER:
            longest = max(longest, row)
        was_suspect = suspected
    return longest or None


def _run_with_a_freeze(
    session: Session, rank: int, frozen_s: float, before_s: float, after_s: float
) -> tuple[Outcome | None, Window]:
    """Train with one rank frozen in the middle; return the outcome and when that was, on rank 0's clock."""
    pids = session.comm.allgather(os.getpid())

    def check() -> None:
        if session.ranks_on_node < session.size:
            raise InputError("This member freezes a process of its own node: start all ranks on one node.")
        if not 0 < rank < session.size:
            raise InputError(f"Rank {rank} is to be frozen, by rank 0. There are {session.size} ranks; start more.")

    session.agree(check)
    config = experiment(10**6)
    config = replace(
        config,
        stop=replace(config.stop, time_limit_s=before_s + frozen_s + after_s),
        record=replace(config.record, timeline=True),
    )
    with Freeze(pids[rank], before_s, frozen_s) as freeze:
        outcome = train(config, session, freeze.start if session.rank == 0 else lambda round_: None)
    if session.rank == 0 and freeze.window is None:
        raise RunError("The run ended before the frozen rank was thawed.")
    return outcome, freeze.window or (math.nan, math.nan)


class Freeze:
    """Stops a process for a while, and lets it go on whatever happens here meanwhile.

    Attributes
    ----------
    window : (float, float) or None
        From when to when, by `time.perf_counter`; None before its end.
    """

    def __init__(self, pid: int, after_s: float, lasts_s: float) -> None:
        self._pid = pid
        self._lasts_s = lasts_s
        self._timer = threading.Timer(after_s, self._freeze)
        self._over = threading.Event()
        self._started = False
        self.window: Window | None = None

    def start(self, round_: int) -> None:
        """Set the timer, the first time that this is called."""
        if not self._started:
            self._started = True
            self._timer.start()

    def _freeze(self) -> None:
        try:
            os.kill(self._pid, signal.SIGSTOP)
            start = time.perf_counter()
            self._over.wait(self._lasts_s)
            self.window = start, time.perf_counter()
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the freeze, should it not be over."""
        self._over.set()
        if self._started:
            self._timer.cancel()
            self._timer.join()


def _tables(timeline: Sequence[NDArray[np.float64]] | None) -> Sequence[NDArray[np.float64]]:
    assert timeline is not None  # record.timeline is set
    return timeline


def _graph(session: Session) -> topology.Topology:
    """Return the graph of the runs that are disturbed."""
    return lay_out(experiment(1), session.size).topology


def _events(session: Session, outcome: Outcome) -> list[Events]:
    """Return every rank's events."""
    assert outcome.events is not None  # record.events is the default
    graph = _graph(session)
    return [Events(table, graph.degrees[rank]) for rank, table in enumerate(outcome.events)]
