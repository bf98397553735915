"""Who is late: logical stragglers (work is dropped, nothing sleeps) and real ones (work lasts).

All draws come from counter-based streams, so the same seed slows the same workers in the same
rounds whatever the method, the number of processes, or who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, edge_uniforms, stream, uniform, uniforms
from goco_mpi.errors import InputError, check_range

KINDS = ("none", "bernoulli", "persistent", "slow", "delays")
DISTRIBUTIONS = ("exponential", "pareto", "constant")

Array = NDArray[np.float64]


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
    p : float or tuple of float, length n_workers
        Probability of the Bernoulli stragglers (and of the unchosen workers of ``persistent``), of all or of
        each, in [0, 1); 1 among several is a dead worker, which never finishes anything.
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
    link_p : float or tuple of float, length n_workers
        Probability that a message is lost on arrival (logical; any kind), of all or by the worker that sends it,
        in [0, 1).
    paired_links : bool
        Whether a message also counts as lost where the one in the other direction is.
    """

    kind: str
    n_workers: int
    seed: int = 0
    p: float | tuple[float, ...] = 0.0
    ranks: tuple[int, ...] = ()
    factor: float = 1.0
    work_s: float = 0.0
    delay_p: float = 0.0
    delay_s: float = 0.0
    distribution: str = "exponential"
    link_p: float | tuple[float, ...] = 0.0
    paired_links: bool = False
    _slow: frozenset[int] = field(init=False, repr=False)
    _missed: Array = field(init=False, repr=False, compare=False)
    _lost: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_range("stragglers.delay_p", self.delay_p, 0.0, 1.0)
        # What the kind does not use is not looked at: kind = "none" turns stragglers off on any number of workers.
        logical = self.kind in ("bernoulli", "persistent")
        missed = _by_worker("p", self.p, self.n_workers if logical else None, dead="never finishes")
        object.__setattr__(self, "_missed", missed if logical else np.zeros(self.n_workers))
        object.__setattr__(self, "_lost", _by_worker("link_p", self.link_p, self.n_workers))
        chosen = self.ranks if self.kind in ("persistent", "slow") else ()
        for rank in chosen:
            check_range("stragglers.ranks", rank, 0, self.n_workers - 1, f"There are {self.n_workers} workers.")
        object.__setattr__(self, "_slow", frozenset(chosen))

    @property
    def lossy(self) -> bool:
        """Whether messages are lost at all."""
        return bool(self._lost.any())

    def finishes(self, worker: int, round_: int) -> bool:
        """Tell whether a logical straggler finishes its gradient in this round."""
        if self.kind == "persistent" and worker in self._slow:
            return (round_ + 1) % self._period == 0
        p = self._missed[worker]
        return bool(p == 0.0 or uniform(self.seed, Purpose.STRAGGLER, round_, worker) >= p)

    def finishing(self, round_: int) -> NDArray[np.bool_]:
        """Return `finishes` of all workers, shape (n_workers,)."""
        finished = np.ones(self.n_workers, dtype=bool)
        if self._missed.any():
            finished = uniforms(self.seed, Purpose.STRAGGLER, round_, self.n_workers) >= self._missed
        if self.kind == "persistent":
            finished[list(self._slow)] = (round_ + 1) % self._period == 0
        return finished

    @property
    def _period(self) -> int:
        return max(1, round(self.factor))

    def shards_finished(self, worker: int, round_: int, n_held: int) -> int:
        """Return how many of its ``n_held`` shards a logical straggler finishes in this round.

        A worker that misses a round at random was stopped somewhere on the way; a persistent one is
        still busy with an earlier gradient, of which nothing is ready. A dead one finishes nothing.
        """
        if self.finishes(worker, round_):
            return n_held
        if (self.kind == "persistent" and worker in self._slow) or self._missed[worker] == 1.0:
            return 0
        return int(uniform(self.seed, Purpose.SHARD_ORDER, round_, worker) * n_held)

    def shard_order(self, worker: int, round_: int, n_held: int) -> list[int]:
        """Return the random order in which a worker goes through its shards, should it not finish."""
        places = np.arange(n_held)
        numbers = edge_uniforms(self.seed, Purpose.SHARD_ORDER, round_, np.full(n_held, worker), places)
        return [int(place) for place in np.argsort(numbers, kind="stable")]

    def shards_in_time(self, worker: NDArray[np.int64], place: NDArray[np.int64], round_: int) -> NDArray[np.bool_]:
        """Return which of all workers' shards are among the `shards_finished` first of their `shard_order`.

        Parameters
        ----------
        worker : ndarray of shape (n_copies,)
            Who holds each copy of a shard, ascending.
        place : ndarray of shape (n_copies,)
            Its place among that worker's shards: 0, 1, ...
        round_ : int

        Returns
        -------
        ndarray of bool, shape (n_copies,)
        """
        n_held = np.bincount(worker, minlength=self.n_workers)
        n_finished = (uniforms(self.seed, Purpose.SHARD_ORDER, round_, self.n_workers) * n_held).astype(np.int64)
        n_finished[self._missed == 1.0] = 0
        if self.kind == "persistent":
            n_finished[list(self._slow)] = 0
        n_finished = np.where(self.finishing(round_), n_held, n_finished)
        numbers = edge_uniforms(self.seed, Purpose.SHARD_ORDER, round_, worker, place)
        # Sorted by worker and number, the copies of a worker stay in the block that they were in.
        drawn = np.empty_like(place)
        drawn[np.lexsort((numbers, worker))] = place
        return np.asarray(drawn < n_finished[worker])

    def arrives(self, source: int, dest: int, round_: int) -> bool:
        """Tell whether the message of this round from ``source`` to ``dest`` is not lost."""
        return not self.lossy or bool(self.arriving(np.array([source]), np.array([dest]), round_)[0])

    def arriving(self, source: NDArray[np.int64], dest: NDArray[np.int64], round_: int) -> NDArray[np.bool_]:
        """Return `arrives` of many messages, shaped like ``source`` and ``dest``."""
        there = self._passing(source, dest, round_)
        return there & self._passing(dest, source, round_) if self.paired_links else there

    def _passing(self, source: NDArray[np.int64], dest: NDArray[np.int64], round_: int) -> NDArray[np.bool_]:
        return np.asarray(edge_uniforms(self.seed, Purpose.LINK, round_, source, dest) >= self._lost[source])

    def without_seconds(self) -> StragglerModel:
        """Return the model without the lateness that lasts: for costs that have it in them already."""
        return replace(self, kind="none" if self.kind in ("slow", "delays") else self.kind, work_s=0.0)

    def slowness(self, worker: int) -> float:
        """Return how many times as long as usual a worker's own computing takes, where time is simulated."""
        return self.factor if self.kind == "slow" and worker in self._slow else 1.0

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

    def scripted(self) -> StragglerModel:
        """Return a logical model that stands for a real one where no time passes.

        A slow worker becomes one that finishes every ``factor``-th round; random delays, which
        a deadline cuts, become Bernoulli misses of the same probability.
        """
        if self.kind == "slow":
            return replace(self, kind="persistent", p=self._cut_p)
        if self.kind == "delays":
            return replace(self, kind="bernoulli", p=self._cut_p)
        return self

    def completion_rates(self, n_held: NDArray[np.intp] | None = None) -> Array:
        """Return q_i, the share of rounds in which each worker finishes, shape (n_workers,).

        Parameters
        ----------
        n_held : ndarray of shape (n_workers,), optional
            Shards of each worker, where those finished by the deadline count (`shards_finished`): the
            share of rounds in which it finishes one given shard, then.
        """
        rates = np.ones(self.n_workers)
        missed = self._missed
        if self.kind in ("slow", "delays"):
            missed = np.full(self.n_workers, self._cut_p)
        rates -= missed
        if n_held is not None:
            parts = np.where(n_held > 0, (n_held - 1) / (2 * np.maximum(n_held, 1)), 0.0)
            rates += np.where(missed < 1.0, missed, 0.0) * parts
        if self.kind in ("persistent", "slow"):
            rates[list(self.ranks)] = 1.0 / self._period
        return rates


def _by_worker(name: str, given: float | Sequence[float], n_workers: int | None, dead: str = "") -> Array:
    """Check a probability of all workers or of each, and return that of each, shape (n_workers,).

    Of each, 1 is allowed where ``dead`` says what it means. With None for ``n_workers`` any length will do.
    """
    values = np.asarray(given, dtype=np.float64)
    several = values.ndim > 0
    if several and n_workers is not None and len(values) != n_workers:
        raise InputError(
            f"stragglers.{name} must be one number or one for each worker, and there are {n_workers} workers. "
            f"Got {len(values)} numbers."
        )
    allowed = (values >= 0.0) & ((values <= 1.0) if several and dead else (values < 1.0))
    if not allowed.all():
        wrong = values[~allowed].ravel()[0]
        raise InputError(
            f"stragglers.{name} must be at least 0 and below 1. Got {wrong:g}. At 1 nothing would ever arrive; 0.9 is "
            "already very late."
            + (f" In a list with one number for each worker, 1 is one that {dead}." if dead else "")
        )
    return values if n_workers is None else np.broadcast_to(values, (n_workers,))
