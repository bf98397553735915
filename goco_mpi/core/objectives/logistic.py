"""Logistic regression."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.objectives.base import Objective
from goco_mpi.core.objectives.rows import Array

LARGEST_EXPONENT = 700.0
"""exp of it is still finite, and 1 / exp of it is as good as 0."""


def expit(outputs: Array, out: Array | None = None) -> Array:
    """Return 1 / (1 + exp(-outputs)), to a few units in the last place.

    Without `scipy.special`, which takes as long to import as all else that a rank needs.

    Examples
    --------
    >>> expit(np.array([-1e90, 0.0, 1e90])).round(12)
    array([0. , 0.5, 1. ])
    """
    out = np.negative(outputs, out=out)
    np.minimum(out, LARGEST_EXPONENT, out=out)
    np.exp(out, out=out)
    out += 1.0
    return np.reciprocal(out, out=out)


class Logistic(Objective):
    """loss = log(1 + exp(-target row . x)), targets -1 and 1."""

    name = "logistic"

    def _residuals(self, outputs: Array, targets: Array, losses: Array | None) -> None:
        np.multiply(outputs, targets, out=outputs)
        np.negative(outputs, out=outputs)
        if losses is not None:
            np.logaddexp(0.0, outputs, out=losses)
        expit(outputs, out=outputs)
        np.multiply(outputs, targets, out=outputs)
        np.negative(outputs, out=outputs)

    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        return np.asarray(expit(outputs) * expit(-outputs) * directions)

    def _right(self, outputs: Array, targets: Array) -> Array | None:
        return np.asarray(targets * outputs > 0.0, dtype=np.float64)  # the sign decides; a tie is nobody's
