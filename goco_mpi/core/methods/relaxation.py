"""How far to go along a scaled gradient, from the curvature that was met so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods.scaling import Scaling

Array = NDArray[np.float64]

LEAST_ALPHA = 0.03
CAUTIOUS = 4.0
"""k where the table shows no curvature."""
ROUNDING = 1e-24
"""Part of a squared length that may be rounding."""


def relaxation(curvatures: Sequence[float]) -> float:
    """Return alpha from the last k.

    Examples
    --------
    >>> relaxation([2.0, 1.0]), relaxation([0.5]), relaxation([100.0])
    (0.5, 1.0, 0.03)
    """
    return min(max(1.0 / max(curvatures), LEAST_ALPHA), 1.0)


def curvature(scaling: Scaling, point: Array, s: Array, y: Array) -> float | None:
    """Return k, the curvature in units of P that s and y show, or None where neither mean moved.

    What may be rounding, as between two gradients at one point, is not taken for curvature. In the second round
    of a quadratic loss, s is nothing else: all were at the minimisers of their own models, and now are at the mean.
    """
    rounding = ROUNDING * scaling.square(point)
    sy, yy = float(s @ y), float(y @ scaling.solve(y))
    moved, changed = scaling.square(s) > rounding, yy > rounding
    if not moved and not changed:
        return None
    return yy / sy if moved and changed and sy > 0.0 else CAUTIOUS
