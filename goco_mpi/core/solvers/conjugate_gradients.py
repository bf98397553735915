"""Preconditioned conjugate gradients for quadratic losses, with one gradient a round and no Hessian product.

    y = x + s d                          where the gradient is taken: s is the last step that was right
    H d = (g(y) - g(x)) / s              exact where the loss is quadratic
    alpha = r / (d' H d) ,  r = g(x)' P^-1 g(x)
    x+ = x + alpha d ,  g(x+) = g(x) + alpha H d
    d+ = -z + max(z' (g(x+) - g(x)) / r, 0) d ,  z = P^-1 g(x+)

g(x+) is extrapolated from g(y), which was evaluated, by (alpha - s) H d: as s is nearly alpha, errors of
earlier rounds die out. With a good preconditioner alpha is near 1, and already y is the better part of the step.

References
----------
Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. NBS 49, 1952;
Polak & Ribiere, "Note sur la convergence de methodes de directions conjuguees", 1969.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from goco_mpi.core.solvers.base import Array, Solver

SHORTEST = 1e-13
"""Step, relative to x, below which the differences of gradients are rounding."""


class ConjugateGradients(Solver):
    """See the module; ``point`` is y.

    Parameters
    ----------
    start : ndarray of shape (n_params,)
    precondition : callable (ndarray of shape (n_params,)) -> ndarray of shape (n_params,)
        r -> P^-1 r, P symmetric and positive definite.
    """

    def __init__(self, start: Array, precondition: Callable[[Array], Array]) -> None:
        super().__init__(start)
        self._precondition = precondition
        self._x = start.copy()
        self._step = 1.0
        self._direction: Array | None = None
        self._gradient = np.empty(0)
        self._r = 0.0

    def advance(self, gradient: Array, step_size: float) -> None:
        """Take the exact step along the direction, and turn."""
        direction = self._direction
        if direction is None:
            self._begin(gradient)
            return
        change = gradient - self._gradient
        curvature = float(direction @ change) / self._step
        if not curvature > 0.0:  # rounding, at the optimum
            self._begin(gradient)
            return
        step = self._r / curvature
        self._x = self._x + step * direction
        turn = step / self._step * change
        self._gradient = self._gradient + turn
        z = self._precondition(self._gradient)
        beta = max(float(z @ turn) / self._r, 0.0)
        self._r = float(self._gradient @ z)
        self._step = step
        self._go(beta * direction - z)

    def _begin(self, gradient: Array) -> None:
        """Start anew from the point, along the preconditioned gradient."""
        self._x, self._gradient, self._step = self.point, gradient.copy(), 1.0
        z = self._precondition(gradient)
        self._r = float(gradient @ z)
        self._go(-z)

    def _go(self, direction: Array) -> None:
        length = self._step * float(np.linalg.norm(direction))
        if length > SHORTEST * float(np.linalg.norm(self._x)):
            self._direction = direction
            self.point = self._x + self._step * direction
        else:
            self._direction, self.point = None, self._x
