"""Deaths on stacked arrays: the oracle for what a run does when ranks die.

Who dies and who hears of it when is scripted. A worker that has heard of a death neither mixes the dead nor sends to
them; of a method that begins anew it mixes only those who have heard of as many deaths as itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from goco_mpi.core.stacked.base import Array, Finished, Links, Step
from goco_mpi.core.stragglers import StragglerModel

NEVER = 2**62


@dataclass(frozen=True, eq=False)
class Deaths:
    """A script of deaths.

    Attributes
    ----------
    dies : mapping of int to int
        The first round in which each of the dead sends nothing.
    noticed : ndarray of int, shape (n_workers, n_workers)
        The first round in which worker i goes on without worker k; ``NEVER`` for those who live.
    """

    dies: Mapping[int, int]
    noticed: NDArray[np.int64]

    def lost(self, t: int) -> NDArray[np.bool_]:
        """Return whether worker i goes on without worker k in round ``t``, shape (n_workers, n_workers)."""
        return np.asarray(self.noticed <= t)


class MortalLinks(Links):
    """The messages where workers die.

    Parameters
    ----------
    mixing_matrix, stragglers, rule, max_age
        As of `Links`.
    deaths : Deaths
    restarts : bool
        Whether the method begins anew.
    """

    def __init__(
        self,
        mixing_matrix: sp.csr_array,
        stragglers: StragglerModel,
        rule: str,
        max_age: int,
        deaths: Deaths,
        restarts: bool,
    ) -> None:
        super().__init__(mixing_matrix, stragglers, rule, max_age)
        self.perfect = False
        self._deaths = deaths
        self._restarts = restarts
        self._last_lost = np.zeros(len(self.dest), dtype=np.int64)
        self._round = 0
        self._usable = np.ones(len(self.dest), dtype=bool)

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Neighbours of each worker that it has not lost."""
        there = ~self._deaths.lost(self._round)[self.dest, self.source]
        return np.bincount(self.dest[there], minlength=self.matrix.shape[0])

    def begin(self, t: int) -> None:
        """Let round ``t`` begin."""
        self._round = t

    def deliver(self, messages: Array, t: int) -> None:
        """Let this round's messages arrive, be lost, or not be sent any more."""
        if self.last is None:
            self.last = np.zeros((len(self.dest), messages.shape[1]))
        arrived = self.stragglers.arriving(self.source, self.dest, t)
        for worker, last in self._deaths.dies.items():
            if t >= last:
                arrived &= self.source != worker
        lost = self._deaths.lost(t)
        self.last[arrived] = messages[self.source[arrived]]
        self.last_round[arrived] = t
        counts = lost.sum(axis=1)
        self._last_lost[arrived] = counts[self.source[arrived]]
        self._usable = ~lost[self.dest, self.source]
        if self._restarts:
            self._usable &= self._last_lost == counts[self.dest]

    def mix(self, v: Array, t: int) -> Array:
        """Return each worker's own v averaged with what it has of its neighbours and may use."""
        assert self.last is not None
        fresh = self._usable & (t - self.last_round <= self.max_age)
        weights = self._on_edges(np.where(fresh, self.weight, 0.0))
        return np.asarray((1.0 - weights.sum(axis=1))[:, None] * v + weights @ self.last[:, : v.shape[1]])

    def newest(self) -> tuple[NDArray[np.bool_], Array]:
        """Return for each edge whether there is something that may be used, and what."""
        assert self.last is not None
        return (self.last_round >= 0) & self._usable, self.last


class StackedDeaths(Step):
    """A method whose workers die.

    Parameters
    ----------
    step : Step
        On ``links``.
    links : MortalLinks
    deaths : Deaths
    weigh : callable (list of int) -> ndarray of shape (n_workers, n_shards)
        (N/M) a_ik of all workers without these.
    held : ndarray of bool, shape (n_workers, n_shards)
    """

    def __init__(
        self,
        step: Step,
        links: MortalLinks,
        deaths: Deaths,
        weigh: Callable[[list[int]], Array],
        held: NDArray[np.bool_],
    ) -> None:
        self._step = step
        self._links = links
        self._deaths = deaths
        self._weigh = weigh
        self._held = held
        self.x = step.x
        self.steps = step.steps

    def weights(self, worker: int, t: int) -> Array | None:
        """Return what a gradient is taken with: it begins before its worker can hear of this round's deaths."""
        lost = np.flatnonzero(self._deaths.lost(t - 1)[worker])
        if not lost.size or t >= self._deaths.dies.get(worker, NEVER):
            return None
        return np.asarray(self._weigh(lost.tolist())[worker, self._held[worker]])

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round, anew for those who have just heard of a death."""
        self._links.begin(t)
        who = (self._deaths.noticed == t).any(axis=1)
        if who.any():
            self._step.lose(who)
        self._step.advance(g, finished, eta, t)
        self.x = self._step.x
