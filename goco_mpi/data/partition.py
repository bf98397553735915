"""Cutting samples into shards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError

Shards = list[NDArray[np.intp]]

BINS = 10
"""Targets that are no labels are dealt by the tenth of the samples that they are in."""


def partition(
    kind: str,
    targets: NDArray[np.float64],
    n_shards: int,
    seed: int,
    alpha: float = 0.5,
    groups: NDArray[Any] | None = None,
) -> Shards:
    """Cut samples into shards.

    Parameters
    ----------
    kind : {'iid', 'by_label', 'in_order', 'dirichlet', 'by_column'}
        At random; sorted by target (equal targets in random order); as they come: all three in sizes within one of
        each other. By `dirichlet`; by `by_column`.
    targets : ndarray of shape (n_samples,)
    n_shards : int
    seed : int
    alpha : float
        Of ``dirichlet``.
    groups : ndarray of shape (n_samples,), optional
        Of ``by_column``: which group each sample belongs to.

    Returns
    -------
    list of ndarray
        Sample indices of each shard; every sample is in exactly one, and none is empty.

    Raises
    ------
    InputError
        If there are more shards than samples or groups.

    Examples
    --------
    >>> [shard.tolist() for shard in partition("by_label", np.array([2.0, 0.0, 1.0, 1.0]), 2, seed=0)][0][0]
    1
    """
    n_samples = len(targets)
    if n_shards > n_samples:
        raise InputError(f"data.shards must be at most the number of training samples, {n_samples}. Got {n_shards}.")
    if kind == "dirichlet":
        return dirichlet(targets, n_shards, seed, alpha)
    if kind == "by_column":
        assert groups is not None  # whoever reads the data has found the column
        return by_column(groups, n_shards)
    order = np.arange(n_samples)
    if kind != "in_order":
        order = stream(seed, Purpose.PARTITION).permutation(n_samples)
    if kind == "by_label":
        order = order[np.argsort(targets[order], kind="stable")]
    return np.array_split(order, n_shards)


def dirichlet(targets: NDArray[np.float64], n_shards: int, seed: int, alpha: float) -> Shards:
    """Deal the samples of each label to the shards in shares drawn from a Dirichlet distribution.

    Small ``alpha`` gives each label to few shards, large ones deal evenly. Shards are of unequal size; one that
    would be empty is given a sample of the largest. Targets that are no labels (see `strata`) are dealt by deciles.

    Parameters
    ----------
    targets : ndarray of shape (n_samples,)
    n_shards : int
        At most n_samples.
    seed : int
    alpha : float
        Concentration, positive.

    References
    ----------
    Hsu, Qi & Brown, "Measuring the effects of non-identical data distribution for federated visual classification",
    arXiv 1909.06335.

    Examples
    --------
    >>> [len(shard) for shard in dirichlet(np.repeat([0.0, 1.0], 50), 3, seed=1, alpha=1e6)]
    [34, 32, 34]
    """
    rng = stream(seed, Purpose.PARTITION)
    order = rng.permutation(len(targets))
    owner = np.empty(len(targets), np.intp)
    stratum = strata(targets)
    by_stratum = order[np.argsort(stratum[order], kind="stable")]
    for rows in np.split(by_stratum, np.flatnonzero(np.diff(stratum[by_stratum])) + 1):
        bounds = np.cumsum(rng.dirichlet(np.full(n_shards, alpha)))
        # The last bound is 1 but for rounding; every row is to have an owner.
        owner[rows] = np.minimum(
            np.searchsorted(bounds, (np.arange(len(rows)) + 0.5) / len(rows), side="right"), n_shards - 1
        )
    sizes = np.bincount(owner, minlength=n_shards)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        owner[np.flatnonzero(owner == largest)[-1]] = empty
        sizes[largest] -= 1
        sizes[empty] = 1
    return _by_owner(owner, n_shards)


def strata(targets: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return a number for each sample's label; of targets that are no labels, for the tenth of all that it is in.

    Labels are whole numbers of which there are at most as many as a tenth of the samples, or ten.

    Examples
    --------
    >>> strata(np.array([7.0, -1.0, 7.0])).tolist()
    [1, 0, 1]
    >>> strata(np.array([0.1, 0.7, 0.3])).tolist()
    [0, 6, 3]
    """
    labels, numbers = np.unique(targets, return_inverse=True)
    if np.array_equal(labels, np.round(labels)) and len(labels) <= max(BINS, len(targets) // BINS):
        return numbers.astype(np.intp)
    # Equal targets stay together, in the tenth of the first of them.
    first = np.searchsorted(np.sort(targets), targets)
    return np.asarray(first * BINS // len(targets), dtype=np.intp)


def by_column(groups: NDArray[Any], n_shards: int) -> Shards:
    """Cut along groups that stay whole, such as the site or the user that each sample is from.

    As many groups as shards: each is a shard, in the order of their names. More: the largest group that is left goes
    to the shard that is smallest so far. The samples of a shard stay in order.

    Parameters
    ----------
    groups : ndarray of shape (n_samples,)
    n_shards : int

    Raises
    ------
    InputError
        If there are fewer groups than shards.

    References
    ----------
    Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17, 1969: longest processing time first.

    Examples
    --------
    >>> [shard.tolist() for shard in by_column(np.array(["b", "a", "b", "c"]), 2)]
    [[0, 2], [1, 3]]
    """
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < n_shards:
        raise InputError(
            f"data.shards must be at most the number of different values of data.partition_column, {len(names)}: "
            f"each group of samples stays whole. Got {n_shards}."
        )
    shard_of = np.arange(len(names))
    if len(names) > n_shards:
        sizes, filled = np.bincount(numbers), np.zeros(n_shards, np.intp)
        for group in np.argsort(-sizes, kind="stable"):
            shard_of[group] = filled.argmin()
            filled[shard_of[group]] += sizes[group]
    return _by_owner(shard_of[numbers], n_shards)


def _by_owner(owner: NDArray[np.intp], n_shards: int) -> Shards:
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=n_shards))[:-1])
