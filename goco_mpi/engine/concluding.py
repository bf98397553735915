"""What a run came to: worked out by all ranks together when their rounds are over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.checkpoint import EARLY
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.survivors import DISCONNECTED, LOST_SHARD, shards_text
from goco_mpi.engine import evaluate
from goco_mpi.engine.memory import peak_mib
from goco_mpi.engine.optimum import optimum
from goco_mpi.engine.session import THREADS, Session
from goco_mpi.engine.setting_up import RankRun
from goco_mpi.errors import divergence
from goco_mpi.outcome import Death, Outcome
from goco_mpi.pairings import has_own_steps

Array = NDArray[np.float64]


def conclude(session: Session, run: RankRun, diverged: bool) -> Outcome | None:
    """Return what was achieved, on `Session.root`; None on the others. Collective, and the same when done again.

    Parameters
    ----------
    session : Session
    run : RankRun
        Whose rounds are over, and its exchange closed.
    diverged : bool
        Whether this rank's parameters grew without bound.

    Raises
    ------
    RunError
        If the run diverged on any rank; on every rank.
    """
    layout, loop, exchange, checkpointing = run.layout, run.loop, run.exchange, run.checkpointing
    config = layout.config
    _refuse_divergence(session, run, diverged)
    stopped_by, last_round = _end(session, run.stopping.reason, loop.round, config.rounds)
    if checkpointing is not None:
        checkpointing.settle(stopped_by in EARLY, config.deadline.shutdown_s)
    run.snapshots.finish(last_round, loop.counts.wall_s, loop.params, loop.spent())
    dead = [] if run.recovery is None else sorted(set(range(session.size)) - set(session.comm.allgather(session.rank)))
    left = layout.without(dead) if dead else None
    lost = left is not None and bool(left.lost_shards)
    part = run.share if run.recovery is None or left is None else run.recovery.owner(left)
    history = evaluate.history(session, part, run.snapshots)
    stacked_params = session.comm.gather(loop.params)
    ranks = session.comm.gather(_counts(session, run))
    if checkpointing is not None and session.root:
        checkpointing.tidy()  # all ranks have written what they will
    loss_start = None if run.resumed_from is None else session.comm.allreduce(part.loss(run.start))
    heard = session.comm.gather({} if run.recovery is None else run.recovery.dead)
    tables = session.comm.gather(None if run.events is None else run.events.events().table)
    best = None
    if config.record.optimum and isinstance(part, ModelShare) and not lost:  # else it would be another function's
        best = optimum(session, part, run.loading.problem)
    times = session.comm.gather(
        None if run.timeline is None else run.timeline.table(exchange.degree, run.clock_offset_s)
    )
    if stacked_params is None or ranks is None or heard is None or tables is None or times is None:
        return None
    if lost and config.stop.on_lost_shard == "stop" and stopped_by != DISCONNECTED:
        stopped_by = LOST_SHARD  # however late: what was reached cannot be told without the data
    return Outcome(
        history=history,
        ranks=ranks,
        stacked_params=np.stack(stacked_params),
        step_size=run.schedule(0),
        momentum=run.schedule.momentum,
        wall_s=max(row["wall_s"] for row in ranks),
        loss_optimum=best,
        stopped_by=stopped_by,
        # A record without the dead's part of it tells no story.
        events=None if run.events is None or dead else tables,
        timeline=None if run.timeline is None or dead else times,
        loss_start=loss_start,
        resumed_from=run.resumed_from,
        deaths=[_death(rank, ranks, heard) for rank in dead],
        lost=shards_text(left.lost_shards, run.loading.sizes) if left is not None and lost else None,
    )


def _refuse_divergence(session: Session, run: RankRun, diverged: bool) -> None:
    """End the run on all ranks if one diverged. Collective."""
    diverged_in = session.comm.allgather(run.loop.round if diverged else None)
    rounds = [round_ for round_ in diverged_in if round_ is not None]
    if rounds:
        step_size = None if has_own_steps(run.layout.config) else run.schedule(run.loop.round)
        raise session.agreed(divergence(min(rounds), step_size))


def _end(session: Session, reason: str | None, round_: int, n_rounds: int) -> tuple[str, int]:
    """Return by what the run ended, and its last round. Collective."""
    ends = session.comm.allgather((round_, reason))
    reasons = sorted((at, why) for at, why in ends if why is not None)
    return (reasons[0][1], max(at for at, _ in ends)) if reasons else ("rounds", n_rounds)


def _counts(session: Session, run: RankRun) -> dict[str, Any]:
    """Return this rank's row of ``ranks.csv``."""
    return {
        "rank": session.rank,
        "host": session.host,
        "threads": THREADS,
        "rows": run.share.n_rows,
        **dataclasses.asdict(run.loop.counts),
        **run.loop.method_counts,
        **dataclasses.asdict(run.exchange.counts()),
        **({} if run.checkpointing is None else run.checkpointing.counts()),
        "bytes_read": run.loading.bytes_read,
        "load_s": run.loading.load_s,
        "peak_mib": peak_mib(),
    }


def _death(rank: int, ranks: Sequence[dict[str, Any]], heard: Sequence[dict[int, int]]) -> Death:
    """Return a rank's death, from what each of those who live has ``heard`` of deaths in its rounds."""
    noticed = {row["rank"]: rounds[rank] for row, rounds in zip(ranks, heard, strict=True) if rank in rounds}
    return Death(rank, noticed)
