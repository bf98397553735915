"""Who is late: logical stragglers (work is dropped, nothing sleeps) and real ones (work lasts).

All draws come from counter-based streams, so the same seed slows the same workers in the same
rounds whatever the method, the number of processes, or who asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError, check_range

KINDS = ("none", "bernoulli", "persistent", "slow", "delays")
DISTRIBUTIONS = ("exponential", "pareto", "constant")


@dataclass(frozen=True)
class StragglerModel:
    """One description of lateness for all workers.

    Attributes
    ----------
    kind : str
        ``none``; logical: ``bernoulli`` (a worker misses a round with probability p),
        ``persistent`` (chosen workers finish every ``factor``-th round only); real: ``slow``
        (chosen workers' gradients last ``factor`` times as long), ``delays`` (random ones only).
    n_workers, seed : int
    p : float
        Probability of the Bernoulli stragglers (and of the unchosen workers of ``persistent``), in [0, 1).
    ranks : tuple of int
        The chosen workers of ``persistent`` and ``slow``.
    factor : float
        How much slower those are, at least 1.
    work_s : float
        Seconds that every worker's gradient lasts at least.
    delay_p : float
        Probability that a worker which is not among ``ranks`` is delayed in a round (real kinds).
    delay_s : float
        Mean of such a delay in seconds.
    distribution : str
        ``exponential``, ``pareto`` (shape 2) or ``constant``.
    link_p : float
        Probability that a message is lost on arrival (logical; any kind), in [0, 1).
    paired_links : bool
        Whether a message also counts as lost where the one in the other direction is.
    abandons : bool
        Whether a worker leaves a gradient unfinished once the others go on, so that a slow one never finishes.
    """

    kind: str
    n_workers: int
    seed: int = 0
    p: float = 0.0
    ranks: tuple[int, ...] = ()
    factor: float = 1.0
    work_s: float = 0.0
    delay_p: float = 0.0
    delay_s: float = 0.0
    distribution: str = "exponential"
    link_p: float = 0.0
    paired_links: bool = False
    abandons: bool = False
    _slow: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("stragglers.delay_p", self.delay_p, 0.0, 1.0)
        for name, value in (("p", self.p), ("link_p", self.link_p)):
            if not 0.0 <= value < 1.0:
                raise InputError(
                    f"stragglers.{name} must be at least 0 and below 1. Got {value:g}. "
                    "At 1 nothing would ever arrive; 0.9 is already very late."
                )
        chosen = self.ranks if self.kind in ("persistent", "slow") else ()
        for rank in chosen:
            check_range("stragglers.ranks", rank, 0, self.n_workers - 1, f"There are {self.n_workers} workers.")
        object.__setattr__(self, "_slow", frozenset(chosen))

    def finishes(self, worker: int, round_: int) -> bool:
        """Tell whether a logical straggler finishes its gradient in this round."""
        if self.kind == "persistent" and worker in self._slow:
            return not math.isinf(self.factor) and (round_ + 1) % max(1, round(self.factor)) == 0
        if self.kind in ("bernoulli", "persistent") and self.p > 0.0:
            return bool(stream(self.seed, Purpose.STRAGGLER, worker, round_).random() >= self.p)
        return True

    def shards_finished(self, worker: int, round_: int, n_held: int) -> int:
        """Return how many of its ``n_held`` shards a logical straggler finishes in this round.

        A worker that misses a round at random was stopped somewhere on the way; a persistent one is
        still busy with an earlier gradient, of which nothing is ready.
        """
        if self.finishes(worker, round_):
            return n_held
        if self.kind == "persistent" and worker in self._slow:
            return 0
        return int(stream(self.seed, Purpose.SHARD_ORDER, worker, round_).random() * n_held)

    def shard_order(self, worker: int, round_: int, n_held: int) -> list[int]:
        """Return the random order in which a worker goes through its shards, should it not finish."""
        rng = stream(self.seed, Purpose.SHARD_ORDER, worker, round_)
        rng.random()  # how many it finishes
        return [int(place) for place in rng.permutation(n_held)]

    def arrives(self, source: int, dest: int, round_: int) -> bool:
        """Tell whether the message of this round from ``source`` to ``dest`` is not lost."""
        if self.link_p == 0.0:
            return True
        there = self._passes(source, dest, round_)
        return there and (not self.paired_links or self._passes(dest, source, round_))

    def _passes(self, source: int, dest: int, round_: int) -> bool:
        edge = (source << 32) + dest  # the same stream whatever the number of workers
        return bool(stream(self.seed, Purpose.LINK, edge, round_).random() >= self.link_p)

    def duration_s(self, worker: int, round_: int) -> float:
        """Return how long the gradient of this round lasts at least, in seconds (real kinds)."""
        if worker in self._slow and self.kind == "slow":
            return self.work_s * self.factor
        duration = self.work_s
        if self.kind in ("slow", "delays") and self.delay_p > 0.0:
            rng = stream(self.seed, Purpose.DELAY, worker, round_)
            if rng.random() < self.delay_p:
                duration += self.delay_s * self._unit_delay(rng)
        return duration

    def _unit_delay(self, rng: np.random.Generator) -> float:
        """Draw a delay of mean 1."""
        if self.distribution == "exponential":
            return float(rng.exponential())
        if self.distribution == "pareto":
            return float(rng.pareto(2.0))  # Lomax with shape 2 has mean 1
        return 1.0

    @property
    def _cut_p(self) -> float:
        """How often a learned deadline cuts a delayed gradient: it is a multiple of the median, delays included."""
        return self.delay_p if self.delay_p < 0.5 else 0.0

    @property
    def _rounds_of_slow(self) -> float:
        """In how many rounds a chosen worker finishes one gradient."""
        return math.inf if self.kind == "slow" and self.abandons else self.factor

    def scripted(self) -> StragglerModel:
        """Return a logical model that stands for a real one where no time passes.

        A slow worker becomes one that finishes every ``factor``-th round, or none where it abandons them; random
        delays, which a deadline cuts, become Bernoulli misses of the same probability.
        """
        if self.kind == "slow":
            return replace(self, kind="persistent", p=self._cut_p, factor=self._rounds_of_slow)
        if self.kind == "delays":
            return replace(self, kind="bernoulli", p=self._cut_p)
        return self

    def completion_rates(self, n_held: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Return q_i, the share of rounds in which each worker finishes, shape (n_workers,).

        Parameters
        ----------
        n_held : ndarray of shape (n_workers,), optional
            Shards of each worker, where those finished by the deadline count (`shards_finished`): the
            share of rounds in which it finishes one given shard, then.
        """
        rates = np.ones(self.n_workers)
        missed = self.p if self.kind in ("bernoulli", "persistent") else 0.0
        if self.kind in ("slow", "delays"):
            missed = self._cut_p
        rates -= missed
        if n_held is not None:
            rates += missed * np.where(n_held > 0, (n_held - 1) / (2 * np.maximum(n_held, 1)), 0.0)
        if self.kind in ("persistent", "slow"):
            slow = self._rounds_of_slow
            rates[list(self.ranks)] = 0.0 if math.isinf(slow) else 1.0 / max(1, round(slow))
        return rates
