"""Least squares, logistic and softmax regression on weighted rows, dense or CSR, of float64 or float32.

What they have in common is in `goco_mpi.core.objectives.base`.
"""

from __future__ import annotations

from goco_mpi.core.objectives.base import Objective
from goco_mpi.core.objectives.curvature import curvature, extreme_curvatures
from goco_mpi.core.objectives.least_squares import LeastSquares
from goco_mpi.core.objectives.logistic import Logistic
from goco_mpi.core.objectives.rows import BLOCK_BYTES, WeightedRows
from goco_mpi.core.objectives.softmax import Softmax
from goco_mpi.errors import InputError, check_one_of

__all__ = [
    "BLOCK_BYTES",
    "KINDS",
    "LeastSquares",
    "Logistic",
    "Objective",
    "Softmax",
    "WeightedRows",
    "build",
    "curvature",
    "extreme_curvatures",
]

KINDS = (LeastSquares.name, Logistic.name, Softmax.name)


def build(kind: str, n_features: int, l2: float, n_classes: int | None, block_bytes: int | None = None) -> Objective:
    """Build an objective by name for data with ``n_classes`` classes (None: real targets).

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    n_features : int
    l2 : float
    n_classes : int or None
    block_bytes : int, optional
        Bytes of features in a block of rows, as many as the cache holds (default: `BLOCK_BYTES`).

    Raises
    ------
    InputError
        For an unknown kind, or targets that do not fit it.
    """
    check_one_of("objective.kind", kind, KINDS)
    objective = _build(kind, n_features, l2, n_classes)
    if block_bytes is not None:
        objective.block_bytes = block_bytes
    return objective


def _build(kind: str, n_features: int, l2: float, n_classes: int | None) -> Objective:
    if kind == LeastSquares.name:
        return LeastSquares(n_features, l2)
    if n_classes is None:
        raise InputError(
            f"objective.kind = '{kind}' needs whole-number class labels as targets, and these are real "
            "numbers. Use 'least_squares'."
        )
    if n_classes < 2:
        raise InputError(f"objective.kind = '{kind}' needs at least two classes. Got {n_classes}.")
    if kind == Softmax.name:
        return Softmax(n_features, l2, n_classes)
    if n_classes != 2:
        raise InputError(f"objective.kind = 'logistic' needs two classes. Got {n_classes}. Use 'softmax'.")
    return Logistic(n_features, l2)
