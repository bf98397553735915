"""The curvature of objectives: extreme eigenvalues of Hessians, and weighted Gram matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from goco_mpi.core.objectives.rows import Array, Features
from goco_mpi.core.rng import Purpose, stream

DENSER = 16
"""How many times its stored numbers a CSR matrix may be as a dense one, for its Gram matrix to be made of that:
BLAS is so much quicker."""

LANCZOS_STEPS = 100
"""Products that Lanczos' method spends at most; as many as there are parameters are enough."""


def curvature(hessian_product: Callable[[Array], Array], n_params: int, iterations: int = 50) -> float:
    """Return the largest eigenvalue of a Hessian by power iteration.

    Parameters
    ----------
    hessian_product : callable (ndarray of shape (n_params,)) -> ndarray of shape (n_params,)
        Such as `Objective.hessian_product` at a fixed point; a mean over workers serves too.
    n_params : int
    iterations : int
        Products spent; 50 give two digits even with close eigenvalues.

    Returns
    -------
    float
        A lower bound of the true value that approaches it from below.

    Examples
    --------
    >>> round(curvature(lambda v: np.array([3.0, 1.0]) * v, 2), 6)
    3.0
    """
    direction = stream(0, Purpose.CURVATURE).standard_normal(n_params)
    value = 0.0
    for _ in range(iterations):
        norm = float(np.linalg.norm(direction))
        if norm == 0.0:
            return 0.0
        direction = hessian_product(direction / norm)
        value = float(np.linalg.norm(direction))
    return value


def extreme_curvatures(hessian_product: Callable[[Array], Array], n_params: int) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a Hessian by Lanczos' method, fully orthogonalised.

    Parameters
    ----------
    hessian_product, n_params
        As for `curvature`.

    Returns
    -------
    smallest, largest : float
        To six significant digits (see `goco_mpi.core.schedules.from_curvature`), 0 for a smallest one that is rounding;
        each approaches the true value from within.

    References
    ----------
    Golub & Van Loan, "Matrix computations", 2013, section 10.1.

    Examples
    --------
    >>> extreme_curvatures(lambda v: np.array([3.0, 1.0, 2.0]) * v, 3)
    (1.0, 3.0)
    """
    basis = np.zeros((min(LANCZOS_STEPS, n_params) + 1, n_params))
    vector = stream(0, Purpose.CURVATURE).standard_normal(n_params)
    diagonal: list[float] = []
    off: list[float] = []
    norm, largest = float(np.linalg.norm(vector)), 0.0
    for k in range(len(basis) - 1):
        basis[k] = vector / norm
        product = hessian_product(basis[k])
        largest = max(largest, float(np.linalg.norm(product)))
        diagonal.append(float(basis[k] @ product))
        vector = product
        for _ in range(2):  # the second time for what rounding left
            vector = vector - basis[: k + 1].T @ (basis[: k + 1] @ vector)
        norm = float(np.linalg.norm(vector))
        if norm <= 1e-12 * largest:
            break
        off.append(norm)
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off[: len(diagonal) - 1], -1))  # of the lower half
    smallest = float(f"{values[0]:.6g}") if values[0] > 1e-12 * values[-1] else 0.0
    return smallest, float(f"{values[-1]:.6g}")


def weighted_gram(features: Features, weights: Array) -> Array:
    """Return sum_s weights_s row_s row_s^T, shape (n_features, n_features), dense."""
    if isinstance(features, np.ndarray):
        if (weights >= 0.0).all():  # a matrix times its own transpose is half the work, which numpy sees
            scaled = np.sqrt(weights)[:, None] * features
            return np.asarray(scaled.T @ scaled)
        return np.asarray(features.T @ (weights[:, None] * features))
    if features.shape[1] * features.shape[0] <= DENSER * features.nnz:
        return weighted_gram(features.toarray(), weights)
    import scipy.sparse as sp

    return np.asarray((features.T @ (sp.diags_array(weights) @ features)).toarray())
