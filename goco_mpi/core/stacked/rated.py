"""Weights by told completion rates on stacked arrays: the oracle for `goco_mpi.core.methods.rated`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from goco_mpi.core.stacked.base import Array, Finished, Links, Step

Weigh = Callable[[int, Array], Array]


class StackedRated(Step):
    """Another step whose gradients are weighed by what each worker knows of all rates, row i of Q.

    Parameters
    ----------
    inner : Step
    links : Links
        Of its own: what is told goes the ways of the messages.
    kind : {'counted', 'ema', 'live'}
    weigh : callable (worker, q) -> ndarray
        The (N/M) a_ik of a worker's shards where the completion rates are q.
    """

    def __init__(self, inner: Step, links: Links, kind: str, weigh: Weigh) -> None:
        self.inner = inner
        self.x = inner.x
        self.links = links
        self.kind = kind
        self.weigh = weigh
        n = len(inner.x)
        self.done: list[Array] = []
        self.q = np.ones((n, n))
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
        return self.weigh(worker, q)

    def work(self, done: Array, t: int) -> None:
        """Take note of the share that each worker did of its gradient."""
        self.done.append(done.copy())

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        self.inner.advance(g, finished, eta, t)
        self.x = self.inner.x
        beta = 0.99 if self.kind == "ema" else 1.0
        powers = beta ** np.arange(t + 1, -1, -1.0)  # one finished round before the first
        rates = powers @ np.vstack([np.ones(len(self.x)), *self.done]) / powers.sum()
        np.fill_diagonal(self.q, 1.0 if self.kind == "live" else rates)
        np.fill_diagonal(self.told, t)
        self.links.deliver(np.hstack([self.told, self.q]), t)
        heard, newest = self.links.newest()
        n = len(self.x)
        for i, table in zip(self.links.dest[heard], newest[heard], strict=True):
            newer = table[:n] > self.told[i]
            self.told[i, newer] = table[:n][newer]
            self.q[i, newer] = table[n:][newer]
