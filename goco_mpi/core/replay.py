"""A real run once more, from its events: the proof that it did what the mathematics says.

There are no messages and no clock here, only who had what when it took a step. The steps are the
method's own pure functions; that those are right is for `goco_mpi.core.simulate` to say, which knows
nothing of them.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch
from goco_mpi.core.events import NONE, EventLog, Events
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Gradient, Method, Place, State
from goco_mpi.core.pace.work import FinishedWork
from goco_mpi.errors import RunError

Array = NDArray[np.float64]
_Sent = tuple[int, int]
"""A message: who sent it, in which of its steps."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a worker's events begin.

    Attributes
    ----------
    state : State
    step : int
        Of the first event.
    heard : sequence of (int, int, ndarray) or None, length degree
        Of each neighbour the step and round of the message that had come last, and the message.
    last : FinishedWork, optional
        The gradient that steps may go on using.
    """

    state: State
    step: int = 0
    heard: Sequence[tuple[int, int, Array] | None] = ()
    last: FinishedWork | None = None


def replay_gossip(
    method: Method[Any],
    places: Sequence[Place],
    mixings: Sequence[Mixing],
    step_size: Callable[[int], float],
    events: Sequence[Events],
    start: Array,
    batch: Batch | None = None,
    starts: Sequence[Start] | None = None,
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
    batch : Batch, optional
        Of the rows that gradients were taken of.
    starts : sequence of Start, length n_workers, optional
        Where the run went on from a checkpoint; used up.

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
    if starts is None:
        starts = [Start(method.start(start, place)) for place in places]
    workers = [
        _Worker(method, place, mixing, table, begin, batch)
        for place, mixing, table, begin in zip(places, mixings, events, starts, strict=True)
    ]
    for worker in workers:
        worker.check(workers)
    messages = _Messages(workers)
    waiting: defaultdict[_Sent, list[_Worker]] = defaultdict(list)
    ready = [(worker.round, worker.index) for worker in workers]
    heapq.heapify(ready)
    while ready:
        worker = workers[heapq.heappop(ready)[1]]
        if worker.message is None:
            sent = worker.index, worker.step
            worker.message = worker.send(step_size)
            messages.add(sent, worker.message)
            for other in waiting.pop(sent, []):
                heapq.heappush(ready, (other.round, other.index))
        if worker.done:
            continue
        needed = worker.inputs()
        missing = messages.first_missing(needed)
        if missing is not None:
            waiting[missing].append(worker)
            continue
        worker.receive(messages.take(needed), workers, step_size)
        heapq.heappush(ready, (worker.round, worker.index))
    for worker in workers:
        if not worker.done:
            raise RunError(
                f"The events contradict themselves: step {worker.step} of rank {worker.index} uses a message that only "
                "comes of it."
            )
    return np.stack([worker.state.params for worker in workers])


def replay_allreduce(
    method: Method[Any],
    places: Sequence[Place],
    step_size: Callable[[int], float],
    events: Sequence[Events],
    start: Array,
    batch: Batch | None = None,
    disturbed: bool = False,
    starts: Sequence[Start] | None = None,
) -> Array:
    """Return all workers' final parameters of a synchronous run; see `replay_gossip`.

    In every round the mean of all workers' messages, and each worker's gradient at its present parameters. How the run
    summed them is MPI's affair: ``disturbed`` adds what another order of summation might, to tell what becomes of it.
    """
    first = events[0].table
    for rank, found in enumerate(events):
        _check_form(rank, found)
        if found.table.shape != first.shape or (found.table != first).any():
            raise RunError(f"The events contradict themselves: rank {rank} went through other rounds than rank 0.")
    states = [method.start(start, place) for place in places] if starts is None else [begin.state for begin in starts]
    messages = np.empty((len(places), method.message_size(start.size)))
    nothing = Mixing(np.empty(0), 0)
    for round_, point in zip(events[0].rounds[:-1].tolist(), events[0].points[:-1].tolist(), strict=True):
        eta = step_size(round_)
        for place, state, message in zip(places, states, messages, strict=True):
            if point != (round_ if method.needs_gradient(state, round_) else NONE):
                raise RunError(
                    f"The events contradict the rules: round {round_} of an allreduce without its gradient, or with "
                    "one that it has no use for."
                )
            gradient = None
            if point != NONE:
                share = place.share if batch is None else batch.of(place.share, place.worker, point)
                gradient = Gradient(share.gradient(state.params), state.params.copy())
            method.send(state, gradient, eta, round_, message)
        mean = messages.mean(axis=0)
        if disturbed:
            signs = 1.0 - 2.0 * ((np.arange(mean.size) + round_) % 2)
            mean += signs * np.finfo(np.float64).eps * np.abs(messages).max(axis=0)
        for state, message in zip(states, messages, strict=True):
            method.receive(state, message, [Received(mean, 0)], nothing, eta)
    return np.stack([state.params for state in states])


def _check_form(rank: int, events: Events) -> None:
    table = events.table
    if table.dtype != np.int32 or table.ndim != 2 or not len(table) or table.shape[1] < 2 + events.degree:
        raise RunError(f"The events contradict the rules: those of rank {rank} are not of this graph.")


class _Messages:
    """All workers' messages that exist by now, each until its last use."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._uses_left = Counter(
            (j, int(step))
            for worker in workers
            for j, column in worker.used_by_neighbor()
            for step in column
            if step != NONE
        )
        self._there = {
            (j, heard[0]): heard[2]
            for worker in workers
            for j, heard in worker.heard.items()
            if heard[0] < workers[j].first
        }

    def add(self, sent: _Sent, message: Array) -> None:
        if self._uses_left[sent]:
            self._there[sent] = message

    def first_missing(self, needed: Sequence[_Sent | None]) -> _Sent | None:
        """Return the first of those ``needed`` that has not been sent yet, None if all have."""
        return next((sent for sent in needed if sent is not None and sent not in self._there), None)

    def take(self, needed: Sequence[_Sent | None]) -> list[Array | None]:
        """Return the messages for one use of each; None where none is needed."""
        taken = [None if sent is None else self._there[sent] for sent in needed]
        for sent in needed:
            if sent is not None:
                self._uses_left[sent] -= 1
                if not self._uses_left[sent]:
                    del self._there[sent]
        return taken


