"""What happens next, in simulated seconds."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from enum import IntEnum


class Kind(IntEnum):
    """What comes first of events at one time.

    What has arrived by a deadline has arrived in time, and work that is done only at its deadline
    is late, as for a rank that looks at the clock.
    """

    ARRIVAL = 0
    DEADLINE = 1
    FINISH = 2


class Queue:
    """Events in the order of their times; of equal ones by kind, then as they were added.

    Attributes
    ----------
    now : float
        Time of the newest event handed out; never goes back.
    n_done : int
        Events handed out.

    Examples
    --------
    >>> queue, seen = Queue(), []
    >>> queue.add(2.0, Kind.FINISH, lambda: seen.append("finish"))
    >>> queue.add(2.0, Kind.ARRIVAL, lambda: seen.append("arrival"))
    >>> while (happens := queue.next()): happens()
    >>> seen, queue.now
    (['arrival', 'finish'], 2.0)
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Callable[[], None]]] = []
        self._n_added = 0
        self.now = 0.0
        self.n_done = 0

    def add(self, time_s: float, kind: Kind, happens: Callable[[], None]) -> None:
        """Let something happen; never, where the time is infinite."""
        assert time_s >= self.now, "an event in the past"
        if time_s < math.inf:
            self._n_added += 1
            heapq.heappush(self._heap, (time_s, kind, self._n_added, happens))

    @property
    def next_s(self) -> float:
        """Time of the next event, infinite where there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def next(self) -> Callable[[], None] | None:
        """Go on to the next event and return what happens, None where nothing does any more."""
        if not self._heap:
            return None
        self.now, _, _, happens = heapq.heappop(self._heap)
        self.n_done += 1
        return happens
