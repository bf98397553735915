"""Quasi-global momentum on stacked arrays: the oracle for `goco_mpi.core.methods.momentum`."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedMomentum(Step):
    """X+ = W (X - eta (G + beta M)) ; M <- beta M + (1 - beta) (X - X+) / eta."""

    def __init__(self, x: Array, links: Links, beta: float) -> None:
        self.x = x
        self.links = links
        self.beta = beta
        self.m = np.zeros_like(x)

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round; who has no gradient, not even an earlier one, does not move by its momentum either."""
        moves = finished | g.any(axis=1)
        v = self.x - eta * moves[:, None] * (g + self.beta * self.m)
        if not self.links.perfect:
            self.links.deliver(v, t)
        x = self.links.mix(v, t)
        self.m = self.beta * self.m + (1.0 - self.beta) * (self.x - x) / eta
        self.x = x