class _Worker:
    """One worker on its way through its events."""

    def __init__(
        self,
        method: Method[Any],
        place: Place,
        mixing: Mixing,
        events: Events,
        start: Start,
        batch: Batch | None,
    ) -> None:
        self.index = place.worker
        self.share = place.share
        self.method = method
        self.neighbors = place.neighbors
        self.mixing = mixing
        self.events = events
        self.batch = batch
        self.first = self.step = start.step
        self.end = start.step + len(events.table)
        self.heard = {j: heard for j, heard in zip(place.neighbors, start.heard, strict=False) if heard is not None}
        self.state = start.state
        self.message: Array | None = None
        self.gradients = {} if start.last is None else {start.last.point: start.last.gradient}
        self.last_use = {int(point): step for step, point in enumerate(events.points, start.step) if point != NONE}

    @property
    def row(self) -> int:
        return self.step - self.first

    @property
    def round(self) -> int:
        return int(self.events.rounds[self.row])

    @property
    def done(self) -> bool:
        return self.step == self.end - 1

    def round_of_message(self, sender: _Worker, step: int) -> int:
        """Return the round of a message that this worker used."""
        if step < sender.first:
            return self.heard[sender.index][1]
        return int(sender.events.rounds[step - sender.first])

    def used_by_neighbor(self) -> list[tuple[int, NDArray[np.int32]]]:
        return [(j, self.events.used[:, place]) for place, j in enumerate(self.neighbors)]

    def check(self, workers: Sequence[_Worker]) -> None:
        """Refuse events that no run by the rules can have had."""
        table = self.events.table
        if self.events.degree != len(self.neighbors):
            raise self._contradiction("are not of this graph")
        if (np.diff(self.events.rounds) < 0).any():
            raise self._contradiction("go back in rounds")
        points, steps = self.events.points, np.arange(self.first, self.end)
        taken_before = (points < self.first) & (points != NONE)
        if (points > steps).any() or not set(points[taken_before].tolist()) <= self.gradients.keys():
            raise self._contradiction("use a gradient before it was taken")
        if (table[-1, 1 : 2 + self.events.degree] != NONE).any():
            raise self._contradiction("go on after the goodbye")
        self._check_shards(table[:, 2 + self.events.degree :])
        for j, column in self.used_by_neighbor():
            taken = column[:-1]
            before = taken[(taken < workers[j].first) & (taken != NONE)]
            known = {self.heard[j][0]} if j in self.heard else set()
            if (taken >= workers[j].end).any() or not set(before.tolist()) <= known:
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
            if point != NONE and (words[step] != words[self.last_use[int(point)] - self.first]).any():
                raise self._contradiction("use one gradient with different shards")

    def _contradiction(self, what: str) -> RunError:
        return RunError(f"The events contradict the rules: those of rank {self.index} {what}.")

    def inputs(self) -> list[_Sent | None]:
        """Return (worker, step) of each neighbour's message that this step takes in."""
        used = self.events.used[self.row]
        return [None if step == NONE else (j, int(step)) for j, step in zip(self.neighbors, used, strict=True)]

    def send(self, step_size: Callable[[int], float]) -> Array:
        """Return the message of this step, after taking the gradient that this or a later step uses."""
        params = self.state.params
        if self.step in self.last_use:
            encoding = self.method.encoding(self.state)
            share = self.share if encoding is None else self.share.reweighted(encoding.weights)
            if self.batch is not None:
                share = self.batch.of(share, self.index, self.step)
            shards = self.events.finished_shards(self.last_use[self.step] - self.first)
            if shards is None:
                vector = share.gradient(params)
            else:
                terms = (share.gradient(params, shard) for shard in shards)
                vector = sum(terms, start=np.zeros_like(params))
            part = 1.0 if shards is None else len(shards) / share.n_shards
            self.gradients[self.step] = Gradient(vector, params.copy(), encoding, part)
        point = int(self.events.points[self.row])
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
            Received(message, 0 if message is None else self.round - self.round_of_message(workers[j], int(step)))
            for j, step, message in zip(self.neighbors, self.events.used[self.row], messages, strict=True)
        ]
        self.method.receive(self.state, self.message, inbox, self.mixing, step_size(self.round))
        self.message = None
        self.step += 1
