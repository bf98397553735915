"""The whole network in one process: the oracle for ``engine``.

The methods are those of `goco_mpi.core.stacked`, written from the equations, not from the engine nor from
`goco_mpi.core.methods`. Time does not pass here; who is late is scripted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from goco_mpi.core import mixing
from goco_mpi.core.batches import Batch
from goco_mpi.core.compression import Compression
from goco_mpi.core.shares import Share
from goco_mpi.core.stacked import (
    CENTRAL,
    SOLVERS,
    STEPS,
    Links,
    StackedCentral,
    StackedChebyshev,
    StackedCompressed,
    StackedMomentum,
    StackedRunningSums,
    Step,
)
from goco_mpi.core.stacked.gradients import StackedGradients
from goco_mpi.core.stacked.rated import StackedRated, Weigh
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import divergence

Array = NDArray[np.float64]
Finished = NDArray[np.bool_]
Observe = Callable[[int, Array], bool]
Worked = Callable[[Array], object]


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
    rates: str = "stated",
    weigh: Weigh | None = None,
    all_weights: Array | None = None,
    solver: str = "descent",
    momentum: float | None = None,
    code: Array | None = None,
    compression: Compression | None = None,
    batch: Batch | None = None,
    beta: float = 0.0,
    gossip_rounds: int = 1,
    observe: Observe = lambda round_, stacked_params: True,
    worked: Worked = lambda done: None,
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
        A key of ``STEPS``, 'allreduce', or one of ``CENTRAL``.
    rule : {'stale', 'fold', 'symmetric', 'running'}
        What is done about lost messages.
    max_age : int
        stale: largest age in rounds at which a neighbour's vector is mixed.
    late : {'discard', 'partial', 'memory', 'wait'}
        What a straggler's step is taken with: nothing, the shards it finished, its last whole
        gradient; or everyone waits and there are no stragglers.
    rates : {'stated', 'counted', 'ema', 'live'}
        Where completion rates come from; ``stated``: the shares' weights have them in.
    weigh : callable (worker, q) -> ndarray, optional
        The (N/M) a_ik of a worker's shards where the completion rates are q; for the other kinds of rates.
    all_weights : ndarray of shape (n_workers, n_shards), optional
        (N/M) a_ik, for methods that change them in the course of a run; without, none does.
    solver : str
        A key of ``SOLVERS``, for 'allreduce' and those of ``CENTRAL``.
    momentum : float, optional
        Of accelerated descent, where it is known.
    code : ndarray of shape (n_workers, n_shards), optional
        Exact encoding weights that a master decodes.
    compression : Compression, optional
        Of the messages; with the methods 'goco' and 'dgd' under the rule 'stale'.
    batch : Batch, optional
        Of the rows that gradients are taken of; in round t that of step t.
    beta : float
        beta of the quasi-global momentum of 'goco' and 'dgd', in [0, 1).
    gossip_rounds : int
        Rounds to one gradient, for 'goco' and 'dgd'.
    observe : callable (round, X) -> bool
        Called before every round and once after the last; a False ends the run. X must not be kept.
    worked : callable (done) -> object
        Called in every round with the share of its gradient that each worker finished, shape (n_workers,).

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
    if method in CENTRAL:
        step = StackedCentral(x, shares, SOLVERS[solver], momentum, code)
    elif method == "allreduce":
        step = SOLVERS[solver](x, shares, momentum)
    elif compression is not None:
        step = StackedCompressed(x, links, compression)
    elif gossip_rounds > 1:
        step = StackedChebyshev(x, links, gossip_rounds, 1.0 - mixing.spectral_gap(matrix))
    elif beta:
        step = StackedMomentum(x, links, beta)
    else:
        step = (StackedRunningSums if rule == "running" else STEPS[method])(x, links, shares)
    step.all_weights = all_weights
    if weigh is not None and rates != "stated":
        step = StackedRated(step, Links(matrix, stragglers, rule, max_age), rates, weigh)
    gradients = StackedGradients(shares)
    everyone, nobody = np.ones(n_workers, dtype=bool), np.zeros(n_workers, dtype=bool)
    reweighs = type(step).weights is not Step.weights  # or there is no need to ask a thousand workers
    for t in range(n_rounds):
        if not observe(t, step.x):
            return step.x
        finished, parts = everyone, None
        if late != "wait":
            finished = stragglers.finishing(t)
        needed = step.needs_gradient(t)
        if not needed:
            finished = nobody
        done = finished.astype(np.float64)
        if late == "partial" and needed:
            parts = stragglers.shards_in_time(gradients.worker, gradients.place, t)
            done = np.bincount(gradients.worker, parts, minlength=n_workers) / np.maximum(gradients.n_held, 1)
            finished = finished | (done > 0.0)
        weights = _weights(step, shares, t) if reweighs else None
        if batch is None:
            gradients.into(g, step.x, finished, weights, parts)
        else:
            drawn = StackedGradients([batch.of(share, i, t) for i, share in enumerate(shares)])
            drawn.into(g, step.x, finished, weights, parts)
        if late != "memory":
            g[~finished] = 0.0
        eta = step_size(t)
        worked(done)
        step.work(done, t)
        step.advance(g, finished, eta, t)
        # Far below overflow, so that nothing computed from it warns or becomes NaN unseen.
        if not max(step.x.max(), -step.x.min()) < 1e100:
            raise divergence(t, eta if step.steps else None)
    observe(n_rounds, step.x)
    return step.x


def _weights(step: Step, shares: Sequence[Share], t: int) -> Array | None:
    """Return what all workers' gradients of a round are taken with; None: the shares' own."""
    given = [step.weights(i, t) for i in range(len(shares))]
    if all(weights is None for weights in given):
        return None
    return np.concatenate(
        [share.weights if weights is None else weights for share, weights in zip(shares, given, strict=True)]
    )
