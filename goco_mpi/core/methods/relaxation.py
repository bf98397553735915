"""How far to go along a scaled gradient, from the curvature that was met so far."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods.scaling import Scaling

Array = NDArray[np.float64]

LEAST_ALPHA = 0.03
CAUTIOUS = 1.2
"""k where no curvature shows."""
ROUNDING = 1e-24
"""Part of a squared length that may be rounding."""


def relaxation(k: float) -> float:
    """Return alpha for a curvature k that was met.

    An error along an eigenvector of curvature k shrinks by |l|, l^2 - (1 - alpha) l + alpha (k - 1) = 0: by 1 - alpha
    for k = 1, and by sqrt(alpha (k - 1)) for a large one. This alpha makes these alike for the largest k that there
    is, taken to be twice as far above 1 as the one that was met, as that is a mean.

    Examples
    --------
    >>> relaxation(0.5), relaxation(1.25), relaxation(1e3)
    (1.0, 0.5, 0.03)
    """
    excess = 2.0 * max(k - 1.0, 0.0)
    return max(1.0 + 0.5 * excess - math.sqrt(excess + 0.25 * excess * excess), LEAST_ALPHA)


def curvature(scaling: Scaling, point: Array, pull: Array, square: float, change: Array) -> float | None:
    """Return k, the curvature in units of P that shows where the mean was pulled; None where it was not.

    Parameters
    ----------
    scaling : Scaling
    point : ndarray of shape (n_params,)
        How large all is of which this may be rounding.
    pull : ndarray of shape (n_params,)
        v, where the mean went by -M v, M the mean of all P^-1.
    square : float
        v' P^-1 v.
    change : ndarray of shape (n_params,)
        y, what that changed the gradient by: -H M v.
    """
    rounding = ROUNDING * scaling.square(point)
    if square <= rounding:
        return None
    scaled = scaling.solve(change)
    along, found = -float(pull @ scaled), float(change @ scaled)
    return found / along if along > 0.0 and found > rounding else CAUTIOUS
