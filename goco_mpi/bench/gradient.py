"""What `goco bench gradient` measures: a gradient against the memory that it must read, and against two products.

In one process and thread, on rows that are ten times as large as the last cache. Seconds are of the processor, so that
what else runs counts little; it shares the memory, though. *Reading* is numpy's dot product of the features with
themselves, which was the fastest way of reading that was found: a sum takes twice as long, and a copy nearly so.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit
from threadpoolctl import threadpool_limits

from goco_mpi import hardware
from goco_mpi.core import objectives
from goco_mpi.core.objectives import Objective, WeightedRows
from goco_mpi.core.shares import ModelShare

Array = NDArray[np.float64]

N_FEATURES = 500
L2 = 1e-2
LAST_CACHE_BYTES = 32 << 20
"""Where the system does not say."""
A9A_ROWS, A9A_FEATURES, A9A_ONES = 32_561, 123, 14


def dense(repeats: int, against: str, dtype: str = "float64", nbytes: int | None = None) -> list[float]:
    """Return how many times as fast as something else the gradient of a least squares problem is.

    Parameters
    ----------
    repeats : int
    against : {'reading', 'two_products', 'float64'}
        Reading the features once; ``features @ params`` and ``features.T @ residuals`` by numpy, each over all rows;
        the gradient on the same numbers in float64.
    dtype : {'float64', 'float32'}
        Of the features.
    nbytes : int, optional
        Of the features in float64 (default: ten times the last cache).
    """
    nbytes = 10 * (hardware.cache_bytes(3) or LAST_CACHE_BYTES) if nbytes is None else nbytes
    wide = _rows(nbytes // (8 * N_FEATURES))
    rows = WeightedRows(wide.features.astype(dtype, copy=False), wide.targets, wide.weights, wide.l2_weight)
    params, objective = np.linspace(-1.0, 1.0, N_FEATURES), _objective("least_squares", N_FEATURES)
    out, outputs = np.empty(N_FEATURES), np.empty(rows.n_rows)
    flat = rows.features.reshape(-1)

    def two_products() -> Array:
        np.matmul(rows.features, params, out=outputs)
        np.subtract(outputs, rows.targets, out=outputs)
        np.multiply(outputs, rows.weights, out=outputs)
        return np.asarray(rows.features.T @ outputs + L2 * params)

    others: dict[str, Callable[[], object]] = {
        "reading": lambda: flat @ flat,
        "two_products": two_products,
        "float64": lambda: objective.gradient(params, wide, out),
    }
    return _ratios(others[against], lambda: objective.gradient(params, rows, out), repeats)


def csr(repeats: int, kind: str, times: int = 1, ones: bool = True) -> list[float]:
    """Return how many times as fast as scipy's two products the gradient on rows like those of a9a is.

    Theirs is what one would write: ``X @ params``, residuals by numpy and `scipy.special.expit`, ``X.T @ residuals``.

    Parameters
    ----------
    repeats : int
    kind : {'least_squares', 'logistic'}
    times : int
        How many times as many rows as a9a has.
    ones : bool
        Whether all values are 1, as those of a9a are, or any numbers.
    """
    rows = like_a9a(times * A9A_ROWS, ones)
    objective, out = _objective(kind, A9A_FEATURES), np.empty(A9A_FEATURES)
    params = np.linspace(-1.0, 1.0, A9A_FEATURES)

    def theirs() -> Array:
        return products(kind, rows, params)

    passes = max(1, 20 // times)  # a fraction of a millisecond is too short to measure
    return _ratios(
        lambda: [theirs() for _ in range(passes)],
        lambda: [objective.gradient(params, rows, out) for _ in range(passes)],
        repeats,
    )


def products(kind: str, rows: WeightedRows, params: Array) -> Array:
    """Return the gradient by two products of scipy."""
    outputs = rows.features @ params
    residuals = -rows.targets * expit(-rows.targets * outputs) if kind == "logistic" else outputs - rows.targets
    return np.asarray(rows.features.T @ (rows.weights * residuals) + L2 * params)


def coded(repeats: int, n_shards: int, nbytes: int = 64 << 20) -> list[float]:
    """Return the seconds of a coded gradient over some shards / of one over a single shard with as many rows.

    Parameters
    ----------
    repeats, n_shards : int
    nbytes : int
        Of the features of all shards.
    """
    rows = _rows(nbytes // (8 * N_FEATURES * n_shards) * n_shards)
    objective, params, out = _objective("least_squares", N_FEATURES), np.ones(N_FEATURES), np.empty(N_FEATURES)

    def share(n: int) -> ModelShare:
        weights = np.linspace(0.5, 1.5, n) / n
        sizes = [rows.n_rows // n] * n
        own = WeightedRows(rows.features, rows.targets, np.repeat(weights, sizes) / rows.n_rows, float(weights.sum()))
        return ModelShare(objective, own, own, sizes, weights, own)

    several, one = share(n_shards), share(1)
    return _ratios(lambda: _exhaust(several, params, out), lambda: _exhaust(one, params, out), repeats)


def _exhaust(share: ModelShare, params: Array, out: Array) -> None:
    for _ in share.gradient_blocks(params, out):
        pass


def _objective(kind: str, n_features: int) -> Objective:
    return objectives.build(kind, n_features, L2, 2, hardware.block_bytes(hardware.cache_bytes(2)))


def _rows(n_rows: int) -> WeightedRows:
    """Return dense rows; some numbers again and again, as drawing so many would take longer than the measurement."""
    features = np.resize(np.random.default_rng(0).standard_normal(1 << 16), (n_rows, N_FEATURES))
    return WeightedRows(features, np.ones(n_rows), np.full(n_rows, 1.0 / n_rows), 1.0)


def like_a9a(n_rows: int, ones: bool) -> WeightedRows:
    """Return CSR rows as a9a has them: a value in each of 14 groups of columns, one in a hundred of them unknown."""
    rng = np.random.default_rng(0)
    groups = np.array_split(np.arange(A9A_FEATURES, dtype=np.int32), A9A_ONES)
    columns = np.stack([rng.choice(group, n_rows) for group in groups], axis=1)
    known = rng.random(columns.shape) < 0.99
    indptr = np.concatenate(([0], np.cumsum(known.sum(axis=1)))).astype(np.int32)
    values = np.ones(int(indptr[-1])) if ones else rng.standard_normal(int(indptr[-1]))
    features = sp.csr_array((values, columns[known], indptr), shape=(n_rows, A9A_FEATURES))
    return WeightedRows(features, rng.choice([-1.0, 1.0], n_rows), np.full(n_rows, 1.0 / n_rows), 1.0)


def _ratios(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of ``theirs`` / those of ``ours``, in turn, after one of each that is thrown away."""
    with threadpool_limits(1):
        return [_seconds(theirs) / _seconds(ours) for _ in range(repeats + 1)][1:]


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start
