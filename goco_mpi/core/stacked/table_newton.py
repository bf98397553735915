"""Coded table Newton on stacked arrays: the oracle for `goco_mpi.core.methods.table_newton`.

Written from the equations there, with dense solves in the place of factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedNewton(Step):
    """Entries (Z, G) of all workers, of which each knows what has arrived; x = zb - alpha P^-1 gb."""

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        self.x = x.copy()
        self.links = links
        self.shares = shares
        self.w = np.array([share.weight for share in shares])
        self.added = np.zeros_like(x)
        self.first_p = [self._p(i) if self.w[i] else None for i in range(len(shares))]
        self.p = list(self.first_p)
        self.entered = np.zeros(len(x), dtype=bool)
        self.z, self.g = np.zeros_like(x), np.zeros_like(x)
        self.means: list[tuple[Array, Array] | None] = [None] * len(x)
        self.alpha = np.full(len(x), 0.5)
        self.k: list[list[float]] = [[] for _ in shares]
        self.n_entered = np.zeros(len(x), dtype=int)
        self.longest = np.zeros(len(x))
        self.least_gb = np.full(len(x), np.inf)

    def _p(self, i: int) -> Array:
        share = self.shares[i]
        h = share.hessian(self.x[i]) / self.w[i]
        c = np.clip(share.n_params / share.n_rows - 0.25, 0.0, 1.0) if share.n_rows else 0.0
        self.added[i] = c * np.diag(h)
        return np.asarray(h + np.diag(self.added[i]))

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round; ``eta`` plays no part."""
        for i in np.flatnonzero(finished & (self.w > 0.0)).tolist():
            self._enter(i, g[i])
        self.links.deliver(np.hstack([self.entered[:, None], self.z, self.g]), t)
        arrived, newest = self.links.newest()
        n = self.x.shape[1]
        for i in range(len(self.x)):
            edges = np.flatnonzero((self.links.dest == i) & arrived & (newest[:, 0] > 0.0))
            w, z, gradients = self.w[self.links.source[edges]], newest[edges, 1 : 1 + n], newest[edges, 1 + n :]
            if self.entered[i]:
                w, z, gradients = np.append(w, self.w[i]), np.vstack([z, self.z[i]]), np.vstack([gradients, self.g[i]])
            if w.size:
                if w.size > self.n_entered[i]:
                    self.least_gb[i] = np.inf
                self._step(
                    i,
                    (w[:, None] * z).sum(axis=0) / w.sum(),
                    gradients.sum(axis=0) / w.sum(),
                    w.size > self.n_entered[i],
                )
                self.n_entered[i] = w.size

    def _enter(self, i: int, g: Array) -> None:
        self.z[i], self.g[i] = self.x[i], g
        p = self.p[i]
        assert p is not None  # there is weight, hence data
        if not self.shares[i].quadratic:
            self.p[i] = self._p(i)
        elif self.means[i] is None:
            # P d = -g/w; the gradient at x + d is g + w (P - added) d, which is nothing but rounding with c = 0.
            d = -np.linalg.solve(p, g / self.w[i])
            self.z[i] = self.x[i] + d
            self.g[i] = -self.w[i] * self.added[i] * d
        self.entered[i] = True

    def _step(self, i: int, zb: Array, gb: Array, grown: bool) -> None:
        before, self.means[i] = self.means[i], (zb, gb)
        p, first_p, quadratic = self.p[i], self.first_p[i], self.shares[i].quadratic
        if p is None or first_p is None:
            self.x[i] = zb
            return
        norm = float(np.linalg.norm(gb))
        if not quadratic and norm > 1.5 * self.least_gb[i]:
            p = first_p
        self.least_gb[i] = min(self.least_gb[i], norm)
        if before is not None:
            s, y = zb - before[0], gb - before[1]
            # What is not more than rounding is nothing.
            sy, yy, size = float(s @ y), float(y @ np.linalg.solve(p, y)), 1e-24 * float(zb @ p @ zb)
            moved, changed = s @ p @ s > size, yy > size
            if moved or changed:
                self.k[i].append(yy / sy if moved and changed and sy > 0.0 else 4.0)
                self.alpha[i] = np.clip(1.0 / max(self.k[i][-3:]), 0.03, 1.0)
        step = self.alpha[i] * np.linalg.solve(p, gb)
        if not quadratic:
            length = float(np.linalg.norm(step))
            self.longest[i] = max(self.longest[i], length if grown else 0.0)
            step *= min(1.0, self.longest[i] / length) if length else 1.0
        self.x[i] = zb - step
