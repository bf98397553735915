"""Weights by told completion rates on stacked arrays: the oracle for `goco_mpi.core.methods.rated`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import betaln

from goco_mpi.core.stacked.base import Array, Finished, Links, Step

Weigh = Callable[[int, Array, float], Array]


class StackedRated(Step):
    """Another step whose gradients are weighed by what each worker knows of all rates, row i of Q.

    Parameters
    ----------
    inner : Step
    links : Links
        Of its own: what is told goes the ways of the messages.
    kind : {'counted', 'ema', 'live'}
    weigh : callable (worker, q, own) -> ndarray
        The (N/M) a_ik of a worker's shards where the completion rates are q, and of its own rounds so many had a
        gradient, those included that its q does not remember.
    """

    def __init__(self, inner: Step, links: Links, kind: str, weigh: Weigh) -> None:
        self.inner = inner
        self.x = inner.x
        self.links = links
        # Edges with the same place among those of their receivers have different ones.
        places = np.arange(len(links.dest)) - np.searchsorted(links.dest, links.dest)
        self.edges = [places == place for place in range(int(places.max(initial=-1)) + 1)]
        self.kind = kind
        self.weigh = weigh
        n = len(inner.x)
        self.done: list[Array] = []
        self.begun = np.zeros(n, dtype=np.int64)  # the first round that each worker remembers
        self.q = np.ones((n, n))
        self.own = np.ones(n)
        self.told = np.full((n, n), -1)

    def weights(self, worker: int, t: int) -> Array:
        """Weigh by the rates that the worker knows of."""
        # Silence of more than 20 rounds before the last one is as so many rounds with nothing done.
        silent = np.maximum(t - 1 - self.told[worker] - 20, 0)
        q = self.q[worker].copy()
        if self.kind == "live":
            q[t - 1 - self.told[worker] > 200] = 0.0
        elif self.kind == "ema":
            q *= 0.99**silent
        else:
            q *= (self.told[worker] + 2) / (self.told[worker] + 2 + silent)
        q[worker] = max(q[worker], self.own[worker])
        return self.weigh(worker, q, self.own[worker])

    def work(self, done: Array, t: int) -> None:
        """Take note of the share that each worker did of its gradient."""
        self.done.append(done.copy())

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        self.inner.advance(g, finished, eta, t)
        self.x = self.inner.x
        beta = 0.99 if self.kind == "ema" else 1.0
        done = np.array(self.done)
        if self.kind == "ema":
            for i in np.flatnonzero(done[t]):
                if _surprising(done[self.begun[i] :, i]):
                    self.begun[i] = t
        rates = np.empty(len(self.x))
        for begun in np.unique(self.begun):
            same = self.begun == begun
            sums, n_rounds = _sums(done[begun:, same], beta)
            rates[same] = sums / n_rounds
        if self.kind == "live":
            rates[:] = 1.0
        else:
            sums, n_rounds = _sums(done, beta)
            self.own = sums / n_rounds
        np.fill_diagonal(self.q, rates)
        np.fill_diagonal(self.told, t)
        self.links.deliver(np.hstack([self.told, self.q]), t)
        heard, newest = self.links.newest()
        for edges in self.edges:
            here = edges & heard
            to, (told, q) = self.links.dest[here], np.split(newest[here], 2, axis=1)
            newer = told > self.told[to]
            self.told[to] = np.where(newer, told, self.told[to])
            self.q[to] = np.where(newer, q, self.q[to])


def _sums(done: Array, beta: float) -> tuple[Array, float]:
    """Return what was finished and how many rounds there were, faded, with one finished round before the first."""
    powers = beta ** np.arange(len(done), -1, -1.0)
    return powers[0] + powers[1:] @ done, float(powers.sum())


def _surprising(done: Array) -> bool:
    """Return whether the past speaks against the gradient finished in the last round, of one worker."""
    idle = np.flatnonzero(done == 0.0)
    run = len(done) if not idle.size else len(done) - 1 - int(idle[-1])
    n, r = _sums(done[: len(done) - run], 0.99)
    if run == 1 and idle.size:
        earlier = np.flatnonzero(done[:-1])
        gap = len(done) - 1 - (int(earlier[-1]) + 1 if earlier.size else 0)
        n_gap, r_gap = _sums(done[: len(done) - 1 - gap], 0.99)
        if betaln(n_gap, r_gap - n_gap + 1 + gap) - betaln(n_gap, r_gap - n_gap + 1) < np.log(1e-4):
            return True
    return bool(r > n and betaln(n + 1 + run, r - n) - betaln(n + 1, r - n) < np.log(1e-4))
