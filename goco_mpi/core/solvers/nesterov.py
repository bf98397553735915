"""Nesterov's accelerated gradient descent with adaptive restart.

    x+ = y - eta g(y) ;  y = x+ + (theta - 1) / theta+ (x+ - x) ;  theta+ = (1 + sqrt(1 + 4 theta^2)) / 2
    theta = 1 again where g' (x+ - x) > 0: the momentum points uphill

The restarts find the momentum that the strong convexity asks for, without knowing it.

References
----------
Nesterov, "A method of solving a convex programming problem with convergence rate O(1/k^2)", 1983;
O'Donoghue & Candes, "Adaptive restart for accelerated gradient schemes", arXiv 1204.3982.
"""

from __future__ import annotations

import math

from goco_mpi.core.solvers.base import Array, Solver


class Nesterov(Solver):
    """See the module; ``point`` is y."""

    def __init__(self, start: Array) -> None:
        super().__init__(start)
        self._x = start.copy()
        self._theta = 1.0

    def advance(self, gradient: Array, step_size: float) -> None:
        """Take a step along the gradient, and one along the last."""
        x = self.point - step_size * gradient
        moved = x - self._x
        theta = 1.0 if float(gradient @ moved) > 0.0 else self._theta
        self._theta = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * theta**2))
        self.point = x + (theta - 1.0) / self._theta * moved
        self._x = x
