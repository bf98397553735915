"""Cutting samples into shards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError


def partition(kind: str, targets: NDArray[np.float64], n_shards: int, seed: int) -> list[NDArray[np.intp]]:
    """Cut samples into shards of sizes within one of each other.

    Parameters
    ----------
    kind : {'iid', 'by_label', 'in_order'}
        At random; sorted by target (equal targets in random order); as they come.
    targets : ndarray of shape (n_samples,)
    n_shards : int
    seed : int

    Returns
    -------
    list of ndarray
        Sample indices of each shard; every sample is in exactly one.

    Raises
    ------
    InputError
        If there are more shards than samples.

    Examples
    --------
    >>> [shard.tolist() for shard in partition("by_label", np.array([2.0, 0.0, 1.0, 1.0]), 2, seed=0)][0][0]
    1
    """
    n_samples = len(targets)
    if n_shards > n_samples:
        raise InputError(f"data.shards must be at most the number of training samples, {n_samples}. Got {n_shards}.")
    order = np.arange(n_samples)
    if kind != "in_order":
        order = stream(seed, Purpose.PARTITION).permutation(n_samples)
    if kind == "by_label":
        order = order[np.argsort(targets[order], kind="stable")]
    return np.array_split(order, n_shards)
