"""What one rank's run is made of, set up by all ranks together before their rounds."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.checkpoint import CheckpointFiles, WholeSet
from goco_mpi.core import objectives
from goco_mpi.core.bulletin import Bulletin
from goco_mpi.core.events import EventLog
from goco_mpi.core.methods import State
from goco_mpi.core.pace.deadline import FIRST_GOSSIP_S, Deadline
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.core.shares import Share
from goco_mpi.engine import resuming
from goco_mpi.engine.allreduce_exchange import AllreduceExchange
from goco_mpi.engine.background import Background
from goco_mpi.engine.central_exchange import CentralExchange
from goco_mpi.engine.checkpointing import Checkpointing, refuse_unkeepable
from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.gossip_exchange import GossipExchange
from goco_mpi.engine.gradients import GradientWork
from goco_mpi.engine.loading import Loading
from goco_mpi.engine.recovery import Recovery
from goco_mpi.engine.requests import Requests
from goco_mpi.engine.resuming import Beginning
from goco_mpi.engine.runner import RoundLoop
from goco_mpi.engine.session import Session
from goco_mpi.engine.snapshots import Snapshots, Timeline
from goco_mpi.engine.stopping import Callback, Stopping
from goco_mpi.engine.surviving_exchange import SurvivingExchange
from goco_mpi.errors import InputError
from goco_mpi.experiment import Layout, batch, step_schedule, synchronous_curvature
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RankRun:
    """One rank's part of a run.

    Attributes
    ----------
    layout : Layout
    share : Share
        What this rank computes as long as all live.
    start : ndarray of shape (n_params,)
        First parameters, the same on every rank.
    loading : Loading
    schedule : StepSchedule
    exchange : Exchange
    work : GradientWork
    snapshots : Snapshots
    stopping : Stopping
    loop : RoundLoop
        Of all these.
    recovery : Recovery or None
        Where the run goes on when ranks die.
    checkpointing : Checkpointing or None
    resumed_from : WholeSet or None
        The checkpoint at which ``loop`` begins.
    events : EventLog or None
    timeline : Timeline or None
    clock_offset_s : float
        How far this rank's clock is ahead of rank 0's, for the timeline.
    background : Background or None
        To be entered for the rounds.
    """

    layout: Layout
    share: Share
    start: Array
    loading: Loading
    schedule: StepSchedule
    exchange: Exchange
    work: GradientWork
    snapshots: Snapshots
    stopping: Stopping
    loop: RoundLoop
    recovery: Recovery | None
    checkpointing: Checkpointing | None
    resumed_from: WholeSet | None
    events: EventLog | None
    timeline: Timeline | None
    clock_offset_s: float
    background: Background | None


def set_up(
    layout: Layout,
    session: Session,
    share: Share,
    start: Array,
    progress: Callable[[int], None],
    callback: Callback | None,
    requests: Requests | None,
    loading: Loading,
    beginning: Beginning | None,
    snapshots: Snapshots | None,
) -> RankRun:
    """Set up this rank's part of a run; parameters are those of `goco_mpi.engine.train.descend`. Collective.

    Raises
    ------
    InputError
        If the run cannot begin; on every rank, and nothing of it is left behind.
    """
    config, late = layout.config, layout.config.method.late
    session.agree(lambda: _check_threads(config))
    schedule = _schedule(session, layout, share, start, {} if beginning is None else beginning.facts)
    place = layout.place(session.rank, share, schedule.momentum)

    def first() -> tuple[State, float]:
        begin_s = time.perf_counter()
        return layout.method.start(start, place), time.perf_counter() - begin_s

    state, setup_s = session.agree(first)
    files: CheckpointFiles | None = None
    found: WholeSet | None = None
    kept: dict[str, Any] = {}
    if beginning is not None:
        files = _checkpoint_files(session, config, beginning, schedule, state)
        if beginning.sets:
            found, kept = resuming.read(session, beginning, state)
            files.pin(found)
    # Not before: an exchange is listening already, and nothing but its end would free it.
    exchange = _exchange(session, layout, layout.method.message_size(share.n_params))
    exchange.checkpoint = exchange.heard_checkpoint = 0 if beginning is None else beginning.number
    checkpointing = None
    if files is not None:
        checkpointing = Checkpointing(config.checkpoint, files, exchange, session.rank, session.prefix)
    snapshots = Snapshots(config.record.every) if snapshots is None else snapshots
    recovery = Recovery(layout, session.rank, share, loading.sizes) if session.survives else None
    own_loss = share.loss if recovery is None else recovery.loss
    stopping = Stopping(config.stop, exchange, own_loss, callback, requests)
    events = EventLog(exchange.degree, share.n_shards if late == "partial" else 0) if config.record.events else None
    timeline = Timeline() if config.record.timeline else None
    clock_offset_s = session.clock_offset() if timeline else 0.0
    work = GradientWork(session.rank, share, layout.stragglers, late, batch(config))
    background = Background(exchange.drain) if config.deadline.progress_thread else None
    loop = RoundLoop(
        work=work,
        method=layout.method,
        place=place,
        mixing=layout.mixing(session.rank),
        exchange=exchange,
        step_size=schedule,
        late=late,
        compute_deadline=_compute_deadline(layout),
        n_rounds=config.rounds,
        snapshots=snapshots,
        stopping=stopping,
        progress=progress,
        state=state,
        setup_s=setup_s,
        background=background,
        events=events,
        timeline=timeline,
        recovery=recovery,
        checkpointing=checkpointing,
    )
    if found is not None:
        loop.resume(kept)
    return RankRun(
        layout=layout,
        share=share,
        start=start,
        loading=loading,
        schedule=schedule,
        exchange=exchange,
        work=work,
        snapshots=snapshots,
        stopping=stopping,
        loop=loop,
        recovery=recovery,
        checkpointing=checkpointing,
        resumed_from=found,
        events=events,
        timeline=timeline,
        clock_offset_s=clock_offset_s,
        background=background,
    )


def _check_threads(config: RunConfig) -> None:
    """Refuse a progress thread where MPI was started for one thread only."""
    if config.deadline.progress_thread and MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise InputError(
            "deadline.progress_thread = true needs an MPI that threads may call in turn, and this one was started "
            "without: let goco_mpi start MPI, or start it with MPI.THREAD_SERIALIZED."
        )


def _schedule(session: Session, layout: Layout, share: Share, start: Array, facts: dict[str, Any]) -> StepSchedule:
    """Return the step sizes, as they were where the run goes on. Collective."""
    if facts:
        return dataclasses.replace(step_schedule(layout.config, 1.0), **facts)
    automatic = layout.config.step.kind == "auto"
    return step_schedule(layout.config, *(_curvature(session, layout, share, start) if automatic else (math.nan, None)))


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


def _checkpoint_files(
    session: Session, config: RunConfig, beginning: Beginning, schedule: StepSchedule, state: State
) -> CheckpointFiles:
    """Return the run's checkpoints, once it is clear that those asked for can be made and written. Collective."""
    files = beginning.files(config, session.size, {"size": schedule.size, "momentum": schedule.momentum})
    if config.checkpoint.every is not None or config.checkpoint.every_s is not None:
        session.agree(lambda: refuse_unkeepable(state))
        session.agree(lambda: files.refuse_unwritable(session.rank))
    return files


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
