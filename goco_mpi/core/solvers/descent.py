"""Gradient descent: x <- x - eta g."""

from goco_mpi.core.solvers.base import Array, Solver


class Descent(Solver):
    """See the module."""

    def advance(self, gradient: Array, step_size: float) -> None:
        """Take a step along the gradient."""
        self.point = self.point - step_size * gradient
