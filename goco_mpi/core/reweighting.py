"""Slow workers left out: who is slow, whose shards others can take over, and everyone's weights then.

Sets of workers are whole numbers, bit i for worker i. A worker that is *left out* has no weight, and its part of
each shard goes to the other holders in proportion to theirs:

    a_ik(out) = a_ik / sum_{j not in out} a_jk        so that sum_i a_ik(out) = 1 for every shard k

Whoever is slow and holds a shard that nobody else can take stays in, and keeps its weights: its last gradient goes on
counting then, where under new weights everyone would have to wait for its next.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_WORKERS = 52
"""Workers whose set is a whole number that a float64 holds."""
SLOW = 5.0
"""Mean interval between a worker's gradients, in medians of all workers', beyond which it is slow."""
CLEARED = 3.0
"""The same below which it no longer is."""
SILENT = 10.0
"""Time since its last gradient, likewise, beyond which it is slow whatever it was before."""
SPAN = 5
"""Gradients whose intervals are looked at."""
PATIENCE, MOST_PATIENCE = 4, 64
"""Rounds between the first declaration and the second, doubled for each further one; the most."""


def members(workers: int, n_workers: int) -> NDArray[np.bool_]:
    """Return a set as a mask, shape (n_workers,).

    Examples
    --------
    >>> members(0b101, 4).tolist()
    [True, False, True, False]
    """
    return np.array([bool(workers >> i & 1) for i in range(n_workers)], dtype=bool)


def patience(number: int) -> int:
    """Return the rounds that pass from declaration ``number`` to the next: few at first, so that nothing flaps.

    Examples
    --------
    >>> [patience(number) for number in (0, 1, 2, 5, 99)]
    [0, 4, 8, 64, 64]
    """
    return 0 if number == 0 else min(PATIENCE << min(number - 1, 8), MOST_PATIENCE)


class Pace:
    """How often each worker has a new gradient, from the stamps (gradients so far) and rounds in its messages.

    Rounds are those of the worker that had the gradient, so that all who heard of the same ones see the same
    pace, whatever was lost on the way and whatever their own.

    Parameters
    ----------
    n_workers : int

    Examples
    --------
    >>> pace = Pace(4)
    >>> for round_ in range(20):
    ...     for worker in range(4):
    ...         if worker < 3 or round_ % 10 == 9:
    ...             pace.note(worker, (round_ + 1) // (10 if worker == 3 else 1), round_)
    >>> pace.intervals(19).tolist(), pace.slow(19, before=0)
    ([1.0, 1.0, 1.0, 10.0], 8)
    """

    def __init__(self, n_workers: int) -> None:
        # (stamp, round); the run begins after round -1.
        self._heard = [deque([(0, -1)]) for _ in range(n_workers)]

    def note(self, worker: int, stamp: int, round_: int) -> None:
        """Take note of a worker's newest gradient; an older one is no news."""
        heard = self._heard[worker]
        if stamp > heard[-1][0]:
            heard.append((stamp, round_))
            while heard[1][0] <= stamp - SPAN:
                heard.popleft()

    def intervals(self, now: int) -> Array:
        """Return the mean of each worker's last intervals in rounds, the one that has not ended if that is longer."""
        found = []
        for heard in self._heard:
            (first, begin), (last, end) = heard[0], heard[-1]
            ended = (end - begin) / (last - first) if last > first else 0.0
            found.append(max(ended, (now - begin) / (last - first + 1)))
        return np.array(found)

    def slow(self, now: int, before: int) -> int:
        """Return the set of those that are slow in round ``now``, given who was until then.

        The median is the lower one, so that of two workers one can be slow.
        """
        intervals = self.intervals(now)
        median = float(np.sort(intervals)[(len(intervals) - 1) // 2])
        silent = np.array([now - heard[-1][1] for heard in self._heard])
        slow = (intervals > SLOW * median) | (silent > SILENT * median)
        slow |= members(before, len(intervals)) & (intervals >= CLEARED * median)
        unheard = np.array([heard[-1][0] == 0 for heard in self._heard])
        if 4 * np.count_nonzero(unheard) <= len(unheard):
            slow |= unheard
        return sum(1 << int(i) for i in np.flatnonzero(slow))


class Reweighting:
    """Everyone's weights without those left out, and who can be.

    Parameters
    ----------
    weights : ndarray of shape (n_workers, n_shards)
        (N/M) a_ik with nobody left out, 0 where worker i does not hold shard k.

    Examples
    --------
    >>> ring = Reweighting(np.array([[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]))
    >>> ring.row(0, 0b010).tolist(), ring.row(1, 0b010).tolist()
    ([1.0, 0.0, 0.5], [0.0, 0.0, 0.0])
    >>> ring.choose(0, slow=0b010), ring.choose(0, slow=0b011)  # 0 and 1 are all that hold shard 0
    (2, 0)
    """

    def __init__(self, weights: Array) -> None:
        self._weights = weights
        self._shards = weights.sum(axis=0)
        self._holds = weights > 0.0
        self.n_workers = len(weights)

    def row(self, worker: int, out: int) -> Array:
        """Return a worker's weights of all shards, shape (n_shards,)."""
        left_out = members(out, self.n_workers)
        if left_out[worker]:
            return np.zeros(self._weights.shape[1])
        return np.asarray(self._weights[worker] * self._shards / self._weights[~left_out].sum(axis=0))

    def own_row(self, worker: int, out: int) -> Array:
        """Return a worker's weights of the shards that it has weight in, in their order."""
        return np.asarray(self.row(worker, out)[self._holds[worker]])

    def unchanged(self, worker: int, out: int, other: int) -> bool:
        """Tell whether a worker's weights are the same without the one set and without the other."""
        return out == other or not (self._holds[members(out ^ other, self.n_workers)] & self._holds[worker]).any()

    def needed(self, out: int) -> NDArray[np.bool_]:
        """Return who has any weight, shape (n_workers,)."""
        return self._holds.any(axis=1) & ~members(out, self.n_workers)

    def choose(self, out: int, slow: int) -> int:
        """Return who should be left out, given who is now, and who is slow.

        Who is slow goes and who no longer is comes back, but for those who share a shard with a slow worker that
        stays: its weights would have to change, and everyone to wait for its next gradient. Nor can one go whose
        shards have no holder then.
        """
        left_out, lazy = members(out, self.n_workers), members(slow, self.n_workers)
        moves = (left_out != lazy) & self._holds.any(axis=1)
        while True:
            after = left_out ^ moves
            orphans = ~self._holds[~after].any(axis=0) & self._holds.any(axis=0)
            fixed = self._holds[lazy & ~after].any(axis=0)
            # A slow worker is not fixed by itself: where it is to stay it does not move.
            vetoed = moves & (self._holds & (orphans | fixed)).any(axis=1)
            if not vetoed.any():
                return sum(1 << int(i) for i in np.flatnonzero(after))
            moves &= ~vetoed
