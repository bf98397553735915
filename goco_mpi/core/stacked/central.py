"""A master's decoding and solvers: the oracle for `goco_mpi.core.methods.central`, its methods, and `core.solvers`.

Decoding is by elimination whatever the code, and conjugate gradients have the pooled Hessian itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Step


class StackedCentral(Step):
    """All rows of x are the master's.

    Parameters
    ----------
    x : ndarray of shape (n_workers, n_params)
    shares : sequence of Share, length n_workers
    solver : {'descent', 'nesterov', 'cg'}
    code : ndarray of shape (n_workers, n_shards) or None
        Exact encoding weights B; None where gradients are only averaged.
    """

    def __init__(self, x: Array, shares: Sequence[Share], solver: str, code: Array | None) -> None:
        self.x = x.copy()
        self.solver = solver
        self.code = code
        self.y = self.x_before = self.x_now = x[0].copy()
        self.theta: float = 1.0
        self.d: Array | None = None
        self.s = 1.0
        if solver == "cg":
            assert code is not None
            self.h, self.p = _hessians(shares, code, x[0])

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        gradient = self._combine(g, finished)
        if gradient is None:
            return
        if self.solver == "descent":
            self.y = self.y - eta * gradient
        elif self.solver == "nesterov":
            self._accelerate(gradient, eta)
        else:
            self._conjugate(gradient)
        self.x = np.tile(self.y, (len(self.x), 1))

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

    def _accelerate(self, gradient: Array, eta: float) -> None:
        self.x_before, self.x_now = self.x_now, self.y - eta * gradient
        if gradient @ (self.x_now - self.x_before) > 0.0:
            self.theta = 1.0
        theta_next = 0.5 + math.sqrt(0.25 + self.theta**2)
        self.y = self.x_now + (self.theta - 1.0) / theta_next * (self.x_now - self.x_before)
        self.theta = theta_next

    def _conjugate(self, gradient: Array) -> None:
        if self.d is None:
            self.x_now, self.residual, self.s = self.y, gradient, 1.0
            self._aim(-np.asarray(np.linalg.solve(self.p, gradient)))
            return
        # The gradient was taken a trial step further; what was meant is known from it and the Hessian.
        self.residual = gradient - self.s * (self.h @ self.d)
        rz = self.residual @ np.linalg.solve(self.p, self.residual)
        curvature = self.d @ self.h @ self.d
        alpha = float(rz / curvature)
        residual = self.residual + alpha * (self.h @ self.d)
        z = np.linalg.solve(self.p, residual)
        beta = float(z @ (residual - self.residual) / rz) if rz else 0.0
        self.x_now, self.residual, self.s = self.x_now + alpha * self.d, residual, alpha
        self._aim(np.asarray(max(beta, 0.0) * self.d - z))

    def _aim(self, d: Array) -> None:
        if self.s * np.linalg.norm(d) > 1e-13 * np.linalg.norm(self.x_now):
            self.d, self.y = d, self.x_now + self.s * d
        else:
            self.d, self.y = None, self.x_now


def _hessians(shares: Sequence[Share], code: Array, x: Array) -> tuple[Array, Array]:
    """Return the Hessian of F, and of the mean of the master's shards, with some of its diagonal where rows are few."""
    held = code != 0.0
    each = held / held.sum(axis=0) * len(code) / code.shape[1]
    parts = [share.reweighted(each[i, held[i]]).hessian(x) for i, share in enumerate(shares) if share.n_shards]
    first = shares[0]
    if not first.n_shards:
        return np.asarray(np.sum(parts, axis=0) / len(code)), np.eye(x.size)
    p = first.reweighted(np.full(first.n_shards, 1.0 / first.n_shards)).hessian(x)
    c = np.clip(first.n_params / first.n_rows - 0.25, 0.0, 1.0) if first.n_rows else 0.0
    return np.asarray(np.sum(parts, axis=0) / len(code)), np.asarray(p + c * np.diag(np.diag(p)))
