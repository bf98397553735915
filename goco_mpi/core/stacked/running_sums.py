"""Running sums on stacked arrays: the oracle for `goco_mpi.core.methods.running_sums`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedRunningSums(Step):
    """Mass (z, omega) that splits into equal parts and is never lost; x = z / omega."""

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        self.links = links
        self.share = 1.0 / (1.0 + links.degrees)[:, None]
        self.mass = np.hstack([x, np.ones((len(x), 1))])
        self.sigma = np.zeros_like(self.mass)
        self.rho = np.zeros((len(links.dest), self.mass.shape[1]))
        self.x = x

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        mass = self.mass.copy()
        mass[:, :-1] -= eta * mass[:, -1:] * g
        splits = mass[:, -1:] >= 1e-6
        part = np.where(splits, self.share, 1.0) * mass
        self.sigma = self.sigma + splits * part
        self.links.deliver(self.sigma, t)
        heard, newest = self.links.newest()
        sigma = np.where(heard[:, None], newest, self.rho)
        self.mass = part + self.links.collect(sigma - self.rho)
        self.rho = sigma
        self.x = self.mass[:, :-1] / self.mass[:, -1:]

    def lose(self, who: Finished) -> None:
        """Begin anew from the parameters, with weight 1."""
        self.share = 1.0 / (1.0 + self.links.degrees)[:, None]
        self.mass[who] = np.hstack([self.x[who], np.ones((np.count_nonzero(who), 1))])
        self.sigma[who] = 0.0
        self.rho[who[self.links.dest]] = 0.0

    def total(self) -> Array:
        """Return all mass, that on edges included, shape (n_params + 1,)."""
        return np.asarray(self.mass.sum(axis=0) + (self.sigma[self.links.source] - self.rho).sum(axis=0))
