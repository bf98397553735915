"""The round loop, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods import Method
from goco_mpi.core.objectives import Objective, WeightedRows
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.engine.deadline import Deadline
from goco_mpi.engine.exchange import Exchange

Array = NDArray[np.float64]

SLICE_S = 5e-4
"""How long injected work sleeps between two looks at the messages."""
BEHIND = 2
"""Rounds that the neighbours are ahead when a rank gossips in the middle of its gradient."""
UNBOUNDED = 1e200
"""Squared norm of the parameters beyond which the run has diverged."""
SNAPSHOT_BYTES = 64 << 20
"""Memory for snapshots; with more of them, every other one is dropped."""


@dataclass
class RunCounts:
    """What a rank's round loop did.

    Attributes
    ----------
    rounds : int
        Rounds gone through, those without a gradient of its own included.
    gradients : int
        Gradients finished and used.
    late_gradients : int
        Gradients dropped at the deadline, or by a straggler script.
    jumped : int
        Rounds skipped to catch up with the neighbours, between two gradients.
    compute_s, wait_s, wall_s : float
        Seconds in gradients, in waiting for neighbours, and in all.
    """

    rounds: int = 0
    gradients: int = 0
    late_gradients: int = 0
    jumped: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    wall_s: float = 0.0


@dataclass
class Snapshots:
    """Copies of the parameters every so many rounds, evaluated after the loop."""

    every: int
    rounds: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    params: list[Array] = field(default_factory=list)

    def take(self, round_: int, time_s: float, params: Array) -> None:
        """Keep a copy if this is the first time at or past the next multiple of ``every``."""
        due = round_ - round_ % self.every
        if self.rounds and self.rounds[-1] >= due:
            return
        if len(self.params) >= max(16, SNAPSHOT_BYTES // params.nbytes):
            self.thin(2 * self.every)
        self._append(due, time_s, params)

    def finish(self, round_: int, time_s: float, params: Array) -> None:
        """Keep the final parameters as those of the last round, whatever was kept before."""
        if self.rounds and self.rounds[-1] == round_:
            for kept in (self.rounds, self.times_s, self.params):
                kept.pop()
        self._append(round_, time_s, params)

    def thin(self, every: int) -> None:
        """Keep only multiples of ``every``, a multiple of the present interval, and the last."""
        self.every = every
        keep = [i for i, r in enumerate(self.rounds) if r % every == 0 or i == len(self.rounds) - 1]
        self.rounds = [self.rounds[i] for i in keep]
        self.times_s = [self.times_s[i] for i in keep]
        self.params = [self.params[i] for i in keep]

    def _append(self, round_: int, time_s: float, params: Array) -> None:
        self.rounds.append(round_)
        self.times_s.append(time_s)
        self.params.append(params.copy())


class RoundLoop:
    """One rank's rounds: compute, exchange, mix.

    Parameters
    ----------
    rank : int
    objective : Objective
    rows : WeightedRows
        This rank's coded rows.
    method : Method
    exchange : Exchange
    step_size : StepSchedule
    stragglers : StragglerModel
    waits : bool
        Whether everyone waits for logical stragglers, so that no gradient is dropped.
    compute_deadline : Deadline
    n_rounds : int
    snapshots : Snapshots
    progress : callable (round) -> None
        Called after every round; must be quick.
    """

    def __init__(
        self,
        rank: int,
        objective: Objective,
        rows: WeightedRows,
        method: Method,
        exchange: Exchange,
        step_size: StepSchedule,
        stragglers: StragglerModel,
        waits: bool,
        compute_deadline: Deadline,
        n_rounds: int,
        snapshots: Snapshots,
        progress: Callable[[int], None],
    ) -> None:
        self._rank = rank
        self._objective = objective
        self._rows = rows
        self._method = method
        self._exchange = exchange
        self._step_size = step_size
        self._stragglers = stragglers
        self._waits = waits
        self._compute_deadline = compute_deadline
        self._n_rounds = n_rounds
        self._snapshots = snapshots
        self._progress = progress
        self._start = 0.0
        self.counts = RunCounts()
        self.round = 0
        self.params = np.zeros(objective.n_params)
        self._point = np.zeros_like(self.params)
        self._gradient = np.zeros_like(self.params)
        self._exchanged = np.zeros_like(self.params)

    def run(self) -> bool:
        """Go through the rounds from zero; ``params`` and ``round`` are where they end.

        Returns
        -------
        bool
            Whether this rank's parameters grew without bound.
        """
        self._start = time.perf_counter()
        self._snapshots.take(0, 0.0, self.params)
        diverged = False
        while not (self._over() or diverged):
            gradient = self._compute()
            if self._over():
                break
            self._gossip(gradient)
            # Far below overflow, and false for NaN: nothing computed from it warns.
            diverged = not float(self.params @ self.params) < UNBOUNDED
            self._progress(self.round)
        self.counts.wall_s = time.perf_counter() - self._start
        self._snapshots.finish(self._n_rounds, self.counts.wall_s, self.params)
        return diverged

    def _over(self) -> bool:
        return self._exchange.failed or self.round >= self._n_rounds

    def _gossip(self, gradient: Array | None, wait: bool = True) -> None:
        """Take the local step, exchange, mix, and go on to the next round.

        That is the newest round heard of, where the neighbours are further than the next.
        """
        step_size = self._step_size(self.round)
        self._method.local_step(self.params, gradient, step_size, self._exchange.blank())
        self._exchange.offer(self.round)
        if wait:
            start = time.perf_counter()
            self._exchange.wait(self.round)
            self.counts.wait_s += time.perf_counter() - start
        self._exchange.result(self.round, self._exchanged)
        self._method.combine(self.params, self._exchanged, step_size, self.params)
        following = max(self.round + 1, self._exchange.newest_round)
        self.counts.rounds += 1
        self.counts.jumped += following - self.round - 1
        self.round = following
        self._snapshots.take(following, time.perf_counter() - self._start, self.params)

    def _compute(self) -> Array | None:
        """Return the coded gradient at the present parameters, or None if it is late.

        A rank that falls behind while it computes goes on gossiping its unchanged vector, so
        that its neighbours do not mix with an old one: rounds pass and the parameters change
        meanwhile, and the gradient is applied to them when it is ready. It takes part in the
        neighbours' newest round then, and does not go past it: only finished work moves the
        network's rounds on.
        """
        start = time.perf_counter()
        deadline = start + self._compute_deadline.seconds
        finished = self._waits or self._stragglers.finishes(self._rank, self.round)
        np.copyto(self._point, self.params)
        for _ in self._work(start + self._stragglers.duration_s(self._rank, self.round)):
            self._exchange.drain()
            newest_round = self._exchange.newest_round
            if newest_round >= self.round + BEHIND:
                self.round = newest_round
                if not self._over():
                    self._gossip(None, wait=False)
                    self.round = newest_round
            if self._over() or time.perf_counter() >= deadline:
                finished = False
                break
        seconds = time.perf_counter() - start
        self.counts.compute_s += seconds
        # One that was cut counts as what it lasted until then; see `Deadline.observe`.
        self._compute_deadline.observe(seconds)
        self.counts.gradients += finished
        self.counts.late_gradients += not finished
        return self._gradient if finished else None

    def _work(self, until: float) -> Iterator[None]:
        """Yield between blocks of the gradient, then between slices of injected sleep."""
        yield from self._objective.gradient_blocks(self._point, self._rows, self._gradient)
        while (left := until - time.perf_counter()) > 0.0:
            time.sleep(min(SLICE_S, left))
            yield
