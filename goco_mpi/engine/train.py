"""A whole run on MPI: set up together, go through the rounds alone, evaluate together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.shares import Share
from goco_mpi.engine import evaluate, resuming
from goco_mpi.engine.concluding import conclude
from goco_mpi.engine.loading import Loading, load
from goco_mpi.engine.regrouping import regroup, together
from goco_mpi.engine.requests import Requests
from goco_mpi.engine.resuming import Beginning
from goco_mpi.engine.session import Session
from goco_mpi.engine.setting_up import set_up
from goco_mpi.engine.snapshots import Snapshots
from goco_mpi.engine.stopping import Callback
from goco_mpi.engine.telling import Teller
from goco_mpi.experiment import Layout, lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]


def train(
    config: RunConfig,
    session: Session,
    progress: Callable[[int], None] = lambda round_: None,
    callback: Callback | None = None,
    requests: Requests | None = None,
    beginning: Beginning | None = None,
    warm_start: Path | None = None,
    teller: Teller | None = None,
) -> Outcome | None:
    """Run an experiment on all ranks of ``session``. Collective.

    Parameters
    ----------
    config : RunConfig
        The same on every rank.
    session : Session
    progress : callable (round) -> None
        Called on this rank after every round.
    callback : callable (round, params) -> object, optional
        Likewise; a StopIteration from it ends the run on all ranks.
    requests : Requests, optional
        What may ask the run to end from outside; heard on one rank it ends the run on all.
    beginning : Beginning, optional
        Where the checkpoints go, and which to go on from.
    warm_start : Path, optional
        Run of which the mean parameters are this one's first.
    teller : Teller, optional
        Says where this rank is.

    Returns
    -------
    Outcome or None
        On `Session.root`; None on the others.

    Raises
    ------
    InputError
        If config, data and number of ranks do not fit; the same on every rank.
    RunError
        If the run diverged (the same on every rank), or a rank did not end.
    """
    layout = session.agree(lambda: lay_out(config, session.size))
    session.agree_on("the layout", layout.fingerprint())
    share, loading = load(session, layout)
    dissimilarity = evaluate.gradient_dissimilarity(session, share, config.data.shards)
    warm = None if warm_start is None else resuming.warm_start(session, warm_start, share.n_params)
    start = np.zeros(share.n_params) if warm is None else warm
    outcome = descend(layout, session, share, start, progress, callback, requests, loading, beginning, teller=teller)
    if outcome is None:
        return None
    return dataclasses.replace(outcome, first_params=warm, gradient_dissimilarity=dissimilarity)


def descend(
    layout: Layout,
    session: Session,
    share: Share,
    start: Array,
    progress: Callable[[int], None] = lambda round_: None,
    callback: Callback | None = None,
    requests: Requests | None = None,
    loading: Loading | None = None,
    beginning: Beginning | None = None,
    snapshots: Snapshots | None = None,
    teller: Teller | None = None,
) -> Outcome | None:
    """Go through the rounds of a layout, every rank with its share of the work. Collective.

    Parameters
    ----------
    layout : Layout
        The same on every rank.
    session : Session
    share : Share
        What this rank computes.
    start : ndarray of shape (n_params,)
        First parameters, the same on every rank.
    progress, callback, requests, beginning, teller : optional
        As in `train`.
    loading : Loading, optional
        What getting the data took, for the record.
    snapshots : Snapshots, optional
        Takes this rank's own parameters and times, for whoever wants more than the mean of all.

    Returns
    -------
    Outcome or None
        On `Session.root`; None on the others.

    Raises
    ------
    InputError, RunError
        As `train`.
    """

    def after_round(round_: int) -> None:
        progress(round_)
        if teller is not None:
            teller.after_round(round_, run.loop.params)

    loading = Loading() if loading is None else loading
    run = set_up(layout, session, share, start, after_round, callback, requests, loading, beginning, snapshots)
    with contextlib.nullcontext() if run.background is None else run.background:
        session.barrier()
        if teller is not None:
            teller.start(run.loop, run.work, run.exchange, run.stopping.loss)
        diverged = run.loop.run()
        if teller is not None:
            teller.end()
    shutdown_s = layout.config.deadline.shutdown_s
    run.exchange.close(run.loop.round, run.loop.counts.rounds, diverged, shutdown_s)
    if session.survives:
        regroup(session, shutdown_s)
    return together(session, lambda: conclude(session, run, diverged), shutdown_s)
