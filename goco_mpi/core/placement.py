"""Which worker holds which shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError, check_one_of, check_range


@dataclass(frozen=True, eq=False)
class Placement:
    """An assignment of shards to workers.

    Attributes
    ----------
    held : ndarray of bool, shape (n_workers, n_shards)
        ``held[i, k]`` tells whether worker i holds shard k. Every shard has a holder.

    Raises
    ------
    InputError
        If a shard has no holder: its data would silently be left out of the model.
    """

    held: NDArray[np.bool_]

    def __post_init__(self) -> None:
        self.held.setflags(write=False)
        orphans = np.flatnonzero(~self.held.any(axis=0))
        if orphans.size:
            raise InputError(
                f"placement must give every shard a holder. {orphans.size} of {self.n_shards} shards "
                f"have none (shard {orphans[0]} first). Raise placement.replication, change the seed, "
                "or use placement.kind = 'pairwise_balanced'."
            )

    @property
    def n_workers(self) -> int:
        """Number of workers."""
        return int(self.held.shape[0])

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return int(self.held.shape[1])

    @cached_property
    def replication(self) -> NDArray[np.int64]:
        """d_k, the number of holders of each shard, shape (n_shards,)."""
        return np.asarray(self.held.sum(axis=0), dtype=np.int64)

    @cached_property
    def load(self) -> NDArray[np.int64]:
        """Number of shards each worker holds, shape (n_workers,)."""
        return np.asarray(self.held.sum(axis=1), dtype=np.int64)

    def holders(self, shard: int) -> list[int]:
        """Return the workers that hold ``shard``, ascending."""
        return [int(i) for i in np.flatnonzero(self.held[:, shard])]

    def shards_of(self, worker: int) -> list[int]:
        """Return the shards that ``worker`` holds, ascending."""
        return [int(k) for k in np.flatnonzero(self.held[worker])]

    def owned_by(self, worker: int) -> list[int]:
        """Return the shards whose first holder is ``worker``; over all workers each shard once."""
        return [k for k in self.shards_of(worker) if self._first_holder[k] == worker]

    @cached_property
    def _first_holder(self) -> NDArray[np.int64]:
        return np.asarray(self.held.argmax(axis=0))

    def overlap(self) -> NDArray[np.int64]:
        """Return how many workers hold both shards of a pair, shape (n_shards, n_shards)."""
        held = self.held.astype(np.int64)
        return held.T @ held


def pairwise_balanced(n_workers: int, n_shards: int, replication: int | NDArray[np.int64], seed: int) -> Placement:
    """Place every shard on exactly d_k workers so that any two shards meet about equally often.

    Shards k and l share about d_k d_l / n_workers workers; loads differ by at most one. The
    placement is random and knows nothing of the graph: replicas on graph neighbours mix badly.

    Parameters
    ----------
    n_workers, n_shards : int
        Sizes.
    replication : int or ndarray of shape (n_shards,)
        d_k, between 1 and ``n_workers``.
    seed : int
        Seed of the random choices.

    Raises
    ------
    InputError
        If a d_k is out of range.

    References
    ----------
    Bitar, Wootters & El Rouayheb, "Stochastic gradient coding for straggler mitigation in
    distributed learning", arXiv 1905.05383 (pairwise balanced schemes); GOCO, arXiv 2402.04193.

    Examples
    --------
    >>> placement = pairwise_balanced(8, 16, 3, seed=0)
    >>> sorted(set(placement.replication.tolist())), sorted(set(placement.load.tolist()))
    ([3], [6])
    """
    rng = stream(seed, Purpose.PLACEMENT)
    copies = np.broadcast_to(np.asarray(replication, dtype=np.int64), (n_shards,))
    for d in np.unique(copies):
        _check_replication(int(d), n_workers)
    holds = np.zeros((n_shards, n_workers), dtype=bool)  # a row is looked at as a whole
    load = np.zeros(n_workers, dtype=np.int64)
    # Shards of each worker as rows of indices, padded with a shard that is never shared:
    # the cost of a choice is then one gather, not a product with the whole matrix.
    padded = np.full((n_workers, -(-int(copies.sum()) // n_workers) + 1), n_shards, dtype=np.int64)
    for shard in rng.permutation(n_shards):
        shared = np.zeros(n_shards + 1, dtype=np.int64)
        for _ in range(copies[shard]):
            # Least load first (keeps loads within one), then least overlap with the shards
            # already met, then chance.
            eligible = ~holds[shard]
            candidates = np.flatnonzero(eligible & (load == load[eligible].min()))
            overlap = shared[padded[candidates]].sum(axis=1)
            worker = rng.choice(candidates[overlap == overlap.min()])
            met = padded[worker, : load[worker]]
            shared[met] += 1
            padded[worker, load[worker]] = shard
            load[worker] += 1
            holds[shard, worker] = True
    return Placement(np.ascontiguousarray(holds.T))


def fractional_repetition(n_workers: int, n_shards: int, replication: int, seed: int) -> Placement:
    """Split the workers into groups of ``replication``; a group's members hold the same shards.

    Raises
    ------
    InputError
        If ``replication`` does not divide ``n_workers``.

    References
    ----------
    Tandon, Lei, Dimakis & Karampatziakis, "Gradient coding", arXiv 1612.03301.
    """
    _check_replication(replication, n_workers)
    if n_workers % replication:
        raise InputError(
            f"placement.replication must divide n_workers = {n_workers} for 'fractional_repetition'. "
            f"Got {replication}. Use 'pairwise_balanced', which takes any replication."
        )
    rng = stream(seed, Purpose.PLACEMENT)
    groups = rng.permutation(n_workers).reshape(-1, replication)
    held = np.zeros((n_workers, n_shards), dtype=bool)
    for group, shards in zip(groups, np.array_split(rng.permutation(n_shards), len(groups)), strict=True):
        held[np.ix_(group, shards)] = True
    return Placement(held)


def cyclic(n_workers: int, n_shards: int, replication: int, seed: int) -> Placement:
    """Put block b of the shards on workers b, b+1, ..., b+d-1 (mod n) of a random order.

    The order is random so that the replicas do not sit on graph neighbours.

    References
    ----------
    Tandon, Lei, Dimakis & Karampatziakis, "Gradient coding", arXiv 1612.03301.
    """
    _check_replication(replication, n_workers)
    order = stream(seed, Purpose.PLACEMENT).permutation(n_workers)
    held = np.zeros((n_workers, n_shards), dtype=bool)
    for block, shards in enumerate(np.array_split(np.arange(n_shards), n_workers)):
        for step in range(replication):
            held[order[(block + step) % n_workers], shards] = True
    return Placement(held)


def bernoulli(n_workers: int, n_shards: int, replication: int, seed: int) -> Placement:
    """Give each shard to each worker with probability ``replication`` / ``n_workers``.

    Raises
    ------
    InputError
        If a shard ends up with no holder.
    """
    _check_replication(replication, n_workers)
    rng = stream(seed, Purpose.PLACEMENT)
    return Placement(rng.random((n_workers, n_shards)) < replication / n_workers)


def uncoded(n_workers: int, n_shards: int, replication: int = 1, seed: int = 0) -> Placement:
    """Give each shard to one worker, at random, loads within one of each other."""
    return pairwise_balanced(n_workers, n_shards, 1, seed)


def _check_replication(replication: int, n_workers: int) -> None:
    check_range(
        "placement.replication",
        replication,
        1,
        n_workers,
        f"There are {n_workers} workers: use at most {n_workers}, which puts every shard on every "
        "worker, or start more.",
    )


KINDS: dict[str, Callable[[int, int, int, int], Placement]] = {
    "pairwise_balanced": pairwise_balanced,
    "fractional_repetition": fractional_repetition,
    "cyclic": cyclic,
    "bernoulli": bernoulli,
    "uncoded": uncoded,
}


def build(kind: str, n_workers: int, n_shards: int, replication: int, seed: int) -> Placement:
    """Build a placement by name (a key of ``KINDS``).

    Raises
    ------
    InputError
        For an unknown kind, or sizes that the kind cannot serve.
    """
    check_one_of("placement.kind", kind, KINDS)
    return KINDS[kind](n_workers, n_shards, replication, seed)
