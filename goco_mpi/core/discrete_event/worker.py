"""One worker's rounds in simulated seconds: those of `goco_mpi.engine.runner`, driven by events.

A worker computes, waits, or is busy with messages; what happens to it then is an event. It looks up from
its gradient whenever a message comes, where a rank does so between two blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch, n_rows
from goco_mpi.core.costs import CostModel
from goco_mpi.core.discrete_event.link import Link
from goco_mpi.core.discrete_event.queue import Kind, Queue
from goco_mpi.core.discrete_event.task import Task
from goco_mpi.core.events import NONE, EventLog, Events
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Method, Place
from goco_mpi.core.pace import rounds
from goco_mpi.core.pace.counts import RunCounts
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.patience import Patience
from goco_mpi.core.pace.rounds import Look
from goco_mpi.core.pace.slots import GOODBYE, Message
from goco_mpi.core.pace.work import FinishedWork, Work
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import divergence

Array = NDArray[np.float64]

BLOCK_S = 5e-4
"""A gradient that lasts longer is not late before this: as a rank that looks at the clock after a block of work."""


class Surroundings(Protocol):
    """What a worker sees of the simulation it is in."""

    queue: Queue
    cost: CostModel
    stragglers: StragglerModel
    batch: Batch | None
    n_rounds: int

    def step_size(self, round_: int) -> float:
        """Return a round's step size."""

    def moved(self, worker: Worker, before: int) -> None:
        """Take note that a worker went on to its round from round ``before``."""


