"""How far `goco_mpi.core.methods.table_newton` goes along a scaled gradient, from the curvature that was met."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods.scaling import Scaling

Array = NDArray[np.float64]

LEAST_ALPHA = 0.03
"""alpha however large the curvature."""
CAUTIOUS = 4.0
"""k where the table shows no curvature."""
ROUNDING = 1e-24
"""Part of a squared length that may be rounding."""


def relaxation(curvatures: Sequence[float]) -> float:
    """Return alpha = 1 / max(k) of the curvatures k, within ``LEAST_ALPHA`` and 1.

    Examples
    --------
    >>> relaxation([2.0, 1.0]), relaxation([0.5]), relaxation([100.0])
    (0.5, 1.0, 0.03)
    """
    return min(max(1.0 / max(curvatures), LEAST_ALPHA), 1.0)


def curvature(scaling: Scaling, point: Array, s: Array, y: Array) -> float | None:
    """Return k = y' P^-1 y / s'y, the curvature in units of P, or None where neither mean moved.

    What may be rounding, as between two gradients at one point, is not taken for curvature. In the second round
    of a quadratic loss, s is nothing else: all were at the minimisers of their own models, and now are at the mean.

    Parameters
    ----------
    scaling : Scaling
        P.
    point : ndarray of shape (n_params,)
        The mean point now: the length of s is measured by it.
    s, y : ndarray of shape (n_params,)
        What the mean point and the mean gradient moved by.
    """
    rounding = ROUNDING * scaling.square(point)
    sy, yy = float(s @ y), float(y @ scaling.solve(y))
    moved, changed = scaling.square(s) > rounding, yy > rounding
    if not moved and not changed:
        return None
    return yy / sy if moved and changed and sy > 0.0 else CAUTIOUS
