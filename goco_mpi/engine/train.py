"""A whole run on MPI: set up together, go through the rounds alone, evaluate together."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.checkpoint import EARLY
from goco_mpi.core import objectives
from goco_mpi.core.bulletin import Bulletin
from goco_mpi.core.events import EventLog
from goco_mpi.core.pace.deadline import FIRST_GOSSIP_S, Deadline
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.core.shares import ModelShare, Share
from goco_mpi.core.survivors import DISCONNECTED, LOST_SHARD, shards_text
from goco_mpi.engine import evaluate, resuming
from goco_mpi.engine.allreduce_exchange import AllreduceExchange
from goco_mpi.engine.background import Background
from goco_mpi.engine.central_exchange import CentralExchange
from goco_mpi.engine.checkpointing import Checkpointing
from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.gossip_exchange import GossipExchange
from goco_mpi.engine.gradients import GradientWork
from goco_mpi.engine.loading import Loading, load
from goco_mpi.engine.memory import peak_mib
from goco_mpi.engine.optimum import optimum
from goco_mpi.engine.recovery import Recovery
from goco_mpi.engine.regrouping import regroup, together
from goco_mpi.engine.requests import Requests
from goco_mpi.engine.resuming import Beginning
from goco_mpi.engine.runner import RoundLoop
from goco_mpi.engine.session import THREADS, Session
from goco_mpi.engine.snapshots import Snapshots, Timeline
from goco_mpi.engine.stopping import Stopping
from goco_mpi.engine.surviving_exchange import SurvivingExchange
from goco_mpi.engine.telling import Teller
from goco_mpi.errors import InputError, divergence
from goco_mpi.experiment import Layout, batch, lay_out, step_schedule, synchronous_curvature
from goco_mpi.outcome import Death, Outcome
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]

Callback = Callable[[int, Array], object]


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
    session.agree(lambda: _check_threads(config))
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
    config, late = layout.config, layout.config.method.late
    loading = Loading() if loading is None else loading
    sizes = loading.sizes
    schedule = _schedule(session, layout, share, start, {} if beginning is None else beginning.facts)
    exchange = _exchange(session, layout, layout.method.message_size(share.n_params))
    snapshots = Snapshots(config.record.every) if snapshots is None else snapshots
    recovery = Recovery(layout, session.rank, share, sizes) if session.survives else None
    own_loss = share.loss if recovery is None else recovery.loss
    stopping = Stopping(config.stop, exchange, own_loss, callback, requests)
    events = EventLog(exchange.degree, share.n_shards if late == "partial" else 0) if config.record.events else None
    checkpointing = _checkpointing(session, config, exchange, schedule, beginning)
    timeline = Timeline() if config.record.timeline else None
    clock_offset_s = session.clock_offset() if timeline else 0.0
    work = GradientWork(session.rank, share, layout.stragglers, late, batch(config))

    def after_round(round_: int) -> None:
        progress(round_)
        if teller is not None:
            teller.after_round(round_, loop.params)

    with contextlib.ExitStack() as stack:
        background = stack.enter_context(Background(exchange.drain)) if config.deadline.progress_thread else None
        loop = RoundLoop(
            work=work,
            method=layout.method,
            place=layout.place(session.rank, share, schedule.momentum),
            mixing=layout.mixing(session.rank),
            exchange=exchange,
            step_size=schedule,
            late=late,
            compute_deadline=_compute_deadline(layout),
            n_rounds=config.rounds,
            snapshots=snapshots,
            stopping=stopping,
            progress=after_round,
            start=start,
            background=background,
            events=events,
            timeline=timeline,
            recovery=recovery,
            checkpointing=checkpointing,
        )
        found = None
        if beginning is not None and beginning.sets:
            found, kept = resuming.read(session, beginning, loop.state)
            loop.resume(kept)
            if checkpointing is not None:
                checkpointing.pin(found)
        session.barrier()
        if teller is not None:
            teller.start(loop, work, exchange, own_loss)
        diverged = loop.run()
        if teller is not None:
            teller.end()
    shutdown_s = config.deadline.shutdown_s
    exchange.close(loop.round, loop.counts.rounds, diverged, shutdown_s)
    if session.survives:
        regroup(session, shutdown_s)

    def conclude() -> Outcome | None:
        """Work out together what was achieved. Collective, and the same when done again."""
        step_size = schedule(loop.round) if layout.method.steps else None
        _refuse_divergence(session, loop.round if diverged else None, step_size)
        stopped_by, last_round = _end(session, stopping.reason, loop.round, config.rounds)
        if checkpointing is not None:
            checkpointing.settle(stopped_by in EARLY, shutdown_s)
        snapshots.finish(last_round, loop.counts.wall_s, loop.params, loop.spent())
        alone = () if recovery is None else sorted(set(range(session.size)) - set(session.comm.allgather(session.rank)))
        left = layout.without(alone) if alone else None
        part = share if recovery is None or left is None else recovery.owner(left)
        history = evaluate.history(session, part, snapshots)
        stacked_params = session.comm.gather(loop.params)
        ranks = session.comm.gather(_counts(session, loop, exchange, share, checkpointing, loading))
        if checkpointing is not None and session.root:
            checkpointing.tidy()  # all ranks have written what they will
        loss_start = None if found is None else session.comm.allreduce(part.loss(start))
        heard = session.comm.gather({} if recovery is None else recovery.dead)
        tables = session.comm.gather(None if events is None else events.events().table)
        whole = not alone  # a record without the dead's part of it tells no story
        lost = left is not None and bool(left.lost_shards)
        best = None
        if config.record.optimum and isinstance(part, ModelShare) and not lost:  # else it would be another function's
            best = optimum(session, part, loading.problem)
        times = session.comm.gather(None if timeline is None else timeline.table(exchange.degree, clock_offset_s))
        if stacked_params is None or ranks is None or heard is None or tables is None or times is None:
            return None
        if lost and config.stop.on_lost_shard == "stop" and stopped_by != DISCONNECTED:
            stopped_by = LOST_SHARD  # however late: what was reached cannot be told without the data
        return Outcome(
            history=history,
            ranks=ranks,
            stacked_params=np.stack(stacked_params),
            step_size=schedule(0),
            momentum=schedule.momentum,
            wall_s=max(row["wall_s"] for row in ranks),
            loss_optimum=best,
            stopped_by=stopped_by,
            events=tables if events is not None and whole else None,
            timeline=times if timeline is not None and whole else None,
            loss_start=loss_start,
            resumed_from=found,
            deaths=[
                Death(
                    rank, {row["rank"]: known[rank] for row, known in zip(ranks, heard, strict=True) if rank in known}
                )
                for rank in alone
            ],
            lost=shards_text(left.lost_shards, sizes) if left is not None and lost else None,
        )

    return together(session, conclude, shutdown_s)


def _schedule(session: Session, layout: Layout, share: Share, start: Array, facts: dict[str, Any]) -> StepSchedule:
    """Return the step sizes, as they were where the run goes on. Collective."""
    if facts:
        return dataclasses.replace(step_schedule(layout.config, 1.0), **facts)
    automatic = layout.config.step.kind == "auto"
    return step_schedule(layout.config, *(_curvature(session, layout, share, start) if automatic else (math.nan, None)))


def _checkpointing(
    session: Session, config: RunConfig, exchange: Exchange, schedule: StepSchedule, beginning: Beginning | None
) -> Checkpointing | None:
    """Return what keeps this rank's state on disk, once it is clear that it can. Collective."""
    if beginning is None:
        return None
    files = beginning.files(config, session.size, {"size": schedule.size, "momentum": schedule.momentum})
    if config.checkpoint.every is not None or config.checkpoint.every_s is not None:
        session.agree(lambda: files.refuse_unwritable(session.rank))
    exchange.checkpoint = exchange.heard_checkpoint = beginning.number
    return Checkpointing(config.checkpoint, files, exchange, session.rank, session.prefix)


