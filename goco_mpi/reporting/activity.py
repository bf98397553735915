"""Who was slow, skipped or suspected, and when: ranks by time, or by rounds where no times were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.events import NONE, Events
from goco_mpi.reporting.timeline import MIXED, OFFERED, WAITED

Array = NDArray[np.float64]

SLOW = 2.0
"""A gradient that takes so many times as long as the usual one is a slow one."""
MOST = 0.5
"""Part of the neighbours, or of a time, that counts as most of it."""


class State(IntEnum):
    """What a rank mostly did in a piece of time; of several the last of these counts."""

    GONE = 0
    WORKING = 1
    WAITING = 2
    SKIPPED = 3
    SLOW = 4


@dataclass(frozen=True, eq=False)
class Activity:
    """What all ranks did.

    Attributes
    ----------
    edges : ndarray of shape (n_pieces + 1,)
        Seconds from the start of the run, or rounds.
    states : ndarray of int8, shape (n_ranks, n_pieces)
        Values of `State`.
    suspected : ndarray of bool, shape (n_ranks, n_pieces)
        Whether most neighbours did not wait for it.
    timed : bool
        Whether the edges are seconds. By rounds nothing is known of waiting and suspicion.
    """

    edges: Array
    states: NDArray[np.int8]
    suspected: NDArray[np.bool_]
    timed: bool

    def share(self, rank: int, state: State) -> float:
        """Return the part of a rank's time that it spent in a state."""
        there = self.states[rank] != State.GONE
        return float((self.states[rank][there] == state).mean()) if there.any() else 0.0

    def share_suspected(self, rank: int) -> float:
        """Return the part of a rank's time in which it was suspected."""
        there = self.states[rank] != State.GONE
        return float(self.suspected[rank][there].mean()) if there.any() else 0.0


def by_time(
    times: Sequence[Array],
    events: Sequence[Events],
    neighbors: Sequence[Sequence[int]],
    found_ages: Sequence[NDArray[np.int32]],
    n_pieces: int,
) -> Activity:
    """Return what each rank did when, from the times of its steps.

    Parameters
    ----------
    times : sequence of ndarray of shape (n_steps, 3 + 2 degree)
        Each rank's timeline (`goco_mpi.reporting.timeline`).
    events : sequence of Events
    neighbors : sequence of sequence of int
    found_ages : sequence of ndarray
        From `goco_mpi.reporting.ages.ages`.
    n_pieces : int

    Notes
    -----
    *Slow*: busy with a gradient for more than `SLOW` times the median over all ranks' gradients. *Suspected*: most
    neighbours do not wait for it. *Skipped*: most neighbours mixed last without its vector of that round.
    """
    start = min((float(table[0, OFFERED]) for table in times if len(table)), default=0.0)
    end = max((float(table[-1, MIXED]) for table in times if len(table)), default=start)
    work = [_work(table, found, start) for table, found in zip(times, events, strict=True)]
    gradients = np.concatenate([seconds for seconds, _, _ in work])
    usual = float(np.median(gradients)) if gradients.size else 0.0
    edges = np.linspace(start - usual, end, n_pieces + 1)
    middles = (edges[1:] + edges[:-1]) / 2.0
    n_ranks = len(times)
    states = np.full((n_ranks, n_pieces), State.WORKING, dtype=np.int8)
    for rank, table in enumerate(times):
        waited = _between(edges, table[:, OFFERED], table[:, WAITED])
        states[rank, waited > MOST * np.diff(edges)] = State.WAITING
    skipped, suspected = np.zeros((2, n_ranks, n_pieces))
    for rank, (table, sources) in enumerate(zip(times, neighbors, strict=True)):
        last = np.searchsorted(table[:, MIXED], middles, side="right") - 1
        seen = last >= 0
        for place, source in enumerate(sources):
            skipped[source, seen] += found_ages[rank][last[seen], place] > 0
            suspected[source, seen] += table[last[seen], 3 + len(sources) + place]
    degrees = np.array([max(len(sources), 1) for sources in neighbors])[:, None]
    states[skipped / degrees >= MOST] = State.SKIPPED
    for rank, (seconds, begins, finishes) in enumerate(work):
        slow = seconds > SLOW * usual
        firsts = np.searchsorted(middles, begins[slow], side="left")
        ends = np.searchsorted(middles, finishes[slow], side="right")
        for first, past in zip(firsts, ends, strict=True):
            states[rank, first:past] = State.SLOW
    for rank, table in enumerate(times):
        states[rank, middles > (table[-1, MIXED] if len(table) else -np.inf)] = State.GONE
    there = states != State.GONE
    return Activity(edges - edges[0], states, (suspected / degrees >= MOST) & there, timed=True)


