"""How long to wait: a number of seconds, or learned from how long is usual."""

from __future__ import annotations

import math
import statistics
from collections import deque

FIRST_GOSSIP_S = 0.05
"""Automatic gossip deadline of the first round, when nothing has been measured yet."""
WINDOW = 31
"""Durations that the running median is over."""


class Deadline:
    """A deadline of a fixed number of seconds, or a multiple of the running median of what was seen.

    Parameters
    ----------
    setting : float or 'auto'
        Seconds (``inf``: no deadline), or learn it.
    factor : float
        auto: multiple of the median.
    first_s : float
        auto: the deadline before anything was seen.

    Attributes
    ----------
    seconds : float
    learns : bool
        Whether it is a learned one.

    Examples
    --------
    >>> deadline = Deadline("auto", factor=2.0, first_s=1.0)
    >>> deadline.seconds
    1.0
    >>> deadline.observe(0.1); deadline.seconds
    0.2
    """

    def __init__(self, setting: float | str, factor: float, first_s: float = math.inf) -> None:
        self.learns = setting == "auto"
        self._factor = factor
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self.seconds = first_s if self.learns else float(setting)

    @property
    def guesses(self) -> bool:
        """Whether it is to be learned, and nothing has been seen yet."""
        return self.learns and not self._seen

    def after(self, seconds: float) -> float:
        """Return what a learned deadline is where a duration of ``seconds`` is usual."""
        return self._factor * seconds

    def observe(self, seconds: float) -> None:
        """Take in one duration.

        One that was cut short counts as what it lasted until then: as the deadline exceeds the
        median, a lasting slow-down then moves the median up.
        """
        if self.learns:
            self._seen.append(seconds)
            self.seconds = self.after(statistics.median(self._seen))
