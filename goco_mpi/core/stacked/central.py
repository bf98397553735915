"""A master's decoding: the oracle for `goco_mpi.core.methods.central`, its methods, and its conjugate gradients.

Decoding is by a pseudo-inverse whatever the code; P is inverted by elimination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.allreduce import OnMean
from goco_mpi.core.stacked.base import Array, Finished, Step


class StackedCentral(Step):
    """All rows of x are the master's.

    Parameters
    ----------
    x : ndarray of shape (n_workers, n_params)
    shares : sequence of Share, length n_workers
    solver : callable (x, shares, momentum) -> Step
        What is made of the mean gradient.
    momentum : float or None
    code : ndarray of shape (n_workers, n_shards) or None
        Exact encoding weights B; None where gradients are only averaged.
    """

    def __init__(
        self,
        x: Array,
        shares: Sequence[Share],
        solver: Callable[[Array, Sequence[Share], float | None], Step],
        momentum: float | None,
        code: Array | None,
    ) -> None:
        self.x = x.copy()
        self.code = code
        self.solver = solver(self.x, shares, momentum)
        self.n_advanced = 0

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        gradient = self._combine(g, finished)
        if gradient is not None:
            self.solver.advance(np.tile(gradient, (len(g), 1)), np.ones_like(finished), eta, self.n_advanced)
            self.x = self.solver.x
            self.n_advanced += 1

    def _combine(self, g: Array, finished: Finished) -> Array | None:
        if not finished.any():
            return None
        if self.code is None:
            return np.asarray(g[finished].sum(axis=0) / len(g))
        rows = self.code[finished]
        a = np.linalg.pinv(rows.T) @ np.ones(rows.shape[1])
        if np.abs(a @ rows - 1.0).max() > 1e-9:
            return None
        return np.asarray(a @ g[finished] / len(g))


class StackedMasterCg(OnMean):
    """The recurrences of textbooks, with Hessian products that are told by two gradients at a distance of one step."""

    def __init__(self, x: Array, shares: Sequence[Share], momentum: float | None) -> None:
        super().__init__(x, shares, momentum)
        self.p = _first_hessian(shares[0], x[0])
        self.d: Array | None = None
        self.s = 1.0
        self.base: Array = x[0]
        self.residual: Array = x[0]

    def follow(self, at: Array, mean: Array, eta: float) -> Array:
        """Go to the minimum along d, and on along the next."""
        # The Hessian between x and y; the residual at y is the mean.
        hd = None if self.d is None else (mean - self.residual) / self.s
        if self.d is None or hd is None or self.d @ hd <= 0.0:
            self.base, self.residual, self.s = at, mean, 1.0
            return self._aim(-np.asarray(np.linalg.solve(self.p, mean)))
        before = self.residual
        z_before = np.linalg.solve(self.p, before)
        self.s = float(before @ z_before / (self.d @ hd))
        self.base, self.residual = self.base + self.s * self.d, before + self.s * hd
        z = np.linalg.solve(self.p, self.residual)
        beta = float((self.residual - before) @ z / (before @ z_before))
        return self._aim(np.asarray(max(beta, 0.0) * self.d - z))

    def _aim(self, d: Array) -> Array:
        on = self.s * np.linalg.norm(d) > 1e-13 * np.linalg.norm(self.base)
        self.d = d if on else None
        return self.base + self.s * d if on else self.base


def _first_hessian(share: Share, x: Array) -> Array:
    """Return the mean Hessian of the master's shards, with some of its diagonal where rows are few."""
    if not share.n_shards:
        return np.eye(x.size)
    h = share.reweighted(np.full(share.n_shards, 1.0 / share.n_shards)).hessian(x)
    c = np.clip(share.n_params / share.n_rows - 0.25, 0.0, 1.0) if share.n_rows else 0.0
    return np.asarray(h + c * np.diag(np.diag(h)))
