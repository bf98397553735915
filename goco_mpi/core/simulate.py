"""The whole network in one process on stacked arrays: the oracle for ``engine``.

Written from the equations, not from the engine: parameters are a matrix X of shape
(n_workers, n_params), gossip is a sparse matrix product, lateness is a mask. Time does not
pass here; who is late is scripted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from goco_mpi.core.shares import Share
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
    age_limit: int = 0,
    late: str = "discard",
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
        W; None stands for the synchronous allreduce of gradients.
    age_limit : int
        Largest age in rounds at which a neighbour's vector is mixed; matters with lossy links.
    late : {'discard', 'partial', 'memory', 'wait'}
        What a straggler's step is taken with: nothing, the shards it finished, its last whole
        gradient; or everyone waits and there are no stragglers.
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
    The rounds of `goco_mpi.core.methods.goco`, `dgd` and `allreduce`.
    """
    n_workers = len(shares)
    x = np.zeros((n_workers, shares[0].n_params))
    g = np.zeros_like(x)
    links = None if mixing_matrix is None else _LossyLinks(mixing_matrix, stragglers, age_limit)
    for t in range(n_rounds):
        if not observe(t, x):
            return x
        for i, share in enumerate(shares):
            if late == "wait" or stragglers.finishes(i, t):
                g[i] = share.gradient(x[i])
            elif late == "partial":
                n_finished = stragglers.shards_finished(i, t, share.n_shards)
                finished = stragglers.shard_order(i, t, share.n_shards)[:n_finished]
                g[i] = sum((share.gradient(x[i], k) for k in finished), start=np.zeros(share.n_params))
            elif late == "discard":
                g[i] = 0.0
        eta = step_size(t)
        x = x - eta * g.mean(axis=0) if links is None else links.mix(x - eta * g, t)
        # Far below overflow, so that nothing computed from it warns or becomes NaN unseen.
        if not np.abs(x).max() < 1e100:
            raise divergence(t, eta)
    observe(n_rounds, x)
    return x


class _LossyLinks:
    """Gossip X <- W V where the messages of some edges are lost and older vectors stand in."""

    def __init__(self, mixing_matrix: sp.csr_array, stragglers: StragglerModel, age_limit: int) -> None:
        self.matrix = mixing_matrix
        self.stragglers = stragglers
        self.age_limit = age_limit
        entries = mixing_matrix.tocoo()
        off = (entries.row != entries.col) & (entries.data != 0.0)
        self.dest, self.source, self.weight = entries.row[off], entries.col[off], entries.data[off]
        self.last_round = np.full(len(self.dest), -(2**62), dtype=np.int64)
        self.last_value: Array | None = None

    def mix(self, v: Array, t: int) -> Array:
        if self.stragglers.link_p == 0.0:
            return np.asarray(self.matrix @ v)
        if self.last_value is None:
            self.last_value = np.zeros((len(self.dest), v.shape[1]))
        arrived = np.array(
            [self.stragglers.arrives(int(j), int(i), t) for i, j in zip(self.dest, self.source, strict=True)],
            dtype=bool,
        )
        self.last_value[arrived] = v[self.source[arrived]]
        self.last_round[arrived] = t
        usable = t - self.last_round <= self.age_limit
        x = v.copy()
        np.add.at(
            x,
            self.dest[usable],
            self.weight[usable, None] * (self.last_value[usable] - v[self.dest[usable]]),
        )
        return x