def by_round(
    events: Sequence[Events],
    neighbors: Sequence[Sequence[int]],
    found_ages: Sequence[NDArray[np.int32]],
    n_pieces: int,
) -> Activity:
    """Return what each rank did in which rounds, from its events alone; parameters as of `by_time`.

    Notes
    -----
    *Slow*: finished less than half as many gradients as the median rank. *Skipped*: as with times.
    """
    n_rounds = max((int(found.rounds[-1]) for found in events), default=0)
    first = min((int(found.rounds[0]) for found in events), default=0)
    n_pieces = max(min(n_pieces, n_rounds - first), 1)
    edges = np.linspace(first, max(n_rounds, first + 1), n_pieces + 1)
    n_ranks = len(events)
    states = np.full((n_ranks, n_pieces), State.WORKING, dtype=np.int8)
    pieces = [np.clip(np.searchsorted(edges, found.rounds[:-1], side="right") - 1, 0, n_pieces - 1) for found in events]
    mixed, skipped = np.zeros((2, n_ranks, n_pieces))
    for rank, sources in enumerate(neighbors):
        for place, source in enumerate(sources):
            np.add.at(mixed[source], pieces[rank], 1.0)
            np.add.at(skipped[source], pieces[rank], found_ages[rank][:, place] > 0)
    states[skipped > MOST * np.maximum(mixed, 1.0)] = State.SKIPPED
    gradients = np.array(
        [
            np.bincount(own[_ends(found, len(own))], minlength=n_pieces)
            for found, own in zip(events, pieces, strict=True)
        ]
    )
    states[gradients < MOST * np.median(gradients, axis=0)] = State.SLOW
    for rank, found in enumerate(events):
        states[rank, edges[:-1] >= max(int(found.rounds[-1]), first + 1)] = State.GONE
    return Activity(edges, states, np.zeros(states.shape, dtype=bool), timed=False)


def _ends(events: Events, n_steps: int) -> NDArray[np.intp]:
    """Return the steps that are the first of their gradient: it was ready then."""
    points, firsts = np.unique(events.points[:n_steps], return_index=True)
    return np.sort(firsts[points != NONE])


def _work(times: Array, events: Events, start: float) -> tuple[Array, Array, Array]:
    """Return each gradient's seconds of work, and when it was begun and finished; what was dropped is in the next.

    Of waiting in its middle nothing counts as work.
    """
    ends = _ends(events, len(times))
    if not ends.size:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    before = np.concatenate([[start], times[:-1, MIXED]])
    done = np.cumsum(times[:, OFFERED] - before)
    seconds = np.diff(done[ends], prepend=0.0)
    finishes = times[ends, OFFERED]
    begins = np.concatenate([[start], finishes[:-1]])
    # Of the first nobody knows when it was begun.
    return seconds[1:], begins[1:], finishes[1:]


def _between(edges: Array, begins: Array, ends: Array) -> Array:
    """Return how much of each piece between ``edges`` lies in any of some times that do not overlap.

    Examples
    --------
    >>> _between(np.array([0.0, 1.0, 2.0]), np.array([0.5]), np.array([1.75])).tolist()
    [0.5, 0.75]
    """
    if not begins.size:
        return np.zeros(len(edges) - 1)
    knots = np.ravel(np.column_stack([begins, ends]))
    passed = np.ravel(np.column_stack([np.zeros(len(begins)), ends - begins])).cumsum()
    return np.diff(np.interp(edges, knots, passed, left=0.0))
