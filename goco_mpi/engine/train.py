"""A whole run on MPI: set up together, go through the rounds alone, evaluate together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.config import RunConfig
from goco_mpi.core import gossip, mixing, objectives
from goco_mpi.core.objectives import Objective
from goco_mpi.engine import evaluate
from goco_mpi.engine.deadline import Deadline
from goco_mpi.engine.exchange import AllreduceExchange, Exchange, GossipExchange
from goco_mpi.engine.runner import RoundLoop, Snapshots
from goco_mpi.engine.session import THREADS, Session
from goco_mpi.errors import divergence
from goco_mpi.experiment import Layout, Problem, WorkerRows, lay_out, load_problem, step_schedule
from goco_mpi.record import Outcome

Array = NDArray[np.float64]

FIRST_GOSSIP_S = 0.05
"""Automatic gossip deadline of the first round, when nothing has been measured yet."""


def train(config: RunConfig, session: Session, progress: Callable[[int], None] = lambda round_: None) -> Outcome | None:
    """Run an experiment on all ranks of ``session``. Collective.

    Parameters
    ----------
    config : RunConfig
        The same on every rank.
    session : Session
    progress : callable (round) -> None
        Called on this rank after every round.

    Returns
    -------
    Outcome or None
        On rank 0; None on the others.

    Raises
    ------
    InputError
        If config, data and number of ranks do not fit; the same on every rank.
    RunError
        If the run diverged (the same on every rank), or a rank did not end.
    """
    layout = session.agree(lambda: lay_out(config, session.size))
    session.agree_on("the layout", layout.fingerprint())
    objective, rows, problem = _distribute(session, layout)
    curvature = _curvature(session, layout, objective, rows) if config.step.kind == "auto" else math.nan
    schedule = step_schedule(config, curvature)
    exchange = _exchange(session, layout, objective.n_params)
    snapshots = Snapshots(config.record.every)
    loop = RoundLoop(
        rank=session.rank,
        objective=objective,
        rows=rows.coded,
        method=layout.method,
        exchange=exchange,
        step_size=schedule,
        stragglers=layout.stragglers,
        waits=config.method.late == "wait",
        compute_deadline=Deadline(config.deadline.compute_s, config.deadline.compute_factor),
        n_rounds=config.rounds,
        snapshots=snapshots,
        progress=progress,
    )
    session.barrier()
    diverged = loop.run()
    exchange.close(loop.round, loop.params, diverged, config.deadline.shutdown_s)
    _refuse_divergence(session, loop.round if diverged else None, schedule(loop.round))
    history = evaluate.history(session, objective, rows, snapshots)
    stacked_params = session.comm.gather(loop.params)
    ranks = session.comm.gather(_counts(session, loop, exchange, rows))
    if stacked_params is None or ranks is None:
        return None
    return Outcome(
        history=history,
        ranks=ranks,
        stacked_params=np.stack(stacked_params),
        step_size=schedule(0),
        wall_s=max(row["wall_s"] for row in ranks),
        loss_optimum=None if problem is None else problem.optimum(),
    )


def _counts(session: Session, loop: RoundLoop, exchange: Exchange, rows: WorkerRows) -> dict[str, Any]:
    """Return this rank's row of ``ranks.csv``."""
    return {
        "rank": session.rank,
        "host": session.host,
        "threads": THREADS,
        "rows": rows.coded.n_rows,
        **dataclasses.asdict(loop.counts),
        **dataclasses.asdict(exchange.counts()),
    }


def _distribute(session: Session, layout: Layout) -> tuple[Objective, WorkerRows, Problem | None]:
    """Load the data on rank 0 and give every rank the rows of its shards. Collective.

    One reader is kind to the file system, spares the others the data libraries, and leaves no
    doubt that all train on the same samples.
    """
    root = session.rank == 0
    problem = session.agree(lambda: load_problem(layout.config) if root else None)
    if problem is None:
        objective, rows = session.comm.recv(source=0)
        return objective, rows, None
    for dest in range(1, session.size):
        session.comm.send((problem.objective, problem.worker_rows(layout, dest)), dest)
    return problem.objective, problem.worker_rows(layout, 0), problem if layout.config.record.optimum else None


def _curvature(session: Session, layout: Layout, objective: Objective, rows: WorkerRows) -> float:
    """Return the curvature at the start that decides the automatic step. Collective.

    Gossip is stable when every worker's own step is: the largest of their curvatures decides.
    Synchronous descent sees only their mean.
    """
    start = np.zeros(objective.n_params)

    def local(direction: Array) -> Array:
        return objective.hessian_product(start, rows.coded, direction)

    def mean(direction: Array) -> Array:
        total = np.empty_like(direction)
        session.comm.Allreduce(local(direction), total)
        return total / session.size

    if layout.method.exchange == "allreduce":
        return objectives.curvature(mean, objective.n_params)
    mine = objectives.curvature(local, objective.n_params)
    return float(session.comm.allreduce(mine, MPI.MAX))


def _exchange(session: Session, layout: Layout, n_params: int) -> Exchange:
    """Set up the exchange that the method needs. Collective."""
    config = layout.config
    poll_s = session.poll_s if config.deadline.poll_s == "auto" else float(config.deadline.poll_s)
    if layout.method.exchange == "allreduce":
        return AllreduceExchange(session.comm, n_params, poll_s)
    return GossipExchange(
        session.comm,
        layout.topology.neighbors(session.rank),
        mixing.neighbor_weights(layout.mixing_matrix, layout.topology, session.rank),
        n_params,
        gossip.age_limit(config.method.mixing, config.method.max_age),
        Deadline(config.deadline.gossip_s, config.deadline.gossip_factor, FIRST_GOSSIP_S),
        poll_s,
        lambda source, round_: layout.stragglers.arrives(source, session.rank, round_),
    )


def _refuse_divergence(session: Session, round_: int | None, step_size: float) -> None:
    """End the run on all ranks if one diverged. Collective."""
    rounds = [r for r in session.comm.allgather(round_) if r is not None]
    if rounds:
        error = divergence(min(rounds), step_size)
        error.agreed = True
        raise error
