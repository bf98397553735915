"""A real run once more, from its events: the proof that it did what the mathematics says.

There are no messages and no clock here, only who had what when it took a step. The steps are the
method's own pure functions; that those are right is for `goco_mpi.core.simulate` to say, which knows
nothing of them.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.events import NONE, EventLog, Events
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Gradient, Method, Place
from goco_mpi.core.shares import Share
from goco_mpi.errors import RunError

Array = NDArray[np.float64]


def replay_gossip(
    method: Method[Any],
    places: Sequence[Place],
    mixings: Sequence[Mixing],
    step_size: Callable[[int], float],
    events: Sequence[Events],
    start: Array,
) -> Array:
    """Return all workers' final parameters of a gossip run.

    In step s worker i uses the gradient at the parameters it had before its step p, sends its message,
    and takes in its neighbours' messages that had arrived by then. Steps are gone through in an order in
    which every message exists before it is used, the earliest round first, so that few are kept.

    Parameters
    ----------
    method : Method
    places : sequence of Place, length n_workers
    mixings : sequence of Mixing, length n_workers
    step_size : callable round -> float
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
    workers = [
        _Worker(method, place, mixing, table, start)
        for place, mixing, table in zip(places, mixings, events, strict=True)
    ]
    for worker in workers:
        worker.check(workers)
    # How often each message will still be used; it is forgotten after that.
    uses = Counter(
        (j, int(step))
        for worker in workers
        for j, column in worker.used_by_neighbor()
        for step in column
        if step != NONE
    )
    messages: dict[tuple[int, int], Array] = {}
    waiting: defaultdict[tuple[int, int], list[_Worker]] = defaultdict(list)
    ready = [(worker.round, worker.index) for worker in workers]
    heapq.heapify(ready)

    def publish(worker: _Worker, message: Array) -> None:
        key = (worker.index, worker.step)
        if uses[key]:
            messages[key] = message
        for other in waiting.pop(key, []):
            heapq.heappush(ready, (other.round, other.index))

    while ready:
        worker = workers[heapq.heappop(ready)[1]]
        if worker.message is None:
            worker.message = worker.send(step_size)
            publish(worker, worker.message)
        if worker.done:
            continue
        needed = worker.inputs()
        missing = next((key for key in needed if key is not None and key not in messages), None)
        if missing is not None:
            waiting[missing].append(worker)
            continue
        worker.receive([None if key is None else messages[key] for key in needed], workers, step_size)
        for key in needed:
            if key is not None:
                uses[key] -= 1
                if not uses[key]:
                    del messages[key]
        heapq.heappush(ready, (worker.round, worker.index))
    for worker in workers:
        if not worker.done:
            raise RunError(
                f"The events contradict themselves: step {worker.step} of rank {worker.index} uses a message that only "
                "comes of it."
            )
    return np.stack([worker.state.params for worker in workers])


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
        self,
        method: Method[Any],
        place: Place,
        mixing: Mixing,
        events: Events,
        start: Array,
    ) -> None:
        self.index = place.worker
        self.share = place.share
        self.method = method
        self.neighbors = place.neighbors
        self.mixing = mixing
        self.events = events
        self.step = 0
        self.state = method.start(start, place)
        self.message: Array | None = None
        self.gradients: dict[int, Gradient] = {}
        self.last_use = {int(point): step for step, point in enumerate(events.points) if point != NONE}

    @property
    def round(self) -> int:
        return int(self.events.rounds[self.step])

    @property
    def done(self) -> bool:
        return self.step == len(self.events.table) - 1

    def used_by_neighbor(self) -> list[tuple[int, NDArray[np.int32]]]:
        return [(j, self.events.used[:, place]) for place, j in enumerate(self.neighbors)]

    def check(self, workers: Sequence[_Worker]) -> None:
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
            taken = column[:-1]
            if (taken < NONE).any() or (taken >= len(workers[j].events.table)).any():
                raise self._contradiction(f"use a message of rank {j} that it never sent")
            if (np.diff(taken) < 0).any():
                raise self._contradiction(f"use an older message of rank {j} after a newer one")

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

    def inputs(self) -> list[tuple[int, int] | None]:
        """Return (worker, step) of each neighbour's message that this step takes in."""
        used = self.events.used[self.step]
        return [None if step == NONE else (j, int(step)) for j, step in zip(self.neighbors, used, strict=True)]

    def send(self, step_size: Callable[[int], float]) -> Array:
        """Return the message of this step, after taking the gradient that this or a later step uses."""
        params = self.state.params
        if self.step in self.last_use:
            encoding = self.method.encoding(self.state)
            share = self.share if encoding is None else self.share.reweighted(encoding.weights)
            shards = self.events.finished_shards(self.last_use[self.step])
            if shards is None:
                vector = share.gradient(params)
            else:
                terms = (share.gradient(params, shard) for shard in shards)
                vector = sum(terms, start=np.zeros_like(params))
            part = 1.0 if shards is None else len(shards) / share.n_shards
            self.gradients[self.step] = Gradient(vector, params.copy(), encoding, part)
        point = int(self.events.points[self.step])
        gradient = None if point == NONE else self.gradients[point]
        message = np.empty(self.method.message_size(params.size))
        self.method.send(self.state, gradient, 0.0 if self.done else step_size(self.round), self.round, message)
        if gradient is not None and self.last_use[point] == self.step:
            del self.gradients[point]
        return message

    def receive(
        self, messages: Sequence[Array | None], workers: Sequence[_Worker], step_size: Callable[[int], float]
    ) -> None:
        """Take in the neighbours' messages, as old as the rounds of the steps say."""
        assert self.message is not None
        inbox = [
            Received(message, 0 if message is None else self.round - int(workers[j].events.rounds[step]))
            for j, step, message in zip(self.neighbors, self.events.used[self.step], messages, strict=True)
        ]
        self.method.receive(self.state, self.message, inbox, self.mixing, step_size(self.round))
        self.message = None
        self.step += 1
