"""How many workers may die before a shard is lost."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.placement import Placement

MOST_ENUMERATED = 16
"""Workers whose subsets are all gone through: 65 536 of them."""


def survives(placement: Placement) -> int:
    """Return how many workers may die, whichever they are, without a shard being lost: min_k d_k - 1.

    The smallest set of workers that loses a shard is all holders of the shard that has fewest.

    Examples
    --------
    >>> from goco_mpi.core.placement import pairwise_balanced
    >>> survives(pairwise_balanced(8, 16, 3, seed=0))
    2
    """
    return int(placement.replication.min()) - 1


def loss_probability(placement: Placement, share_dead: float) -> float:
    """Return the probability that a shard is lost where each worker is dead with probability ``share_dead``.

    Exact for up to ``MOST_ENUMERATED`` workers, by going through all sets of dead ones; beyond, the union bound
    sum_k rho^d_k over the different sets of holders, which is above it.

    Parameters
    ----------
    placement : Placement
    share_dead : float
        rho, in [0, 1].

    Examples
    --------
    >>> from goco_mpi.core.placement import uncoded
    >>> round(loss_probability(uncoded(2, 2), 0.1), 6)
    0.19
    """
    n = placement.n_workers
    if n > MOST_ENUMERATED:
        holders = np.unique(placement.held, axis=1).sum(axis=0)
        return float(min((share_dead**holders).sum(), 1.0))
    bits = 1 << np.arange(n)
    masks = np.unique(bits @ placement.held)
    dead = np.arange(1 << n)
    lost = np.zeros(1 << n, dtype=bool)
    for mask in masks:
        lost |= (dead & mask) == mask
    n_dead = ((dead[:, None] & bits) > 0).sum(axis=1)
    return float((share_dead**n_dead * (1.0 - share_dead) ** (n - n_dead))[lost].sum())
