"""The optimum of the pooled problem, to measure a run against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives import Objective, WeightedRows

Array = NDArray[np.float64]


def minimize(objective: Objective, rows: WeightedRows) -> tuple[Array, float]:
    """Minimise F on the given rows; see `minimize_sum`."""

    def pooled(x: Array) -> tuple[float, Array]:
        out = np.empty(objective.n_params)
        return objective.loss_and_gradient(x, rows, out), out

    return minimize_sum(pooled, objective.n_params)


def minimize_sum(loss_and_gradient: Callable[[Array], tuple[float, Array]], n_params: int) -> tuple[Array, float]:
    """Minimise F with scipy's L-BFGS, to the limit of float64.

    Parameters
    ----------
    loss_and_gradient : callable (ndarray of shape (n_params,)) -> (float, ndarray of shape (n_params,))
        Of F, added up from whoever has its terms.
    n_params : int

    Returns
    -------
    params : ndarray of shape (n_params,)
    loss : float
        F at ``params``.

    References
    ----------
    Zhu, Byrd, Lu & Nocedal, "Algorithm 778: L-BFGS-B", ACM TOMS 23 (1997).
    """
    import scipy.optimize

    found = scipy.optimize.minimize(
        loss_and_gradient,
        np.zeros(n_params),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 40000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10},
    )
    return found.x, float(found.fun)