def _check_threads(config: RunConfig) -> None:
    """Refuse a progress thread where MPI was started for one thread only."""
    if config.deadline.progress_thread and MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise InputError(
            "deadline.progress_thread = true needs an MPI that threads may call in turn, and this one was started "
            "without: let goco_mpi start MPI, or start it with MPI.THREAD_SERIALIZED."
        )


def _end(session: Session, reason: str | None, round_: int, n_rounds: int) -> tuple[str, int]:
    """Return by what the run ended, and its last round. Collective."""
    ends = session.comm.allgather((round_, reason))
    reasons = sorted((at, why) for at, why in ends if why is not None)
    return (reasons[0][1], max(at for at, _ in ends)) if reasons else ("rounds", n_rounds)


def _counts(
    session: Session,
    loop: RoundLoop,
    exchange: Exchange,
    share: Share,
    checkpointing: Checkpointing | None,
    loading: Loading,
) -> dict[str, Any]:
    """Return this rank's row of ``ranks.csv``."""
    return {
        "rank": session.rank,
        "host": session.host,
        "threads": THREADS,
        "rows": share.n_rows,
        **dataclasses.asdict(loop.counts),
        **loop.method_counts,
        **dataclasses.asdict(exchange.counts()),
        **({} if checkpointing is None else checkpointing.counts()),
        "bytes_read": loading.bytes_read,
        "load_s": loading.load_s,
        "peak_mib": peak_mib(),
    }


