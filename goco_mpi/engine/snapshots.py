"""What a rank keeps in memory of its rounds, to be looked at together after the last: parameters, costs, times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.pace.counts import Spent

Array = NDArray[np.float64]

SNAPSHOT_BYTES = 64 << 20
"""Memory for snapshots; with more of them, every other one is dropped."""


@dataclass
class Snapshots:
    """Copies of the parameters every so many rounds, evaluated after the loop, and what they took."""

    every: int
    rounds: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    params: list[Array] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)

    def take(self, round_: int, time_s: float, params: Array, spent: Callable[[], Spent]) -> None:
        """Keep a copy if this is the first time at or past the next multiple of ``every``."""
        due = round_ - round_ % self.every
        if self.rounds and self.rounds[-1] >= due:
            return
        if len(self.params) >= max(16, SNAPSHOT_BYTES // params.nbytes):
            self.thin(2 * self.every)
        # Where a run went on from a checkpoint, its first round is whatever it is.
        self._append(due if self.rounds else round_, time_s, params, spent())

    def finish(self, round_: int, time_s: float, params: Array, spent: Spent) -> None:
        """Keep the final parameters as those of the last round, in place of what was kept of it or of later ones."""
        while self.rounds and self.rounds[-1] >= round_:
            for kept in (self.rounds, self.times_s, self.params, self.spent):
                kept.pop()
        self._append(round_, time_s, params, spent)

    def thin(self, every: int) -> None:
        """Keep only multiples of ``every``, a multiple of the present interval, the first and the last."""
        self.every = every
        keep = [i for i, r in enumerate(self.rounds) if r % every == 0 or i in (0, len(self.rounds) - 1)]
        self.rounds = [self.rounds[i] for i in keep]
        self.times_s = [self.times_s[i] for i in keep]
        self.params = [self.params[i] for i in keep]
        self.spent = [self.spent[i] for i in keep]

    def _append(self, round_: int, time_s: float, params: Array, spent: Spent) -> None:
        self.rounds.append(round_)
        self.times_s.append(time_s)
        self.params.append(params.copy())
        self.spent.append(spent)


class Timeline:
    """When things happened on this rank, one row a step.

    A row is: own vector offered, waiting over, mixed; then for each neighbour when its newest
    vector arrived (NaN before the first), then for each whether it was a suspect. Times are
    those of `time.perf_counter`.
    """

    def __init__(self) -> None:
        self._rows: list[list[float]] = []

    def append(self, offered: float, waited: float, mixed: float, arrivals: tuple[list[float], list[bool]]) -> None:
        """Take down one step."""
        self._rows.append([offered, waited, mixed, *arrivals[0], *arrivals[1]])

    def table(self, degree: int, clock_offset_s: float) -> Array:
        """Return all rows on rank 0's clock, shape (n_steps, 3 + 2 degree)."""
        table = np.array(self._rows, dtype=np.float64).reshape(-1, 3 + 2 * degree)
        table[:, : 3 + degree] -= clock_offset_s
        return table
