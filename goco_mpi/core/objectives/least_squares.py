"""Least squares."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.objectives.base import Objective
from goco_mpi.core.objectives.rows import Array


class LeastSquares(Objective):
    """loss = (row . x - target)^2 / 2."""

    name = "least_squares"
    quadratic = True

    def _residuals(self, outputs: Array, targets: Array, losses: Array | None) -> None:
        np.subtract(outputs, targets, out=outputs)
        if losses is not None:
            np.multiply(outputs, outputs, out=losses)
            losses *= 0.5

    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        return directions

    def _right(self, outputs: Array, targets: Array) -> Array | None:
        return None  # a regression has no accuracy
