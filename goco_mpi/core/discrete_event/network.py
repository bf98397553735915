"""All workers of a gossip run in simulated seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch
from goco_mpi.core.costs import CostModel
from goco_mpi.core.discrete_event.link import Link
from goco_mpi.core.discrete_event.queue import Kind, Queue
from goco_mpi.core.discrete_event.worker import Worker
from goco_mpi.core.events import EventLog, Events
from goco_mpi.core.gossip import HEADER, Mixing
from goco_mpi.core.methods import Method, Place
from goco_mpi.core.pace.counts import ExchangeCounts, Spent
from goco_mpi.core.pace.deadline import FIRST_GOSSIP_S, Deadline
from goco_mpi.core.pace.slots import Message
from goco_mpi.core.pace.work import Work
from goco_mpi.core.stragglers import StragglerModel

Array = NDArray[np.float64]
Observe = Callable[[int, float, Array, Spent], bool]
"""(round, seconds, stacked parameters, the mean over workers of what they spent) -> whether to go on."""


@dataclass(frozen=True)
class Pacing:
    """How ranks deal with lateness: ``method.late`` and ``[deadline]`` of an experiment."""

    late: str = "discard"
    compute_s: float | str = "auto"
    gossip_s: float | str = "auto"
    compute_factor: float = 2.0
    gossip_factor: float = 0.1


@dataclass(frozen=True, eq=False)
class TimedRun:
    """What a run in simulated seconds gave.

    Attributes
    ----------
    stacked_params : ndarray of shape (n_workers, n_params)
    ranks : list of dict
        As rows of ``ranks.csv``.
    wall_s : float
        Until the last worker's end; infinite where all wait for one that never finishes its gradient.
    last_round : int
        The newest round that a worker reached.
    stopped : bool
        Whether the observer ended it.
    n_events : int
        Events of the queue that were gone through, or gradients of an allreduce: how much was simulated.
    events : list of Events or None
        What decided each worker's every vector, for a replay; None unless taken down, or of a run that was stopped.
    """

    stacked_params: Array
    ranks: list[dict[str, Any]]
    wall_s: float
    last_round: int
    stopped: bool
    n_events: int
    events: list[Events] | None


class Network:
    """Simulated workers who gossip, each in its own time.

    Parameters
    ----------
    method : Method
    places : sequence of Place, length n_workers
    mixings : sequence of Mixing, length n_workers
    step_size : callable round -> float
    stragglers : StragglerModel
        Real kinds last, logical ones drop work.
    cost : CostModel
    pacing : Pacing
    n_rounds : int
    start : ndarray of shape (n_params,)
        Everybody's first parameters.
    take_down : bool
        Whether to keep the events of `goco_mpi.core.events`.
    batch : Batch, optional
        What rows a gradient is taken of; all of them without.

    Raises
    ------
    InputError
        If the method cannot start.
    """

    def __init__(
        self,
        method: Method[Any],
        places: Sequence[Place],
        mixings: Sequence[Mixing],
        step_size: Callable[[int], float],
        stragglers: StragglerModel,
        cost: CostModel,
        pacing: Pacing,
        n_rounds: int,
        start: Array,
        take_down: bool = False,
        batch: Batch | None = None,
    ) -> None:
        self.queue = Queue()
        self.cost = cost
        self.batch = batch
        self.stragglers = stragglers
        self.n_rounds = n_rounds
        self.step_size = step_size
        message_size = method.message_size(start.size)
        self._message_bytes = (HEADER + message_size) * 8
        self._message_s = cost.sending_s(self._message_bytes)
        self._free_s = [0.0] * len(places)  # when each worker's link is
        self._every = n_rounds
        self._n_passed: list[int] = []
        self._due: list[int] = []

        def link(worker: int, neighbor: int) -> Link:
            arrives = partial(stragglers.arrives, neighbor, worker) if stragglers.lossy else None
            return Link(neighbor, message_size, partial(self._transmit, worker), arrives)

        self._workers = [
            Worker(
                self,
                method,
                place,
                mixing,
                Work(worker, place.share, stragglers, pacing.late, batch),
                [link(worker, neighbor) for neighbor in place.neighbors],
                pacing.late,
                Deadline(pacing.compute_s, pacing.compute_factor),
                Deadline(pacing.gossip_s, pacing.gossip_factor, FIRST_GOSSIP_S),
                start,
                EventLog(len(place.neighbors), place.share.n_shards if pacing.late == "partial" else 0)
                if take_down
                else None,
            )
            for worker, (place, mixing) in enumerate(zip(places, mixings, strict=True))
        ]
        # Worker -> neighbour -> link: where the neighbour's messages arrive.
        self._back = [{link.neighbor: link for link in worker.links} for worker in self._workers]

    def _transmit(self, worker: int, link: Link, message: Message) -> None:
        """Send over a worker's link, behind what it is sending."""
        sent_s = max(self.queue.now, self._free_s[worker]) + self._message_s
        self._free_s[worker] = sent_s
        deliver = partial(self._deliver, worker, link, message)
        self.queue.add(sent_s + self.cost.latency_s, Kind.ARRIVAL, deliver)

    def _deliver(self, worker: int, link: Link, message: Message) -> None:
        link.send.complete()
        receiver = self._workers[link.neighbor]
        if not receiver.done:
            receiver.arrived(self._back[link.neighbor][worker], message)

    def moved(self, worker: Worker, before: int) -> None:
        """Count who has come how far; a row of the history is due when half of the workers are there."""
        for row in range(before // self._every + 1, worker.round // self._every + 1):
            while len(self._n_passed) <= row:
                self._n_passed.append(0)
            self._n_passed[row] += 1
            if self._n_passed[row] == (len(self._workers) + 1) // 2:
                self._due.append(row * self._every)

    def run(self, observe: Observe = lambda *_: True, every: int | None = None) -> TimedRun:
        """Let all workers go through their rounds.

        Parameters
        ----------
        observe : callable (round, seconds, X, spent) -> bool
            Called when half of the workers have come to a round that is a multiple of ``every``, with all
            parameters at that time; a False ends the run then.
        every : int, optional

        Raises
        ------
        RunError
            If the parameters grow without bound.
        """
        self._every = every or self.n_rounds
        stopped = not observe(0, 0.0, self._stacked(), Spent(0.0, 0.0))
        for worker in self._workers:
            worker.begin()
        while not stopped:
            if self._due and self.queue.next_s > self.queue.now:  # all that happens at this time has happened
                due, self._due = self._due, []
                stopped = not all(observe(round_, self.queue.now, self._stacked(), self._spent()) for round_ in due)
                continue
            happens = self.queue.next()
            if happens is None:
                break
            happens()
        return self._result(stopped)

    def _stacked(self) -> Array:
        return np.stack([worker.params for worker in self._workers])

    def _spent(self) -> Spent:
        n_sent = sum(link.send.n_sent for worker in self._workers for link in worker.links)
        n_done = sum(worker.shard_gradients for worker in self._workers)
        return Spent(n_sent * self._message_bytes / len(self._workers), n_done / len(self._workers))

    def _result(self, stopped: bool) -> TimedRun:
        endless = not stopped and not all(worker.done for worker in self._workers)  # and nothing happens any more
        for worker in self._workers:
            worker.leave()
        events = [worker.events() for worker in self._workers]
        return TimedRun(
            stacked_params=self._stacked(),
            ranks=[self._row(number, worker) for number, worker in enumerate(self._workers)],
            wall_s=math.inf if endless else max(worker.counts.wall_s for worker in self._workers),
            last_round=max(worker.round for worker in self._workers),
            stopped=stopped,
            n_events=self.queue.n_done,
            events=None if stopped or None in events else [found for found in events if found is not None],
        )

    def _row(self, number: int, worker: Worker) -> dict[str, Any]:
        n_sent = sum(link.send.n_sent for link in worker.links)
        counts = ExchangeCounts(
            messages_sent=n_sent,
            messages_received=worker.n_received,
            bytes_sent=n_sent * self._message_bytes,
            superseded=sum(link.send.n_superseded for link in worker.links),
            missed=worker.patience.missed,
            suspected=worker.patience.suspected,
        )
        return {"rank": number, **asdict(worker.counts), **asdict(counts)}
