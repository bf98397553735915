"""A run on emulated nodes that is disturbed while its rounds are under way, and what its ranks did meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from nodes import Nodes, NodesError
from rank import BEGUN

from goco_mpi.core.events import NONE
from goco_mpi.record import RunRecord, read_run, read_tables
from goco_mpi.reporting.timeline import MIXED

START_LIMIT_S = 120.0
END_LIMIT_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """A span of time on the clock of `time.perf_counter`, which all processes of a machine share."""

    begin_s: float
    end_s: float


def during(begin: Callable[[], None], lasts_s: float, end: Callable[[], None]) -> Window:
    """Begin something, end it after ``lasts_s``, and return when it held for sure."""
    begin()
    begun_s = time.perf_counter()
    time.sleep(lasts_s)
    window = Window(begun_s, time.perf_counter())
    end()
    return window


def run(
    nodes: Nodes,
    mpiexec: Sequence[str],
    experiment: Path,
    out: Path,
    overrides: Sequence[str],
    disturb: Callable[[], T],
) -> T:
    """Train with one rank on each node, and call ``disturb`` once all of them are in their rounds.

    Returns
    -------
    T
        What ``disturb`` returned.

    Raises
    ------
    NodesError
        If the rounds do not begin, or the run does not end well, with what it said.
    """
    output = out.with_suffix(".log")
    rank = [sys.executable, "-m", "mpi4py", str(Path(__file__).with_name("rank.py"))]
    job = nodes.start(mpiexec, [*rank, str(experiment), str(out), *overrides], output)
    limit = time.monotonic() + START_LIMIT_S
    while output.read_text().count(BEGUN) < nodes.n_nodes:
        if job.poll() is not None or time.monotonic() >= limit:
            raise NodesError(f"the rounds did not begin. {output.read_text()}")
        time.sleep(0.01)
    found = disturb()
    try:
        code = job.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        code = None
    if code != 0:
        raise NodesError(f"the run ended with {code}. {output.read_text()}")
    return found


@dataclass(frozen=True, eq=False)
class Watched:
    """What the ranks of a finished run did when.

    Attributes
    ----------
    record : RunRecord
    times_s : list of ndarray
        For each rank when its gradients' steps were done, each gradient counted once.
    steps : list of ndarray
        For each rank the steps of its neighbours that its own ones used, shape (n_steps, degree).
    mixed_s : list of ndarray
        When, shape (n_steps,).
    """

    record: RunRecord
    times_s: list[np.ndarray]
    steps: list[np.ndarray]
    mixed_s: list[np.ndarray]

    def gradients(self, rank: int, window: Window) -> int:
        """Return how many of its gradients a rank put to use within a window."""
        times_s = self.times_s[rank]
        return int(((times_s >= window.begin_s) & (times_s < window.end_s)).sum())

    def rate(self, rank: int, window: Window) -> float:
        """Return the same a second."""
        return self.gradients(rank, window) / (window.end_s - window.begin_s)

    def heard_of(self, rank: int, by: int, window: Window) -> int:
        """Return how many vectors of a rank another one came to know within a window; on a complete graph."""
        steps = self.steps[by][:, rank - (rank > by)]
        mixed_s = self.mixed_s[by]
        return len(np.unique(steps[(mixed_s >= window.begin_s) & (mixed_s < window.end_s)])) - 1

    def end_s(self, ranks: Iterable[int]) -> float:
        """Return when the first of these ranks did its last step."""
        return float(min(self.times_s[rank][-1] for rank in ranks))


def read(out: Path) -> Watched:
    """Read a run that was made with ``record.timeline``."""
    run = read_run(out)
    times_s, steps, mixed_s = [], [], []
    for events, timeline in zip(read_tables(out, "events"), read_tables(out, "timeline"), strict=True):
        events = events[: len(timeline)]  # the last is the goodbye
        points, first = np.unique(events[:, 1], return_index=True)
        times_s.append(timeline[np.sort(first[points != NONE]), MIXED])
        steps.append(events[:, 2:])
        mixed_s.append(timeline[:, MIXED])
    return Watched(run, times_s, steps, mixed_s)
