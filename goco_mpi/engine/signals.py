"""Signals that ask a run to end: taken note of, and looked at between two blocks of work."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1)
"""What batch schedulers send some time before a job's end, and what a user may send to any one rank."""
AGAIN_S = 2.0
"""A SIGTERM that comes this soon after the first is the same: launcher and scheduler may both pass it on."""


class StopSignals:
    """Notes SIGTERM and SIGUSR1 for the run to end in good order. Use as a context manager.

    Off the main thread, where Python lets nobody handle signals, it hears nothing. A SIGTERM that comes
    `AGAIN_S` or more after the first is for those who do not want to wait: it does what it would have done
    without this. A handler that is not Python's is left alone, since it could not be put back.

    Parameters
    ----------
    deaf_after : bool
        Ignore these signals afterwards rather than put back what was there: for a process that then ends.
        One that died in the shutdown of its interpreter made a good run fail.

    Attributes
    ----------
    received : bool
        Whether one has come.
    """

    def __init__(self, deaf_after: bool = False) -> None:
        self._deaf_after = deaf_after
        self._previous: dict[signal.Signals, signal._HANDLER] = {}
        self._first_term_s: float | None = None
        self.received = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                previous = signal.getsignal(number)
                if previous is not None:
                    self._previous[number] = previous
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._deaf_after else previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if number != signal.SIGTERM:
            return
        now = time.monotonic()
        if self._first_term_s is None:
            self._first_term_s = now
        elif now - self._first_term_s >= AGAIN_S:
            signal.signal(signal.SIGTERM, self._previous[signal.SIGTERM])
            signal.raise_signal(signal.SIGTERM)
