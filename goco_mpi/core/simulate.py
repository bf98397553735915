"""The whole network in one process: the oracle for ``engine``.

The methods are those of `goco_mpi.core.stacked`, written from the equations, not from the engine nor from
`goco_mpi.core.methods`. Time does not pass here; who is late is scripted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch
from goco_mpi.core.compression import Compression
from goco_mpi.core.shares import Share
from goco_mpi.core.stacked import STEPS, Links, StackedCompressed, StackedMomentum, StackedRunningSums, Step
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import divergence

Array = NDArray[np.float64]
Observe = Callable[[int, Array], bool]


def simulate(
    shares: Sequence[Share],
    step_size: Callable[[int], float],
    stragglers: StragglerModel,
    n_rounds: int,
    *,
    mixing_matrix: sp.csr_array | None,
    method: str = "goco",
    rule: str = "stale",
    max_age: int = 0,
    late: str = "discard",
    compression: Compression | None = None,
    batch: Batch | None = None,
    momentum: float = 0.0,
    observe: Observe = lambda round_, stacked_params: True,
) -> Array:
    """Run ``n_rounds`` rounds from zero and return all workers' parameters.

    Parameters
    ----------
    shares : sequence of Share, length n_workers
    step_size : callable round -> float
    stragglers : StragglerModel
        A scripted model; see `StragglerModel.scripted`.
    n_rounds : int
    mixing_matrix : csr_array of shape (n_workers, n_workers) or None
        W; None where there are no edges.
    method : str
        A key of ``STEPS``.
    rule : {'stale', 'fold', 'symmetric', 'running'}
        What is done about lost messages.
    max_age : int
        stale: largest age in rounds at which a neighbour's vector is mixed.
    late : {'discard', 'partial', 'memory', 'wait'}
        What a straggler's step is taken with: nothing, the shards it finished, its last whole
        gradient; or everyone waits and there are no stragglers.
    compression : Compression, optional
        Of the messages; with the methods 'goco' and 'dgd' under the rule 'stale'.
    batch : Batch, optional
        Of the rows that gradients are taken of; in round t that of step t.
    momentum : float
        beta of the quasi-global momentum of 'goco' and 'dgd', in [0, 1).
    observe : callable (round, X) -> bool
        Called before every round and once after the last; a False ends the run. X must not be kept.

    Returns
    -------
    ndarray of shape (n_workers, n_params)

    Raises
    ------
    RunError
        If the parameters grow without bound.

    References
    ----------
    Each method's own, in `goco_mpi.core.methods`.
    """
    n_workers = len(shares)
    x = np.zeros((n_workers, shares[0].n_params))
    g = np.zeros_like(x)
    matrix = sp.eye_array(n_workers, format="csr") if mixing_matrix is None else mixing_matrix
    links = Links(matrix, stragglers, rule, max_age)
    step: Step
    if compression is not None:
        step = StackedCompressed(x, links, compression)
    elif momentum:
        step = StackedMomentum(x, links, momentum)
    else:
        step = (StackedRunningSums if rule == "running" else STEPS[method])(x, links, shares)
    for t in range(n_rounds):
        if not observe(t, step.x):
            return step.x
        finished = np.ones(n_workers, dtype=bool)
        for i, share in enumerate(shares):
            weights = step.weights(i, t)
            if weights is not None:
                share = share.reweighted(weights)
            if batch is not None:
                share = batch.of(share, i, t)
            if late == "wait" or stragglers.finishes(i, t):
                g[i] = share.gradient(step.x[i])
            elif late == "partial":
                n_finished = stragglers.shards_finished(i, t, share.n_shards)
                shards = stragglers.shard_order(i, t, share.n_shards)[:n_finished]
                g[i] = sum((share.gradient(step.x[i], k) for k in shards), start=np.zeros(share.n_params))
                finished[i] = n_finished > 0
            else:
                finished[i] = False
                if late == "discard":
                    g[i] = 0.0
        eta = step_size(t)
        step.advance(g, finished, eta, t)
        # Far below overflow, so that nothing computed from it warns or becomes NaN unseen.
        if not np.abs(step.x).max() < 1e100:
            raise divergence(t, eta)
    observe(n_rounds, step.x)
    return step.x