class Worker:
    """A simulated rank.

    Parameters
    ----------
    around : Surroundings
    method : Method
    place : Place
    mixing : Mixing
    work : Work
    links : sequence of Link
        To the neighbours, in the order of ``place.neighbors``.
    late : str
    compute_deadline, gossip_deadline : Deadline
    start : ndarray of shape (n_params,)
    events : EventLog, optional

    Attributes
    ----------
    round : int
    counts : RunCounts
    patience : Patience
    n_received : int
        Messages taken in.
    done : bool
        Whether it has said goodbye.
    """

    def __init__(
        self,
        around: Surroundings,
        method: Method[Any],
        place: Place,
        mixing: Mixing,
        work: Work,
        links: Sequence[Link],
        late: str,
        compute_deadline: Deadline,
        gossip_deadline: Deadline,
        start: Array,
        events: EventLog | None = None,
    ) -> None:
        self._around = around
        self._queue = around.queue
        self._method = method
        self._place = place
        self._mixing = mixing
        self._state = method.start(start, place)
        self._message_size = method.message_size(start.size)
        self._message = Message(0)
        self._work = work
        self._late = late
        self._compute_deadline = compute_deadline
        self._events = events
        self.links = links
        self.patience = Patience(links, gossip_deadline, 0.0)
        self.counts = RunCounts()
        self.round = 0
        self.newest_round = -1
        self.n_received = 0
        self.done = False
        self._heard: Callable[[], None] | None = None  # what to do when something came; None: busy
        self._moment = 0  # an event that was added for an earlier one is void
        self._n_begun = self._offered = 0
        self._n_unpaid = 0
        # The gradient under way, its deadline, and the seconds waited in its middle.
        self._blocks: Iterator[None] = iter(())
        self._task = Task(0.0, 0.0, 0.0)
        self._due_s = math.inf
        self._waited_s = 0.0
        self._wait_ends_s = math.inf

    @property
    def params(self) -> Array:
        """Where this worker is, shape (n_params,)."""
        params: Array = self._state.params
        return params

    def arrived(self, link: Link, message: Message) -> None:
        """Have a message waiting; take it in at once where the worker looks."""
        link.pending.append(message)
        if self._heard is not None:
            self._take_in(link)
            self._heard()

    def _take_in(self, link: Link) -> None:
        slot = link.receive
        while link.pending and slot.request is not None and not self.patience.deaf(slot, self._offered):
            link.take_in()
            self.n_received += 1
            self._n_unpaid += 1
            self.newest_round = max(self.newest_round, slot.heard_round)

    def _drain(self) -> None:
        for link in self.links:
            if link.pending:
                self._take_in(link)

    def _at(self, time_s: float, kind: Kind, happens: Callable[[], None]) -> None:
        """Let something happen unless the worker has gone on to something else by then."""
        self._queue.add(time_s, kind, partial(self._if_still, self._moment, happens))

    def _if_still(self, moment: int, happens: Callable[[], None]) -> None:
        if moment == self._moment:
            happens()

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        """Be busy for some seconds, and go on."""
        self._moment += 1
        self._heard = None
        if seconds > 0.0:
            self._at(self._queue.now + seconds, Kind.FINISH, then)
        else:
            then()

    def _over(self) -> bool:
        return self.round >= self._around.n_rounds

    # The gradient.

    def begin(self) -> None:
        """Begin a gradient at the present parameters, or end."""
        if self._over():
            self._say_goodbye()
            return
        if not self._method.needs_gradient(self._state, self.round):
            self._gossip(self._work.meanwhile, self.begin)
            return
        around, me, now = self._around, self._place.worker, self._queue.now
        encoding = self._method.encoding(self._state)
        self._blocks = self._work.start(self.params, self.round, self.counts.rounds, encoding)
        rows = n_rows(self._place.share, around.batch)
        own_s = around.cost.gradient_s(me, self._n_begun, rows) * around.stragglers.slowness(me)
        self._n_begun += 1
        self._task = Task(now, own_s, around.stragglers.duration_s(me, self.round))
        self._waited_s = 0.0
        self._set_deadline()
        self._resume()

    def _set_deadline(self) -> None:
        now = self._queue.now
        block_s = min(BLOCK_S, self._task.ends_s(now) - now)
        self._due_s = now + max(self._compute_deadline.seconds, block_s)

    def _resume(self) -> None:
        """Compute on."""
        self._moment += 1
        now = self._queue.now
        self._heard = self._look
        self._at(max(now, self._due_s), Kind.DEADLINE, self._too_late)
        self._at(self._task.resume(now), Kind.FINISH, partial(self._finish, True))
        self._drain()
        self._look()

    def _look(self) -> None:
        """Keep up with the neighbours; leave the gradient if the run is over, or all of them are done."""
        if self.links and all(link.receive.goodbye for link in self.links):
            self._finish(False)
            return
        if rounds.behind(self.round, self.newest_round):
            before, self.round = self.round, self.newest_round
            self._around.moved(self, before)
            if not self._over():
                self._task.pause(self._queue.now)
                self._gossip(self._work.meanwhile, self._resume, wait=False, advance=False)
                return
        if rounds.look(False, self._over(), self._carries_on) is Look.CUT:
            self._finish(False)

    @property
    def _carries_on(self) -> bool:
        return self._late == "memory"

    def _too_late(self) -> None:
        """Meet the deadline of a gradient under way."""
        if rounds.look(True, self._over(), self._carries_on) is Look.GOSSIP:
            self._task.pause(self._queue.now)
            self._gossip(self._work.meanwhile, self._go_on)
        else:
            self._finish(False)

    def _go_on(self) -> None:
        self._set_deadline()
        self._resume()

    def _finish(self, whole: bool) -> None:
        """Take what the gradient is worth, and gossip."""
        now = self._queue.now
        seconds = now - self._task.began_s - self._waited_s
        self.counts.compute_s += seconds
        self._compute_deadline.observe(seconds)
        if whole or self._late == "partial":
            if not whole:
                # The part that is due at this very time may be short of it by rounding.
                self._work.keep(math.floor(self._task.part(now) * self._place.share.n_shards + 1e-9))
            for _ in self._blocks:
                pass
        if whole:
            work = self._work.finish()
        else:
            work = self._work.cut() or (self._work.meanwhile if self._carries_on else None)
        if self._over():
            self._say_goodbye()
        else:
            self._gossip(work, self.begin)

    # The gossip.

    def _gossip(
        self, work: FinishedWork | None, then: Callable[[], None], wait: bool = True, advance: bool = True
    ) -> None:
        """Take the local step, exchange, mix, and go on to the next round, and there to ``then``."""
        gradient = None if work is None else work.gradient
        self._message = Message(self._message_size)
        step_size = self._around.step_size(self.round)
        self._method.send(self._state, gradient, step_size, self.round, self._message.params)
        cost_s = self._around.cost.overhead_s * len(self.links)
        self._after(cost_s, partial(self._offer, work, then, wait, advance))

    def _offer(self, work: FinishedWork | None, then: Callable[[], None], wait: bool, advance: bool) -> None:
        now = self._queue.now
        self._send(0)
        self._offered = self.round
        self._drain()
        mix = partial(self._mix, work, then, advance, now)
        if not wait:
            mix()
            return
        self._wait_ends_s = self.patience.begin(self.round, now)
        self._heard = partial(self._waited, mix, False)
        self._at(self._wait_ends_s, Kind.DEADLINE, partial(self._waited, mix, True))
        self._heard()

    def _send(self, flags: int) -> None:
        busy_s = self.patience.offer(self._queue.now)
        self._message.write_header(self.round, flags, busy_s, self.counts.rounds)
        for link in self.links:
            # Synchronous neighbours need every round's message, and are at most one round behind.
            assert not (self.patience.synchronous and link.send.crowded)
            link.send.offer(self._message)

    def _waited(self, mix: Callable[[], None], deadline: bool) -> None:
        """Go on once nobody is waited for any more, or at the deadline."""
        if self.patience.awaits() and not deadline:
            due = self.patience.due(self._queue.now)
            if due < self._wait_ends_s:
                self._wait_ends_s = due
                self._at(due, Kind.DEADLINE, partial(self._waited, mix, True))
            return
        self.patience.end(self._queue.now)
        mix()

    def _mix(self, work: FinishedWork | None, then: Callable[[], None], advance: bool, offered_s: float) -> None:
        waited_s = self._queue.now - offered_s
        self.counts.wait_s += waited_s
        self._waited_s += waited_s
        slots = [link.receive for link in self.links]
        inbox = [Received(slot.value, self.round - slot.value_round) for slot in slots]
        step_size = self._around.step_size(self.round)
        self._method.receive(self._state, self._message.params, inbox, self._mixing, step_size)
        self._take_down(work)
        cost_s = self._around.cost.overhead_s * self._n_unpaid
        self._n_unpaid = 0
        self._after(cost_s, partial(self._stepped, then, advance))

    def _take_down(self, work: FinishedWork | None) -> None:
        if work is not None:
            self.counts.repeated += work.uses > 0
            work.uses += 1
        if self._events is not None:
            point, shards = (NONE, []) if work is None else (work.point, work.shards)
            self._events.append(self.round, point, [link.receive.value_step for link in self.links], shards)

    def _stepped(self, then: Callable[[], None], advance: bool) -> None:
        if rounds.diverged(float(self.params @ self.params)):
            raise divergence(self.round, self._around.step_size(self.round) if self._method.steps else None)
        before, self.round = self.round, rounds.following(self.round, self.newest_round, advance)
        self.counts.rounds += 1
        self.counts.jumped += max(self.round - before - 1, 0)
        self._around.moved(self, before)
        then()

    @property
    def shard_gradients(self) -> int:
        """Gradients of single shards so far."""
        return self._work.n_shard_gradients

    def leave(self) -> None:
        """Be done, unless it is already; its counts are final."""
        if self.done:
            return
        self._moment += 1
        self._heard = None
        self.done = True
        self.counts.wall_s = self._queue.now
        self.counts.gradients = self._work.n_whole
        self.counts.partial_gradients = self._work.n_partial
        self.counts.late_gradients = self._work.n_late
        self.counts.shard_gradients = self._work.n_shard_gradients

    def _say_goodbye(self) -> None:
        self.leave()
        self._message = Message(self._message_size)
        self._method.send(self._state, None, 0.0, self.round, self._message.params)
        if self._events is not None:
            self._events.append(self.round, NONE, [NONE] * len(self.links))
        self._send(GOODBYE)

    def events(self) -> Events | None:
        """Return what decided its vectors, where that was taken down."""
        return None if self._events is None else self._events.events()
