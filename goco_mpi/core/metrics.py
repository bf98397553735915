"""Figures by which a run is judged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def consensus_distance(stacked_params: NDArray[np.float64]) -> float:
    """Return sqrt(mean_i ||x_i - mean x||^2) of parameters stacked (n_workers, n_params).

    Examples
    --------
    >>> consensus_distance(np.array([[1.0], [3.0]]))
    1.0
    """
    centred = stacked_params - stacked_params.mean(axis=0)
    return float(np.sqrt(np.mean(np.sum(centred**2, axis=1))))


def suboptimality(loss: float, loss_start: float, loss_optimum: float) -> float:
    """Return (F - F*) / (F(0) - F*): 1 at the start, 0 at the optimum.

    Examples
    --------
    >>> suboptimality(1.5, 3.0, 1.0)
    0.25
    """
    if loss == loss_optimum:  # also where the start is the optimum
        return 0.0
    return (loss - loss_optimum) / (loss_start - loss_optimum)
