"""Coded push-pull on stacked arrays: the oracle for `goco_mpi.core.methods.push_pull`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedPushPull(Step):
    """Y tracks the mean of the memories M; running sums Sigma carry it over the edges."""

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        self.x = x
        self.links = links
        self.share = 1.0 / (1.0 + links.degrees)[:, None]
        self.m, self.y, self.sigma, self.inflow = (np.zeros_like(x) for _ in range(4))
        self.rho = np.zeros((len(links.dest), x.shape[1]))

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        m = np.where(finished[:, None], g, self.m)
        flow = self.share * (self.y + m - self.m)
        self.m = m
        self.sigma = self.sigma + flow
        self.y = flow + self.inflow
        v = self.x - eta * self.y
        self.links.deliver(np.hstack([v, self.sigma]), t)
        self.x = self.links.mix(v, t)
        heard, newest = self.links.newest()
        sigma = np.where(heard[:, None], newest[:, v.shape[1] :], self.rho)
        self.inflow = self.links.collect(sigma - self.rho)
        self.rho = sigma

    def lose(self, who: Finished) -> None:
        """Begin to track anew, from the gradient memory."""
        self.share = 1.0 / (1.0 + self.links.degrees)[:, None]
        self.y[who] = self.m[who]
        self.sigma[who] = self.inflow[who] = 0.0
        self.rho[who[self.links.dest]] = 0.0

    def in_flight(self) -> Array:
        """Return the tracked mass that is on edges, or not yet taken in, shape (n_params,)."""
        return np.asarray((self.sigma[self.links.source] - self.rho).sum(axis=0) + self.inflow.sum(axis=0))
