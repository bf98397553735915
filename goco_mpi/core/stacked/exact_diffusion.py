"""Exact diffusion on stacked arrays: the oracle for `goco_mpi.core.methods.exact_diffusion`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedExactDiffusion(Step):
    """X <- (I + W)/2 (Psi + X - Psi_before)."""

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        self.x = x
        self.links = links
        self.m = np.zeros_like(x)
        self.psi: Array | None = None
        self.fresh = np.ones(len(x), dtype=bool)

    def lose(self, who: Finished) -> None:
        """Begin anew as in the first round."""
        self.fresh |= who

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        self.m = np.where(finished[:, None], g, self.m)
        psi = self.x - eta * self.m
        phi = psi if self.psi is None else np.where(self.fresh[:, None], psi, psi + self.x - self.psi)
        self.psi = psi
        self.fresh[:] = False
        if not self.links.perfect:
            self.links.deliver(phi, t)
        self.x = 0.5 * (phi + self.links.mix(phi, t))
