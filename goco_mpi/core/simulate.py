"""The whole network in one process: the oracle for ``engine``.

The methods are those of `goco_mpi.core.stacked`, written from the equations, not from the engine nor from
`goco_mpi.core.methods`. Time does not pass here; who is late is scripted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch
from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Step
from goco_mpi.core.stacked.gradients import StackedGradients
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import divergence

Array = NDArray[np.float64]
Observe = Callable[[int, Array], bool]
Worked = Callable[[Array], object]


def simulate(
    step: Step,
    shares: Sequence[Share],
    step_size: Callable[[int], float],
    stragglers: StragglerModel,
    n_rounds: int,
    *,
    late: str = "discard",
    batch: Batch | None = None,
    observe: Observe = lambda round_, stacked_params: True,
    worked: Worked = lambda done: None,
) -> Array:
    """Run ``n_rounds`` rounds and return all workers' parameters.

    Parameters
    ----------
    step : Step
        The method where it starts; it is not to be used again.
    shares : sequence of Share, length n_workers
    step_size : callable round -> float
    stragglers : StragglerModel
        A scripted model; see `StragglerModel.scripted`. That of the step's messages.
    n_rounds : int
    late : {'discard', 'partial', 'memory', 'wait'}
        What a straggler's step is taken with: nothing, the shards it finished, its last whole
        gradient; or everyone waits and there are no stragglers.
    batch : Batch, optional
        Of the rows that gradients are taken of; in round t that of step t.
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
    g = np.zeros_like(step.x)
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
