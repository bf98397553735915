"""The round loop, and nothing else."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.events import NONE, EventLog
from goco_mpi.core.gossip import Mixing
from goco_mpi.core.methods import Encoding, Method, Place, State
from goco_mpi.core.pace import rounds
from goco_mpi.core.pace.counts import RunCounts, Spent
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.rounds import Look
from goco_mpi.core.pace.work import FinishedWork
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.engine.background import Background
from goco_mpi.engine.checkpointing import Checkpointing
from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.gradients import GradientWork
from goco_mpi.engine.recovery import Recovery
from goco_mpi.engine.snapshots import Snapshots, Timeline
from goco_mpi.engine.stopping import Stopping

Array = NDArray[np.float64]


class RoundLoop:
    """One rank's rounds: compute, exchange, mix.

    Parameters
    ----------
    work : GradientWork
    method : Method
    place : Place
    mixing : Mixing
    exchange : Exchange
    step_size : StepSchedule
    late : {'discard', 'partial', 'memory', 'wait'}
        What a gradient is worth that misses its deadline.
    compute_deadline : Deadline
    n_rounds : int
    snapshots : Snapshots
    stopping : Stopping
    progress : callable (round) -> None
        Called after every round; must be quick.
    state : State
        Of the method, at the first parameters.
    setup_s : float
        Seconds that it took to make, for the counts.
    background : Background, optional
        Receives messages while a block of the gradient is computed.
    events : EventLog, optional
        Takes down what decided every vector.
    timeline : Timeline, optional
        Takes down when.
    recovery : Recovery, optional
        What to do when other ranks die, where the MPI goes on then.
    checkpointing : Checkpointing, optional
        Keeps this rank's state on disk now and then.
    """

    def __init__(
        self,
        work: GradientWork,
        method: Method[Any],
        place: Place,
        mixing: Mixing,
        exchange: Exchange,
        step_size: StepSchedule,
        late: str,
        compute_deadline: Deadline,
        n_rounds: int,
        snapshots: Snapshots,
        stopping: Stopping,
        progress: Callable[[int], None],
        state: State,
        setup_s: float = 0.0,
        background: Background | None = None,
        events: EventLog | None = None,
        timeline: Timeline | None = None,
        recovery: Recovery | None = None,
        checkpointing: Checkpointing | None = None,
    ) -> None:
        self._work = work
        self._place = place
        self._recovery = recovery
        self._method = method
        self._mixing = mixing
        self._state = state
        self._exchange = exchange
        self._step_size = step_size
        self._carries_on = late == "memory"
        self._compute_deadline = compute_deadline
        self._n_rounds = n_rounds
        self._snapshots = snapshots
        self._stopping = stopping
        self._progress = progress
        self._background = background
        self._events = events
        self._timeline = timeline
        self._checkpointing = checkpointing
        self._start_s = 0.0
        self.counts = RunCounts(setup_s=setup_s)
        self.round = 0

    @property
    def params(self) -> Array:
        """Where this rank is, shape (n_params,)."""
        return self._state.params

    def spent(self) -> Spent:
        """Return what this rank has spent until now."""
        return Spent(self._exchange.counts().bytes_sent, self._work.n_shard_gradients)

    @property
    def method_counts(self) -> dict[str, int]:
        """What the method counted of its own."""
        return self._method.counts(self._state)

    def run(self) -> bool:
        """Go through the rounds; ``params`` and ``round`` are where they end, a last message is ready.

        Returns
        -------
        bool
            Whether this rank's parameters grew without bound.
        """
        self._start_s = time.perf_counter() - self.counts.wall_s
        self._snapshots.take(self.round, self.counts.wall_s, self.params, self.spent)
        self._stopping.start(self.params, self.round)
        if self._checkpointing is not None:
            self._checkpointing.start(self.round)
        diverged = False
        while not (self._over() or diverged):
            if self._checkpointing is not None and self._checkpointing.due(self.round):
                self._checkpointing.make(self.round, self._kept)
            self._exchange.begin(self.round, self.counts.rounds, self.params)
            needed = self._method.needs_gradient(self._state, self.round)
            gradient = self._compute() if needed else self._work.meanwhile
            if self._over():
                break
            self._gossip(gradient)
            diverged = rounds.diverged(float(self.params @ self.params))
        if self._checkpointing is not None and not (diverged or self._exchange.failed):
            self._checkpointing.finish(self.round, self._kept)
        if self.round < self._n_rounds and not diverged:
            self._exchange.leave()
        self.counts.wall_s = time.perf_counter() - self._start_s
        self.counts.gradients = self._work.n_whole
        self.counts.partial_gradients = self._work.n_partial
        self.counts.late_gradients = self._work.n_late
        self.counts.shard_gradients = self._work.n_shard_gradients
        # The goodbye: what the others may mix in the rounds that they still have.
        self._method.send(self._state, None, 0.0, self.round, self._exchange.blank())
        if self._events is not None:
            self._events.append(self.round, NONE, [NONE] * self._exchange.degree)
        return diverged

    def _over(self) -> bool:
        # The clock last: a run that has done all its rounds was not stopped.
        return self._exchange.failed or self.round >= self._n_rounds or self._stopping.out_of_time()

    def _compute(self) -> FinishedWork | None:
        """Return the coded gradient at the present parameters, or what counts of it if it is late."""
        start = time.perf_counter()
        deadline = start + self._compute_deadline.seconds
        waited_s = self.counts.wait_s
        blocks = self._work.start(self.params, self.round, self.counts.rounds, self._encoding())
        finished = True
        for _ in blocks if self._background is None else self._background.around(blocks):
            self._exchange.drain()
            if self._exchange.overtaken or self._stopping.reason is not None:
                finished = False
                break
            self._keep_up()
            found = rounds.look(time.perf_counter() >= deadline, self._over(), self._carries_on)
            if found is Look.GOSSIP:
                self._gossip(self._work.meanwhile)
                deadline = time.perf_counter() + self._compute_deadline.seconds
            elif found is Look.CUT:
                finished = False
                break
        seconds = time.perf_counter() - start - (self.counts.wait_s - waited_s)
        self.counts.compute_s += seconds
        # One that was cut counts as what it lasted until then; see `Deadline.observe`.
        self._compute_deadline.observe(seconds)
        if finished:
            return self._work.finish()
        return self._work.cut() or (self._work.meanwhile if self._carries_on else None)

    def _encoding(self) -> Encoding | None:
        """Return the weights that a gradient is coded with: the method's, or without the dead."""
        encoding = self._method.encoding(self._state)
        if self._recovery is None or encoding is not None or self._place.all_weights is not None:
            return encoding  # the method sees to its weights itself
        return self._recovery.encoding

    def _bereave(self, recovery: Recovery) -> None:
        """Go on without those who have died since the last step."""
        if lost := self._exchange.lost():
            recovery.lose(lost, self.round, self._stopping)
            self._method.lose(self._state, self._place, recovery.alive)
            self._checkpointing = None  # of which the dead had a part: none would be whole any more

    def _keep_up(self) -> None:
        """Gossip in the middle of a gradient if the neighbours are further.

        Rounds pass and the parameters change meanwhile, and the gradient is applied to them when it is
        ready. The rank takes part in the neighbours' newest round, and does not go past it.
        """
        newest_round = self._exchange.newest_round
        if rounds.behind(self.round, newest_round):
            self.round = newest_round
            if not self._over():
                self._gossip(self._work.meanwhile, wait=False, advance=False)

    def _gossip(self, work: FinishedWork | None, wait: bool = True, advance: bool = True) -> None:
        """Take the local step, exchange, mix, and go on to the next round.

        Parameters
        ----------
        work : FinishedWork or None
            What the local step uses.
        wait : bool
            Whether to wait for the neighbours.
        advance : bool
            Whether to go past the present round.
        """
        if self._checkpointing is not None and self._checkpointing.heard:
            self._checkpointing.make(self.round, self._kept)
        step_size = self._step_size(self.round)
        if self._recovery is not None:
            self._bereave(self._recovery)
            step_size *= self._recovery.step_scale
        gradient = None if work is None else work.gradient
        self._method.send(self._state, gradient, step_size, self.round, self._exchange.blank())
        offered = waited = time.perf_counter()  # before it leaves: nobody may have it earlier
        self._exchange.offer(self.round, self.counts.rounds)
        if wait:
            self._exchange.wait(self.round)
            waited = time.perf_counter()
        if self._exchange.abandoned:
            return
        if self._checkpointing is not None and self._checkpointing.heard:
            self._checkpointing.make(self.round, self._kept_after_sending)
        own, inbox = self._exchange.inbox(self.round)
        self._method.receive(self._state, own, inbox, self._mixing, step_size)
        mixed = time.perf_counter()
        self.counts.wait_s += waited - offered
        self._take_down(work, (offered, waited, mixed))
        following = rounds.following(self.round, self._exchange.newest_round, advance)
        self.counts.rounds += 1
        self.counts.jumped += max(following - self.round - 1, 0)
        self.round = following
        self._snapshots.take(following, mixed - self._start_s, self.params, self.spent)
        self._stopping.after_round(following, step_size, work is not None, self.params)
        self._progress(following)

    def _kept(self, step: int | None = None) -> dict[str, Any]:
        """Return what the run needs to go on from here, as a checkpoint holds it."""
        wall_s = time.perf_counter() - self._start_s
        return {
            "round": self.round,
            "params": self.params,
            "state": self._state,
            "work": self._work.kept(),
            "counts": dataclasses.replace(
                self.counts, rounds=self.counts.rounds if step is None else step, wall_s=wall_s
            ),
            "deadline": self._compute_deadline,
            "exchange": self._exchange.kept(),
            "stopping": self._stopping.kept(),
        }

    def _kept_after_sending(self) -> dict[str, Any]:
        """Return the same in the middle of a round, of which the first half will be gone through again.

        Neighbours may mix the message of this step before and after; with gossip the next is another one. What a
        worker answers its master will be the same once more.
        """
        return self._kept(self.counts.rounds + (self._method.exchange == "gossip"))

    def resume(self, kept: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds, before the first round."""
        self._state = kept["state"]
        self.round = kept["round"]
        self.counts = dataclasses.replace(kept["counts"], setup_s=self.counts.setup_s)
        self._work.restore(kept["work"])
        vars(self._compute_deadline).update(vars(kept["deadline"]))
        self._exchange.restore(kept["exchange"])
        self._stopping.restore(kept["stopping"])

    def _take_down(self, work: FinishedWork | None, times: tuple[float, float, float]) -> None:
        """Record what decided this step, and when."""
        if work is not None:
            self.counts.repeated += work.uses > 0
            work.uses += 1
        if self._events is not None:
            point, shards = (NONE, []) if work is None else (work.point, work.shards)
            self._events.append(self.round, point, self._exchange.steps(), shards)
        if self._timeline is not None:
            self._timeline.append(*times, self._exchange.arrivals())
