"""Centring and scaling features by the training rows, which nobody needs to have all of.

Moments are taken of one shard after the other, by whoever owns it, and added in the order of the shards: the
result is the same to the last bit whether one process has all shards or a thousand have one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.data.source import Rows, Scaling

Array = NDArray[np.float64]

BLOCK_BYTES = 1 << 18
"""Of float64 numbers in the processor's cache at a time."""
SPARSE_ROWS = 1 << 10
"""The same for CSR rows: a number that does not depend on who holds what else."""
GATHERED_BYTES = 1 << 20
"""Of moments that all members tell each other at a time."""
CONSTANT = 1e-12
"""A column of one repeated value can show a rounding-sized deviation, this much of its mean; it is still constant."""


def from_moments(mean: Array, variance: Array) -> Scaling:
    """Return the scaling by means and mean squares about them; columns that are constant are only centred."""
    deviation = np.sqrt(variance)
    return Scaling(mean, np.where(deviation <= CONSTANT * np.abs(mean), 1.0, deviation))


def apply(scaling: Scaling, features: Any) -> None:
    """Scale features in place; columns beyond those that the scaling knows, such as one of ones, stay.

    Parameters
    ----------
    scaling : Scaling
    features : ndarray or csr_array
        CSR ones are not centred.
    """
    n_features = len(scaling.scale)
    if not isinstance(features, np.ndarray):
        factors = np.ones(features.shape[1])
        factors[:n_features] /= scaling.scale
        step = BLOCK_BYTES // 8
        for start in range(0, len(features.data), step):
            part = slice(start, start + step)
            np.multiply(
                features.data[part], factors[features.indices[part]], out=features.data[part], casting="same_kind"
            )
        return
    n_rows = _rows_a_block(n_features)
    for start in range(0, len(features), n_rows):
        block = features[start : start + n_rows, :n_features]
        np.subtract(block, scaling.shift, out=block, casting="same_kind")
        np.divide(block, scaling.scale, out=block, casting="same_kind")


def measure(
    features: Any, owned: Mapping[int, Rows], n_features: int, n_shards: int, n_samples: int, crew: Crew
) -> Scaling:
    """Return the scaling of all training rows, of which each member has some. Collective.

    Dense: the mean first, then the squares about it, which loses no digits where the mean is large.

    Parameters
    ----------
    features : ndarray or csr_array
        Not yet scaled; further columns, such as one of ones, do not matter.
    owned : mapping of int to Rows
        Of each shard that this member answers for: where its rows are among the ``features``. Each of the shards has
        one such member.
    n_features, n_shards : int
    n_samples : int
        Training rows of all members.
    crew : Crew
    """
    if not isinstance(features, np.ndarray):
        squares = {shard: _sparse_squares(features, rows, n_features) for shard, rows in owned.items()}
        return from_moments(np.zeros(n_features), _added(squares, n_features, n_shards, crew) / n_samples)
    zero = np.zeros(n_features)
    sums = {shard: _moment(features, rows, zero, 1) for shard, rows in owned.items()}
    mean = _added(sums, n_features, n_shards, crew) / n_samples
    squares = {shard: _moment(features, rows, mean, 2) for shard, rows in owned.items()}
    return from_moments(mean, _added(squares, n_features, n_shards, crew) / n_samples)


def _moment(features: Any, rows: Rows, about: Array, power: int) -> Array:
    """Return the column sums of one shard's (features - about) ** power."""
    total = np.zeros(len(about))
    for part in _parts(rows, _rows_a_block(len(about))):
        # Copied: the sum of an array that lies in memory otherwise may differ in its last bit.
        block = np.array(features[part, : len(about)], dtype=np.float64, order="C")
        block -= about
        if power == 2:
            np.multiply(block, block, out=block)
        total += block.sum(axis=0)
    return total


def _sparse_squares(features: Any, rows: Rows, n_features: int) -> Array:
    """Return the column sums of one shard's squares."""
    total = np.zeros(n_features)
    for part in _parts(rows, SPARSE_ROWS):
        if isinstance(part, slice):
            ends = features.indptr
            stored = slice(ends[part.start], ends[part.stop])
            indices, data = features.indices[stored], features.data[stored]
        else:
            block = features[part]
            indices, data = block.indices, block.data
        data = data.astype(np.float64)
        total += np.bincount(indices, weights=data * data, minlength=n_features)[:n_features]
    return total


def _parts(rows: Rows, n_rows: int) -> Iterator[Rows]:
    """Cut row numbers into pieces of ``n_rows``."""
    if isinstance(rows, slice):
        for start in range(rows.start, rows.stop, n_rows):
            yield slice(start, min(start + n_rows, rows.stop))
    else:
        for start in range(0, len(rows), n_rows):
            yield rows[start : start + n_rows]


def _rows_a_block(n_features: int) -> int:
    return max(1, BLOCK_BYTES // (8 * n_features))


def _added(parts: Mapping[int, Array], n_features: int, n_shards: int, crew: Crew) -> Array:
    """Add up the vectors of all shards in their order, some columns at a time. Collective."""
    total = np.zeros(n_features)
    width = max(1, GATHERED_BYTES // (8 * n_shards))
    for start in range(0, n_features, width):
        columns = slice(start, start + width)
        told: dict[int, Array] = {}
        for theirs in crew.gather({shard: part[columns] for shard, part in parts.items()}):
            told.update(theirs)
        for shard in range(n_shards):
            total[columns] += told[shard]
    return total
