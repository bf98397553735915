"""How old the neighbours' vectors were that a run mixed, from its events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.events import NONE, Events

Array = NDArray[np.float64]

UNKNOWN = np.iinfo(np.int32).max
"""Age of a vector of which nothing is known, or that never came."""


def ages(
    events: Sequence[Events], neighbors: Sequence[Sequence[int]], n_steps: Sequence[int]
) -> list[NDArray[np.int32]]:
    """Return for each rank the age in rounds of what it had of each neighbour in every step.

    Parameters
    ----------
    events : sequence of Events, length n_ranks
        The last row of each is its goodbye.
    neighbors : sequence of sequence of int, length n_ranks
    n_steps : sequence of int, length n_ranks
        Steps that each rank took in all. Where a run went on from a checkpoint its events begin later.

    Returns
    -------
    list of ndarray of shape (n_steps, degree)
        0 for a vector of the same round or a newer one; `UNKNOWN` where nothing had come, or nothing is known.

    Examples
    --------
    Rank 1 uses in its round 2 what rank 0 sent in round 0.

    >>> first = Events(np.array([[0, 0, NONE], [2, 1, 1], [3, NONE, NONE]], dtype=np.int32), 1)
    >>> second = Events(np.array([[0, 0, NONE], [2, 1, 0], [3, NONE, NONE]], dtype=np.int32), 1)
    >>> [found.ravel().tolist() for found in ages([first, second], [[1], [0]], [2, 2])]
    [[2147483647, 0], [2147483647, 2]]
    """
    # Of a goodbye too: what was sent with it may be mixed.
    first = [steps + 1 - len(table.rounds) for steps, table in zip(n_steps, events, strict=True)]
    found = []
    for table, sources in zip(events, neighbors, strict=True):
        rounds = table.rounds[:-1]
        own = np.full((len(rounds), len(sources)), UNKNOWN, dtype=np.int32)
        for place, source in enumerate(sources):
            step = table.used[:-1, place] - first[source]
            known = (table.used[:-1, place] != NONE) & (step >= 0) & (step < len(events[source].rounds))
            own[known, place] = np.maximum(rounds[known] - events[source].rounds[step[known]], 0)
        found.append(own)
    return found


def shares(found: Sequence[NDArray[np.int32]], limit: int) -> tuple[Array, float]:
    """Return which part of all vectors had which age, and which part was older than ``limit`` or not there.

    Parameters
    ----------
    found : sequence of ndarray
        From `ages`.
    limit : int
        Largest age that is mixed (`goco_mpi.core.gossip.age_limit`).

    Returns
    -------
    (ndarray of shape (limit + 1,), float)
        Together 1; all zero where nobody has neighbours.

    Examples
    --------
    >>> of_age, too_old = shares([np.array([[0, 0], [0, 3]], dtype=np.int32)], limit=1)
    >>> of_age.tolist(), too_old
    ([0.75, 0.0], 0.25)
    """
    values = np.concatenate([one.ravel() for one in found]) if found else np.zeros(0, np.int32)
    counts = np.bincount(np.minimum(values, limit + 1), minlength=limit + 2).astype(np.float64)
    counts /= max(len(values), 1)
    return counts[:-1], float(counts[-1])
