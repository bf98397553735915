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


def gradient_dissimilarity(mean_square: float, mean: NDArray[np.float64]) -> float | None:
    """Return how far the shards' gradients at one point differ, relative to their mean.

    (1/M) sum_k ||grad f_k - grad F||^2 / ||grad F||^2: 0 where all shards are alike, without bound where their
    gradients cancel. None where grad F is 0.

    Parameters
    ----------
    mean_square : float
        (1/M) sum_k ||grad f_k||^2.
    mean : ndarray of shape (n_params,)
        grad F = (1/M) sum_k grad f_k.

    References
    ----------
    Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020, assumption A1:
    this is the smallest B^2 - 1 for which it holds there with G = 0.

    Examples
    --------
    >>> gradient_dissimilarity((3.0**2 + 1.0**2) / 2, np.array([2.0]))
    0.25
    """
    square = float(mean @ mean)
    return max(mean_square / square - 1.0, 0.0) if square > 0.0 else None


def sampled_dissimilarity(dissimilarity: float, n_shards: int, n_sampled: int) -> float:
    """Return the expected dissimilarity of means over some of the shards, drawn at random.

    Of a sample without replacement: dissimilarity / n_sampled (n_shards - n_sampled) / (n_shards - 1).

    Examples
    --------
    >>> sampled_dissimilarity(3.0, 10, 1), sampled_dissimilarity(3.0, 10, 4), sampled_dissimilarity(3.0, 10, 10)
    (3.0, 0.5, 0.0)
    """
    return dissimilarity / n_sampled * (n_shards - n_sampled) / max(n_shards - 1, 1)


def suboptimality(loss: float, loss_start: float, loss_optimum: float) -> float | None:
    """Return (F - F*) / (F(0) - F*): 1 at the start, 0 at the optimum.

    None for a loss away from the optimum in a run that started there: it has no scale to measure that by.

    Examples
    --------
    >>> suboptimality(1.5, 3.0, 1.0)
    0.25
    """
    if loss == loss_optimum:
        return 0.0
    return (loss - loss_optimum) / (loss_start - loss_optimum) if loss_start > loss_optimum else None
