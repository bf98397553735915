"""The methods once more, on stacked arrays: the oracle for ``core.methods`` and ``engine``.

Written from the equations, and sharing no code with what they are to check: parameters are a matrix X
of shape (n_workers, n_params), gossip is a sparse matrix product, lateness is a mask.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.allreduce import (
    StackedDescentOnMean,
    StackedLbfgs,
    StackedNesterov,
    StackedPreconditioned,
    stacked_conjugate_gradients,
)
from goco_mpi.core.stacked.base import Array, Links, Step
from goco_mpi.core.stacked.central import StackedCentral, StackedMasterCg
from goco_mpi.core.stacked.chebyshev import StackedChebyshev
from goco_mpi.core.stacked.compressed import StackedCompressed
from goco_mpi.core.stacked.exact_diffusion import StackedExactDiffusion
from goco_mpi.core.stacked.goco import StackedDescent
from goco_mpi.core.stacked.momentum import StackedMomentum
from goco_mpi.core.stacked.push_pull import StackedPushPull
from goco_mpi.core.stacked.running_sums import StackedRunningSums
from goco_mpi.core.stacked.table_newton import StackedNewton
from goco_mpi.core.stragglers import StragglerModel

Kind = Callable[[Array, Links, Sequence[Share]], Step]
"""(X, links, shares) -> a method of gossip at its start."""

STEPS: dict[str, Kind] = {
    "goco": StackedDescent,
    "push_pull": StackedPushPull,
    "exact_diffusion": StackedExactDiffusion,
    "table_newton": StackedNewton,
    "dgd": StackedDescent,
}
"""The methods of gossip, as ``method.kind`` names them."""

SOLVERS: dict[str, Callable[[Array, Sequence[Share], float | None], Step]] = {
    "descent": StackedDescentOnMean,
    "nesterov": StackedNesterov,
    "cg": stacked_conjugate_gradients,
    "lbfgs": StackedLbfgs,
    "preconditioned_cg": StackedPreconditioned,
    "master_cg": StackedMasterCg,
}
"""What is made of the mean gradient; the last two of 'allreduce' and of a master alone."""


def start(shares: Sequence[Share]) -> Array:
    """Return where all begin: zeros of shape (n_workers, n_params)."""
    return np.zeros((len(shares), shares[0].n_params))


def gossip_step(
    shares: Sequence[Share],
    mixing_matrix: sp.csr_array,
    stragglers: StragglerModel,
    method: str | Kind = "goco",
    rule: str = "stale",
    max_age: int = 0,
) -> Step:
    """Return a method of gossip at its start.

    Parameters
    ----------
    shares : sequence of Share, length n_workers
    mixing_matrix : csr_array of shape (n_workers, n_workers)
        W.
    stragglers : StragglerModel
        Says which messages are lost.
    method : str or callable
        A key of ``STEPS``, or what would stand there.
    rule : {'stale', 'fold', 'symmetric', 'running'}
        What is done about lost messages.
    max_age : int
        stale: largest age in rounds at which a neighbour's vector is mixed.
    """
    kind = StackedRunningSums if rule == "running" else STEPS[method] if isinstance(method, str) else method
    return kind(start(shares), Links(mixing_matrix, stragglers, rule, max_age), shares)


__all__ = [
    "SOLVERS",
    "STEPS",
    "Links",
    "StackedCentral",
    "StackedChebyshev",
    "StackedCompressed",
    "StackedMomentum",
    "StackedRunningSums",
    "Step",
    "gossip_step",
    "start",
]
