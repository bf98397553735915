"""Chebyshev gossip on stacked arrays: the oracle for `goco_mpi.core.methods.chebyshev`."""

from __future__ import annotations

import math

import numpy as np

from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedChebyshev(Step):
    """X = T_K(W / lambda) V / T_K(1 / lambda), one factor W a round, by the polynomials themselves."""

    def __init__(self, x: Array, links: Links, n_rounds: int, radius: float) -> None:
        self.x = x
        self.links = links
        self.n_rounds = n_rounds
        self.radius = max(radius, 1e-3)
        self.polynomials: list[Array] = []

    def needs_gradient(self, t: int) -> bool:
        """Tell whether a round begins with gradients."""
        return t % self.n_rounds == 0

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        k = t % self.n_rounds
        if k == 0:
            v = self.x - eta * np.where(finished[:, None], g, 0.0)
            self.polynomials = [v, self.links.mix(v, t) / self.radius]
        else:
            before, last = self.polynomials[-2:]
            self.polynomials.append(2.0 * self.links.mix(last, t) / self.radius - before)
        self.x = self.polynomials[-1] / math.cosh((k + 1) * math.acosh(1.0 / self.radius))
