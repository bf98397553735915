"""Which samples train, in which shard, and which are for testing: row numbers, no rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.data.partition import partition
from goco_mpi.data.source import Rows, Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

Array = NDArray[np.float64]
Groups = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of a source by what they are for.

    Attributes
    ----------
    train, test : Rows
        Row numbers in the source, ascending.
    shards : tuple of Rows
        Of each shard, places among the training rows.
    """

    train: Rows
    test: Rows
    shards: tuple[Rows, ...]

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        return count(self.train)

    @property
    def n_test(self) -> int:
        """Number of rows to test on."""
        return count(self.test)

    @property
    def sizes(self) -> list[int]:
        """Rows of each shard."""
        return [count(places) for places in self.shards]

    def rows(self, shard: int) -> Rows:
        """Return the row numbers of a shard in the source."""
        return _at(self.train, self.shards[shard])

    def test_part(self, part: slice) -> Rows:
        """Return the row numbers in the source of some of those to test on."""
        return _at(self.test, part)


def count(rows: Rows) -> int:
    """Return how many row numbers these are.

    Examples
    --------
    >>> count(slice(2, 5)), count(np.array([7, 3]))
    (3, 2)
    """
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _at(rows: Rows, places: Rows) -> Rows:
    """Return ``rows[places]``."""
    if isinstance(rows, slice) and isinstance(places, slice):
        return slice(rows.start + places.start, rows.start + places.stop)
    return np.asarray(rows.start + places if isinstance(rows, slice) else rows[places], dtype=np.intp)


def train_test(n_samples: int, test_fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split row numbers at random, both parts in ascending order.

    Raises
    ------
    InputError
        If no sample would be left to train on.

    Examples
    --------
    >>> train_test(5, 0.4, seed=0)
    (array([0, 2, 4]), array([1, 3]))
    """
    n_test = round(n_samples * test_fraction)
    if n_test >= n_samples:
        raise InputError(f"data.test_fraction = {test_fraction:g} leaves none of {n_samples} samples to train on.")
    if not n_test:
        return slice(0, n_samples), slice(0, 0)
    order = stream(seed, Purpose.SPLIT).permutation(n_samples)
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def split(config: DataConfig, source: Source, seed: int, targets: Array | None, groups: Groups | None) -> Split:
    """Split the samples of a source and cut those to train on into shards.

    Parameters
    ----------
    config : DataConfig
    source : Source
        Where it has a cut of its own, that is taken.
    seed : int
    targets, groups : ndarray of shape (n_samples,) or None
        Where the partition `needs_targets` or `needs_groups`.

    Raises
    ------
    InputError
        If no sample would be left to train on, or too few for the shards.
    """
    if source.cut is not None:
        return Split(slice(0, source.cut.shards[-1].stop), source.cut.test, source.cut.shards)
    train, test = train_test(source.n_samples, config.test_fraction, seed)
    shards = partition(
        config.partition,
        np.empty(count(train)) if targets is None else targets[train],
        config.shards,
        seed,
        alpha=config.alpha,
        groups=None if groups is None else groups[train],
    )
    return Split(train, test, tuple(_run(shard) for shard in shards))


def _run(rows: NDArray[np.intp]) -> Rows:
    """Return row numbers that follow each other as a slice: it takes no memory, and is read as one."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def needs_targets(config: DataConfig, source: Source) -> bool:
    """Tell whether a split is to know the targets of all samples."""
    return source.cut is None and config.partition in ("by_label", "dirichlet")


def needs_groups(config: DataConfig, source: Source) -> bool:
    """Tell whether a split is to know which group each sample belongs to."""
    return source.cut is None and config.partition == "by_column"
