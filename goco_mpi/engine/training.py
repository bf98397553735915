"""What `goco bench train` measures on MPI: seconds until a run is within a gap of the optimum.

A gap is [F(x) - F*] / [F(0) - F*]. Every rank keeps its parameters and times in memory, as every run does; the gaps are
worked out after the rounds, so that they cost no training time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import parse_config
from goco_mpi.core.shares import ModelShare
from goco_mpi.engine.loading import load
from goco_mpi.engine.optimum import optimum
from goco_mpi.engine.session import Session
from goco_mpi.engine.snapshots import Snapshots
from goco_mpi.engine.train import descend
from goco_mpi.experiment import Layout, lay_out
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]


def training(
    session: Session,
    runs: Mapping[str, Mapping[str, Any]],
    targets: Sequence[float],
    slow: Sequence[int],
    repeats: int,
    once: Sequence[str] = (),
) -> dict[str, list[list[float]]]:
    """Return each run's seconds of setting up, and in its rounds to each target: a list for each repeat.

    Parameters
    ----------
    session : Session
    runs : mapping of str to mapping
        The tables of an experiment for each name; all of one problem.
    targets : sequence of float
        Gaps.
    slow : sequence of int
        Ranks that do not count.
    repeats : int
        All runs are gone through in turn so many times.
    once : sequence of str
        But for these.

    Returns
    -------
    dict of str to list of list of float
        Setting up is what a rank does once before its first round. Where gradients are made to last longer than they
        need, it counts as so many gradients as it lasts on one rank alone. A run has reached a target when the last
        rank that counts has, on its own clock. With an allreduce all are at the same parameters, and with a master what
        it has is the result: there rank 0 counts. Infinite where the rounds were not enough.
    """
    import scipy.linalg  # noqa: F401 - start-up, not setting up

    configs = {name: parse_config({**tables, "record": {"every": 1, "events": False}}) for name, tables in runs.items()}
    shares: dict[bytes, ModelShare] = {}
    scale: tuple[float, float] | None = None
    found: dict[str, list[list[float]]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, config in configs.items():
            if repeat and name in once:
                continue
            layout = session.agree(partial(lay_out, config, session.size))
            share = _share(session, layout, shares)
            if scale is None:
                start = session.comm.allreduce(share.loss(np.zeros(share.n_params)))
                scale = session.comm.bcast(optimum(session, share, None)), start
            found[name].append(_seconds(session, config, layout, share, targets, slow, scale))
    return found


def _share(session: Session, layout: Layout, shares: dict[bytes, ModelShare]) -> ModelShare:
    """Return this rank's share, loaded once for all runs with the same weights. Collective."""
    key = layout.encoding_weights.tobytes()
    if key not in shares:
        shares[key] = load(session, layout)[0]
    return shares[key]


def _seconds(
    session: Session,
    config: RunConfig,
    layout: Layout,
    share: ModelShare,
    targets: Sequence[float],
    slow: Sequence[int],
    scale: tuple[float, float],
) -> list[float]:
    """Run, and return the seconds of setting up and to each target. Collective."""
    snapshots = Snapshots(config.record.every)
    outcome = descend(layout, session, share, np.zeros(share.n_params), snapshots=snapshots)
    setup_s = session.comm.bcast(None if outcome is None else max(rank["setup_s"] for rank in outcome.ranks))
    if config.stragglers.work_s:
        setup_s = config.stragglers.work_s * _setup_in_gradients(session, layout, share)
    least, start = scale
    alike = layout.method.exchange != "gossip"
    watched = [0] if alike else [rank for rank in range(session.size) if rank not in slow]
    last = np.zeros(len(targets))
    for rank in watched:
        losses = _losses(session, share, np.stack(snapshots.params), rank)
        times = session.comm.bcast(snapshots.times_s, root=rank)
        gaps = (losses - least) / (start - least)
        reached = [
            next((t for t, gap in zip(times, gaps, strict=True) if gap <= target), math.inf) for target in targets
        ]
        last = np.maximum(last, reached)
    return [float(setup_s), *last.tolist()]


def _setup_in_gradients(session: Session, layout: Layout, share: ModelShare) -> float:
    """Return what rank 0 does before its first round, alone, in units of its gradient, on all ranks. Collective."""

    def seconds(action: Callable[[], object]) -> float:
        start = time.process_time()  # of the processor: what else runs counts little
        action()
        return time.process_time() - start

    found = 0.0
    session.barrier()
    if session.rank == 0:
        params = np.zeros(share.n_params)
        place = layout.place(0, share)
        gradient_s = min(seconds(lambda: share.gradient(params)) for _ in range(5))
        found = min(seconds(lambda: layout.method.start(params, place)) for _ in range(2)) / gradient_s
    session.barrier()  # politely: the others must not take the core
    return float(session.comm.bcast(found))


def _losses(session: Session, share: ModelShare, points: Array, rank: int) -> Array:
    """Return F at each of a rank's points, shape (n_points,). Collective."""
    points = session.comm.bcast(points, root=rank)
    parts = np.array([share.loss(point) for point in points])
    total = np.empty_like(parts)
    session.comm.Allreduce(parts, total)
    return total
