"""The progress of a run on rank 0: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

LOG_EVERY_S = 10.0
BAR_EVERY_S = 0.1


class Progress:
    """Shows how many rounds are done, on standard error.

    Parameters
    ----------
    n_rounds : int
    quiet : bool
        Show nothing.

    Notes
    -----
    Under mpiexec standard error is a pipe even on a terminal; a plain line it is, then.
    """

    def __init__(self, n_rounds: int, quiet: bool) -> None:
        self._n_rounds = n_rounds
        self._round = 0
        self._bar: Any = None
        self._task: Any = None
        self._every_s = float("inf") if quiet else LOG_EVERY_S
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("rounds"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                auto_refresh=False,  # no thread beside the round loop
            )
            self._task = self._bar.add_task("rounds", total=n_rounds)
            self._bar.start()
            self._every_s = BAR_EVERY_S
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, round_: int) -> None:
        """Take note that ``round_`` rounds are done."""
        self._round = round_
        now = time.monotonic()
        if self._first is None:  # data are read before it, and a run that was resumed does not begin at 0
            self._first = round_, now
        if now - self._last < self._every_s:
            return
        self._last = now
        if self._bar is not None:
            self._bar.update(self._task, completed=round_, refresh=True)
        else:
            first, start = self._first
            rate = f", {(round_ - first) / (now - start):.3g} rounds/s" if now > start else ""
            print(f"round {round_} of {self._n_rounds}{rate}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._round, refresh=True)
            self._bar.stop()
