"""A real run once more, from its events: the proof that it did what the mathematics says.

Written from the equations, not from the engine: there are no messages and no clock here, only
who used what.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.events import NONE, EventLog, Events
from goco_mpi.core.shares import Share
from goco_mpi.core.topology import Topology
from goco_mpi.errors import RunError

Array = NDArray[np.float64]


def replay_gossip(
    shares: Sequence[Share],
    topology: Topology,
    weights: Sequence[Array],
    step_size: Callable[[int], float],
    age_limit: int,
    events: Sequence[Events],
    start: Array,
) -> Array:
    """Return all workers' final parameters of a gossip run.

    In step s worker i takes a gradient g at the parameters it had before its step p, and

        v_i(s) = x_i(s) - eta g         (v_i(s) = x_i(s) without a gradient)
        x_i(s + 1) = v_i(s) + sum_j w_ij (v_j(s_j) - v_i(s))    over the vectors used

    Steps are gone through in an order in which every vector exists before it is used, the
    earliest round first, so that few vectors are kept.

    Parameters
    ----------
    shares : sequence of Share, length n_workers
    topology : Topology
    weights : sequence of ndarray of shape (degree,)
        Each worker's mixing weights of its neighbours.
    step_size : callable round -> float
    age_limit : int
        Largest age in rounds at which a vector may have been mixed.
    events : sequence of Events, length n_workers
    start : ndarray of shape (n_params,)
        Everybody's first parameters.

    Returns
    -------
    ndarray of shape (n_workers, n_params)

    Raises
    ------
    RunError
        If the events contradict themselves or the rules.
    """
    for rank, found in enumerate(events):
        _check_form(rank, found)
    workers = [_Worker(i, share, topology.neighbors(i), weights[i], events[i], start) for i, share in enumerate(shares)]
    for worker in workers:
        worker.check(workers, age_limit)
    # How often each vector will still be used; it is forgotten after that.
    uses = Counter(
        (j, int(step))
        for worker in workers
        for j, column in worker.used_by_neighbor()
        for step in column
        if step != NONE
    )
    vectors: dict[tuple[int, int], Array] = {}
    waiting: defaultdict[tuple[int, int], list[_Worker]] = defaultdict(list)
    ready = [(worker.round, worker.index) for worker in workers]
    heapq.heapify(ready)

    def publish(worker: _Worker, vector: Array) -> None:
        key = (worker.index, worker.step)
        if uses[key]:
            vectors[key] = vector
        for other in waiting.pop(key, []):
            heapq.heappush(ready, (other.round, other.index))

    while ready:
        worker = workers[heapq.heappop(ready)[1]]
        if worker.vector is None:
            worker.vector = worker.local_step(step_size)
            publish(worker, worker.vector)
        if worker.done:
            continue
        needed = worker.inputs()
        missing = next((key for key in needed if key not in vectors), None)
        if missing is not None:
            waiting[missing].append(worker)
            continue
        worker.mix([vectors[key] for key in needed])
        for key in needed:
            uses[key] -= 1
            if not uses[key]:
                del vectors[key]
        heapq.heappush(ready, (worker.round, worker.index))
    for worker in workers:
        if not worker.done:
            raise RunError(
                f"The events contradict themselves: step {worker.step} of rank {worker.index} uses a vector that only "
                "comes of it."
            )
    return np.stack([worker.params for worker in workers])


def replay_allreduce(
    shares: Sequence[Share], step_size: Callable[[int], float], events: Sequence[Events], start: Array
) -> Array:
    """Return all workers' final parameters of a synchronous run; see `replay_gossip`.

    x <- x - eta mean_i g_i
    """
    x = start.copy()
    first = events[0].table
    for rank, found in enumerate(events):
        _check_form(rank, found)
        if found.table.shape != first.shape or (found.table != first).any():
            raise RunError(f"The events contradict themselves: rank {rank} went through other rounds than rank 0.")
    for round_, point in zip(events[0].rounds[:-1], events[0].points[:-1], strict=True):
        if point != round_:
            raise RunError(f"The events contradict the rules: round {round_} of an allreduce without its gradient.")
        x -= step_size(int(round_)) * np.mean([share.gradient(x) for share in shares], axis=0)
    return np.tile(x, (len(shares), 1))


def _check_form(rank: int, events: Events) -> None:
    table = events.table
    if table.dtype != np.int32 or table.ndim != 2 or not len(table) or table.shape[1] < 2 + events.degree:
        raise RunError(f"The events contradict the rules: those of rank {rank} are not of this graph.")


class _Worker:
    """One worker on its way through its events."""

    def __init__(
        self, index: int, share: Share, neighbors: Sequence[int], weights: Array, events: Events, start: Array
    ) -> None:
        self.index = index
        self.share = share
        self.neighbors = list(neighbors)
        self.weights = weights
        self.events = events
        self.step = 0
        self.params = start
        self.vector: Array | None = None
        self.gradients: dict[int, Array] = {}
        self.last_use = {int(point): step for step, point in enumerate(events.points) if point != NONE}

    @property
    def round(self) -> int:
        return int(self.events.rounds[self.step])

    @property
    def done(self) -> bool:
        return self.step == len(self.events.table) - 1

    def used_by_neighbor(self) -> list[tuple[int, NDArray[np.int32]]]:
        return [(j, self.events.used[:, place]) for place, j in enumerate(self.neighbors)]

    def check(self, workers: Sequence[_Worker], age_limit: int) -> None:
        """Refuse events that no run by the rules can have had."""
        table, n_steps = self.events.table, len(self.events.table)
        if self.events.degree != len(self.neighbors):
            raise self._contradiction("are not of this graph")
        if (np.diff(self.events.rounds) < 0).any():
            raise self._contradiction("go back in rounds")
        points, steps = self.events.points, np.arange(n_steps)
        if (points > steps).any() or (points < NONE).any():
            raise self._contradiction("use a gradient before it was taken")
        if (table[-1, 1 : 2 + self.events.degree] != NONE).any():
            raise self._contradiction("go on after the goodbye")
        self._check_shards(table[:, 2 + self.events.degree :])
        for j, column in self.used_by_neighbor():
            at = np.flatnonzero(column != NONE)
            theirs = workers[j].events.rounds
            if (column[at] < 0).any() or (column[at] >= len(theirs)).any():
                raise self._contradiction(f"use a vector of rank {j} that it never sent")
            if (np.diff(column[at]) < 0).any():
                raise self._contradiction(f"use an older vector of rank {j} after a newer one")
            if (self.events.rounds[at] - theirs[column[at]] > age_limit).any():
                raise self._contradiction(f"use a vector of rank {j} older than {age_limit} rounds")

    def _check_shards(self, words: NDArray[np.int32]) -> None:
        if not words.size:
            return
        held = EventLog(0, self.share.n_shards)
        held.append(0, 0, [], range(self.share.n_shards))
        mask = held.events().table[0, 2:]
        if words.shape[1] != mask.size or (words & ~mask).any():
            raise self._contradiction("use shards that it does not hold")
        points = self.events.points
        if words[points == NONE].any():
            raise self._contradiction("have shards of no gradient")
        for step, point in enumerate(points):
            if point != NONE and (words[step] != words[self.last_use[int(point)]]).any():
                raise self._contradiction("use one gradient with different shards")

    def _contradiction(self, what: str) -> RunError:
        return RunError(f"The events contradict the rules: those of rank {self.index} {what}.")

    def inputs(self) -> list[tuple[int, int]]:
        """Return (worker, step) of every vector that this step mixes in."""
        used = self.events.used[self.step]
        return [(j, int(step)) for j, step in zip(self.neighbors, used, strict=True) if step != NONE]

    def local_step(self, step_size: Callable[[int], float]) -> Array:
        """Return v(s), after taking the gradient that this or a later step uses."""
        if self.step in self.last_use:
            shards = self.events.finished_shards(self.last_use[self.step])
            terms = (
                [self.share.gradient(self.params)]
                if shards is None
                else [self.share.gradient(self.params, shard) for shard in shards]
            )
            self.gradients[self.step] = np.sum(terms, axis=0) if terms else np.zeros_like(self.params)
        point = int(self.events.points[self.step])
        if self.done or point == NONE:
            return self.params
        vector = self.params - step_size(self.round) * self.gradients[point]
        if self.last_use[point] == self.step:
            del self.gradients[point]
        return vector

    def mix(self, vectors: Sequence[Array]) -> None:
        assert self.vector is not None
        used = self.weights[self.events.used[self.step] != NONE]
        x = self.vector.copy()
        for weight, vector in zip(used, vectors, strict=True):
            x += weight * (vector - self.vector)
        self.params, self.vector = x, None
        self.step += 1
