"""How far a gradient has come in simulated seconds."""

from __future__ import annotations


class Task:
    """Work that stops while its worker waits or is busy with messages, and injected work that does not.

    Parameters
    ----------
    began_s : float
        Time.
    needs_s : float
        Seconds of the worker's own computing.
    lasts_s : float
        Seconds that it lasts at least, whatever the worker does meanwhile.

    Examples
    --------
    >>> task = Task(10.0, needs_s=4.0, lasts_s=5.0)
    >>> task.resume(10.0)
    15.0
    >>> task.pause(11.0); task.resume(14.0), task.part(15.0)
    (17.0, 0.5)
    """

    def __init__(self, began_s: float, needs_s: float, lasts_s: float) -> None:
        self.began_s = began_s
        self._needs_s = needs_s
        self._worked_s = 0.0
        self._lasts_s = lasts_s
        self._resumed_s = began_s

    def resume(self, now: float) -> float:
        """Go on; return the time at which it ends if it is not paused again."""
        self._resumed_s = now
        return self.ends_s(now)

    def ends_s(self, now: float) -> float:
        """Return the time at which it ends if it is gone on with now."""
        # In this order: rounding must not put it before now.
        return max(now + (self._needs_s - self._worked_s), self.began_s + self._lasts_s)

    def pause(self, now: float) -> None:
        """Stop computing."""
        self._worked_s = min(self._worked_s + now - self._resumed_s, self._needs_s)
        self._resumed_s = now

    def part(self, now: float) -> float:
        """Return the part that is done by now, of a task that is gone on with, or was paused just now."""
        parts = [1.0]
        if self._needs_s > 0.0:
            parts.append((self._worked_s + now - self._resumed_s) / self._needs_s)
        if self._lasts_s > 0.0:
            parts.append((now - self.began_s) / self._lasts_s)
        return min(parts)
