"""What asks a run to end from outside: a signal, a file, the scheduler's clock."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

from goco_mpi.engine import scheduler
from goco_mpi.engine.signals import StopSignals

LOOK_EVERY_S = 1.0
"""Seconds between two looks of the job at its stop file."""
WATCHERS = 10
"""Ranks that look, in turn. All of a thousand would be a load on the file system; one might be frozen."""


class Requests:
    """What one rank knows of requests to end; any rank's knowing is enough, as the word spreads.

    Parameters
    ----------
    rank, size : int
        This rank and how many there are: some of them look at the file.
    signals : StopSignals, optional
    stop_file : Path, optional
        A file that asks the run to end when it appears.
    margin_s : float, optional
        How long before the end that the scheduler tells. Without one its end is of no matter.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        signals: StopSignals | None = None,
        stop_file: Path | None = None,
        margin_s: float | None = None,
    ) -> None:
        self._signals = signals or StopSignals()
        self._stop_file = stop_file
        self._next_look_s = math.inf
        now = time.perf_counter()
        if stop_file is not None:
            stride = -(-size // WATCHERS)  # evenly spread, as neighbours in rank share nodes
            self._period_s = LOOK_EVERY_S * -(-size // stride)
            if rank % stride == 0:
                self._next_look_s = now + LOOK_EVERY_S * (rank // stride)
        self._end_s = math.inf
        wall = time.time()
        end = scheduler.job_end(os.environ, wall)
        if margin_s is not None and end is not None:
            # From here on the clock that nobody sets.
            self._end_s = now + scheduler.stop_time(end, margin_s, wall) - wall

    def heard(self, now: float) -> str | None:
        """Return what asks the run to end: ``signal``, ``stop_file``, ``scheduler`` or nothing.

        Parameters
        ----------
        now : float
            Time of `time.perf_counter`.
        """
        if self._signals.received:
            return "signal"
        if now >= self._end_s:
            return "scheduler"
        if now >= self._next_look_s:
            self._next_look_s = now + self._period_s
            assert self._stop_file is not None  # no look is due otherwise
            with contextlib.suppress(OSError):  # a file system in trouble ends no run
                if self._stop_file.exists():
                    return "stop_file"
        return None