def _curvature(session: Session, layout: Layout, share: Share, start: Array) -> tuple[float, float | None]:
    """Return the curvature at the start that decides the automatic step, and the best momentum. Collective.

    Gossip is stable when every worker's own step is: the largest of their curvatures decides.
    Synchronous descent and a master see only their mean.
    """
    share = layout.decoded(session.rank, share)

    def local(direction: Array) -> Array:
        return share.hessian_product(start, direction)

    def mean(direction: Array) -> Array:
        total = np.empty_like(direction)
        session.comm.Allreduce(local(direction), total)
        return total / session.size

    if layout.method.exchange != "gossip":
        return synchronous_curvature(layout.config, mean, share.n_params, share.quadratic)
    mine = objectives.curvature(local, share.n_params)
    return float(session.comm.allreduce(mine, MPI.MAX)), None


def _compute_deadline(layout: Layout) -> Deadline:
    """Return the deadline of a rank's own gradient: with a master, that is the master's to say."""
    section = layout.config.deadline
    if layout.method.exchange == "central":
        return Deadline(math.inf, section.compute_factor)
    return Deadline(section.compute_s, section.compute_factor)


def _all(finished: NDArray[np.bool_]) -> bool:
    return bool(finished.all())


def _exchange(session: Session, layout: Layout, message_size: int) -> Exchange:
    """Set up the exchange that the method needs. Collective."""
    config = layout.config
    poll_s = session.poll_s if config.deadline.poll_s == "auto" else float(config.deadline.poll_s)
    if layout.method.exchange == "allreduce":
        return AllreduceExchange(session.comm, message_size, poll_s)
    if layout.method.exchange == "central":
        return CentralExchange(
            session.comm,
            message_size,
            _all if layout.code is None or config.method.late == "wait" else layout.code.decodable,
            Deadline(config.deadline.compute_s, config.deadline.compute_factor),
            poll_s,
            None if config.stop.target_loss is None else Bulletin(session.size),
        )
    lossy = layout.stragglers.lossy
    gossip: Callable[..., Exchange] = GossipExchange
    if session.survives and layout.method.survives:  # otherwise a death on an edge ends the run
        gossip = partial(SurvivingExchange, restarts=layout.method.restarts)
    return gossip(
        session.comm,
        layout.topology.neighbors(session.rank),
        message_size,
        Deadline(config.deadline.gossip_s, config.deadline.gossip_factor, FIRST_GOSSIP_S),
        poll_s,
        (lambda source, round_: layout.stragglers.arrives(source, session.rank, round_)) if lossy else None,
        None if config.stop.target_loss is None else Bulletin(session.size),
        layout.topology.diameter if layout.method.in_step else None,
    )


def _refuse_divergence(session: Session, round_: int | None, step_size: float | None) -> None:
    """End the run on all ranks if one diverged. Collective."""
    rounds = [r for r in session.comm.allgather(round_) if r is not None]
    if rounds:
        raise session.agreed(divergence(min(rounds), step_size))
