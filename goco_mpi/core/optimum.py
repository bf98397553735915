"""The optimum of the pooled problem, to measure a run against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives import Objective, WeightedRows


def minimize(objective: Objective, rows: WeightedRows) -> tuple[NDArray[np.float64], float]:
    """Minimise F on the given rows with scipy's L-BFGS, to the limit of float64.

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
        lambda x: (objective.loss(x, rows), objective.gradient(x, rows)),
        np.zeros(objective.n_params),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 40000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10},
    )
    return found.x, float(found.fun)
