"""The matrix that scales a gradient: a worker's own coded Hessian, made safe and factorised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods.base import Place
from goco_mpi.core.shares import Share

Array = NDArray[np.float64]

HALF_THE_DIGITS = float(np.finfo(np.float64).eps) ** 0.5
"""Part of a diagonal entry below which its pivot is taken for rounding."""


class Scaling:
    """P, factorised: a Hessian with something added to its diagonal.

    Parameters
    ----------
    hessian : ndarray of shape (n_params, n_params)
        Symmetric, not negative.
    c : float
        Multiple of its diagonal that is added; 1 where that alone leaves P singular, or nearly.

    Attributes
    ----------
    added : ndarray of shape (n_params,)
        P is the Hessian and this on its diagonal.

    Raises
    ------
    ValueError
        If the Hessian is not finite, or has negative curvature.
    """

    def __init__(self, hessian: Array, c: float) -> None:
        import scipy.linalg

        diagonal = hessian.diagonal().copy()
        largest = float(diagonal.max(initial=0.0))
        for added in (c * diagonal, np.where(diagonal > 0.0, diagonal, largest or 1.0)):
            self.added: Array = added
            try:
                lower = scipy.linalg.cholesky(hessian + np.diag(added), lower=True)
            except np.linalg.LinAlgError:
                continue
            # A pivot that lost half the digits is rounding as much as curvature.
            if (lower.diagonal() ** 2 >= HALF_THE_DIGITS * (diagonal + added)).all():
                self._lower = lower
                return
        raise ValueError("The Hessian has negative curvature.")

    def solve(self, vector: Array) -> Array:
        """Return P^-1 vector."""
        import scipy.linalg

        return np.asarray(scipy.linalg.cho_solve((self._lower, True), vector, check_finite=False))

    def square(self, vector: Array) -> float:
        """Return vector' P vector."""
        half = vector @ self._lower
        return float(half @ half)


def worker_scaling(place: Place, params: Array) -> Scaling | None:
    """Return P_i, of the worker's Hessian of weight 1 at ``params``; None where it holds nothing.

    Raises
    ------
    ValueError
        As of `Scaling`.
    """
    if place.weight == 0.0:
        return None
    return Scaling(place.share.hessian(params) / place.weight, damping(place.share))


def damping(share: Share) -> float:
    """Return c, how much of its diagonal a Hessian of so few rows needs; 0 where nobody counts the rows.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> [damping(SimpleNamespace(n_params=100, n_rows=n)) for n in (0, 50, 100, 400)]
    [0.0, 1.0, 0.75, 0.0]
    """
    if share.n_rows == 0:
        return 0.0
    return min(max(share.n_params / share.n_rows - 0.25, 0.0), 1.0)
