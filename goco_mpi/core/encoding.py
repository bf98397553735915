"""Encoding weights: how much of a shard's gradient each of its holders contributes.

A coded gradient is g_i = (N/M) sum_k a_ik grad f_k(x_i) over the shards k that worker i holds,
f_k scaled so that F = (1/M) sum_k f_k. With sum_i a_ik q_i = 1 for every shard, the mean of the
g_i over workers is an unbiased estimate of grad F, whatever the number of shards and workers:
a step size keeps its meaning from one layout to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.placement import Placement
from goco_mpi.errors import InputError, check_one_of


def paper(placement: Placement, completion_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a_ik = 1 / (d_k (1 - p)), p the mean straggler probability.

    Parameters
    ----------
    placement : Placement
        Who holds what.
    completion_rates : ndarray of shape (n_workers,)
        q_i = 1 - p_i, in (0, 1].

    Returns
    -------
    ndarray of shape (n_workers, n_shards)
        Zero where worker i does not hold shard k.

    Notes
    -----
    Unbiased when every worker is late equally often; biased as soon as the same ones always are.

    References
    ----------
    Li & Skoglund, arXiv 2402.04193.
    """
    rate = float(completion_rates.mean())
    return np.asarray(placement.held / (placement.replication * rate), dtype=np.float64)


def own(placement: Placement, completion_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a_ik = 1 / (d_k q_i): every worker makes up for its own lateness alone.

    Parameters and result as for `paper`.

    Notes
    -----
    Unbiased for unequal completion rates as long as every worker finishes now and then. The part of one that
    never does is missing: the other holders do not take it over, as they do with `coverage`. And whoever seldom
    finishes has large weights, which make its gradients noisy and its curvature high.

    Examples
    --------
    >>> from goco_mpi.core.placement import Placement
    >>> own(Placement(np.ones((2, 1), dtype=bool)), np.array([0.25, 1.0])).ravel().tolist()
    [2.0, 0.5]
    """
    inverse = np.divide(1.0, completion_rates, out=np.zeros_like(completion_rates), where=completion_rates > 0.0)
    return np.asarray(placement.held * inverse[:, None] / placement.replication, dtype=np.float64)


def coverage(placement: Placement, completion_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a_ik = 1 / sum_{j holds k} q_j: unbiased for unequal completion rates.

    Parameters and result as for `paper`.

    Examples
    --------
    >>> from goco_mpi.core.placement import uncoded
    >>> weights = coverage(uncoded(2, 2), np.array([0.5, 1.0]))
    >>> weights.max(axis=1).tolist()
    [2.0, 1.0]
    """
    rate_of_shard = completion_rates @ placement.held
    return np.asarray(placement.held / rate_of_shard, dtype=np.float64)


def plain(placement: Placement, completion_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a_ik = 1 / d_k, as where no one is late or lateness is ignored."""
    return np.asarray(placement.held / placement.replication, dtype=np.float64)


KINDS: dict[str, Callable[[Placement, NDArray[np.float64]], NDArray[np.float64]]] = {
    "paper": paper,
    "own": own,
    "coverage": coverage,
    "plain": plain,
}


def of_worker(
    kind: str, held: NDArray[np.bool_], completion_rates: NDArray[np.float64], worker: int, least_rate: float
) -> NDArray[np.float64]:
    """Return one worker's weights a_ik of its shards by the completion rates that it knows; see `build`.

    Parameters
    ----------
    kind : {'paper', 'own', 'coverage'}
    held : ndarray of shape (n_workers, n_held), bool
        Who holds its shards, itself included.
    completion_rates : ndarray of shape (n_workers,)
    worker : int
    least_rate : float
        Least sum of the holders' rates that a weight is taken of, so that it stays finite.

    Returns
    -------
    ndarray of shape (n_held,)

    Examples
    --------
    >>> of_worker("coverage", np.array([[True], [True]]), np.array([1.0, 0.25]), 0, 0.01).tolist()
    [0.8]
    """
    if kind == "coverage":
        rates = completion_rates @ held
    else:
        rate = completion_rates.mean() if kind == "paper" else completion_rates[worker]
        rates = np.count_nonzero(held, axis=0) * float(rate)
    return np.asarray(1.0 / np.maximum(rates, least_rate), dtype=np.float64)


def build(kind: str, placement: Placement, completion_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Build the encoding weights named ``kind`` (a key of ``KINDS``), shape (n_workers, n_shards).

    Raises
    ------
    InputError
        For an unknown kind, or a shard whose holders never finish.
    """
    check_one_of("method.weights", kind, KINDS)
    dead = np.flatnonzero(completion_rates @ placement.held <= 0.0)
    if dead.size:
        raise InputError(
            f"every shard needs a holder that finishes now and then. No holder of shard {dead[0]} "
            "ever does. Lower stragglers.p or raise placement.replication."
        )
    return KINDS[kind](placement, completion_rates)
