"""The compiled kernels, where they were built, and which rows they are for.

They compute what `goco_mpi.core.objectives.base` computes with numpy and scipy, which are their fallback and their
oracle (docs/adr/0023-compiled-kernels.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives.rows import WeightedRows

compiled: Any = None
try:
    from goco_mpi.core.objectives import _kernels

    compiled = _kernels
except ImportError:  # built without a compiler, or not built at all
    pass

KINDS = {"least_squares": 0, "logistic": 1, "softmax": 2}

BLOCKS = 4
"""Blocks of rows that numpy would take one by one, in one call: a kernel reads rows once, whatever a block's size."""


def name() -> str:
    """Return what computes gradients, for people."""
    return "numpy" if compiled is None else f"compiled ({compiled.PROCESSOR})"


def fit(kind: str, rows: WeightedRows) -> bool:
    """Return whether there is a kernel for these rows.

    Dense rows with several outputs are left to numpy: there the products are of matrices, and bound by arithmetic.

    Raises
    ------
    ValueError
        If a CSR matrix points outside itself.
    """
    features = rows.features
    if compiled is None or features.dtype not in (np.float64, np.float32):
        return False
    if not all(part.dtype == np.float64 and part.flags.c_contiguous for part in (rows.targets, rows.weights)):
        return False
    if isinstance(features, np.ndarray):
        return kind != "softmax" and features.flags.c_contiguous
    if rows.n_rows == 0 or features.indices.dtype != features.indptr.dtype:
        return False
    rows.known["ones"] = compiled.check_csr(features.data, features.indices, features.indptr, features.shape[1])
    return True


def add(
    kind: str,
    params: NDArray[np.float64],
    rows: WeightedRows,
    block: slice,
    out: NDArray[np.float64] | None,
    with_loss: bool,
) -> float:
    """Add the gradient of some rows' weighted losses to ``out``, if given; return their loss if wanted, else 0."""
    x = rows.features
    if isinstance(x, np.ndarray):
        found: float = compiled.dense(
            KINDS[kind], x[block], rows.targets[block], rows.weights[block], params, out, with_loss
        )
        return found
    return float(
        compiled.csr(
            KINDS[kind],
            x.data,
            x.indices,
            x.indptr,
            rows.known["ones"],
            block.start,
            block.stop,
            x.shape[1],
            rows.targets,
            rows.weights,
            params,
            out,
            with_loss,
        )
    )
