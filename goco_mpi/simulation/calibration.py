"""A cost model from a recorded run: how long its gradients and its messages took.

The times of gradients come from the timeline, where there is one, and otherwise from each rank's mean in
``ranks.csv``. Injected slowness is in them as in any other, and is not injected again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import parse_config
from goco_mpi.core.costs import CostModel
from goco_mpi.core.events import NONE, Events
from goco_mpi.core.gossip import HEADER, TRAILER
from goco_mpi.errors import InputError
from goco_mpi.experiment import Layout, lay_out
from goco_mpi.record import RunRecord, read_params, read_run, read_tables
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]

LEAST_S = 1e-9
QUICK = 25.0
"""Percentile of the messages' times that is the network's: those above waited for a receiver that did not look."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a run says of the machine it ran on.

    Attributes
    ----------
    config : RunConfig
        The run's. Slowness that it injects in seconds is in the cost already.
    cost : CostModel
    n_workers : int
    """

    config: RunConfig
    cost: CostModel
    n_workers: int


def calibrate(run: RunRecord) -> Calibration:
    """Fit a cost model to a recorded run.

    The bandwidth is that of the run's ``[cost]``: messages of one size do not tell it from the latency.

    Raises
    ------
    InputError
        If the run was simulated, or lacks what it is read from.
    """
    if run.run["environment"].get("simulated"):
        raise InputError(f"{str(run.path)!r} was simulated: it says nothing of a machine. Give a real run.")
    config = parse_config(run.run["config"])
    n_workers = len(run.ranks)
    rows = np.array([row["rows"] for row in run.ranks])
    if not rows.sum():
        raise InputError(f"{str(run.path)!r} has no rows of data that its times could be scaled by.")
    mean_rows = float(rows[rows > 0].mean())
    layout = lay_out(config, n_workers)
    steps = _recorded_steps(run, layout)
    times = _gradient_times(run, config, steps)
    overhead_s = _overhead_s(run)
    cost = CostModel(
        kind="trace",
        seed=config.seed,
        rows=mean_rows,
        traces=[trace * (mean_rows / n if n else 1.0) for trace, n in zip(times, rows, strict=True)],
        overhead_s=overhead_s,
        latency_s=_latency_s(run, layout, steps),
        bytes_per_s=config.cost.bytes_per_s,
    )
    return Calibration(config, cost, n_workers)


@dataclass(frozen=True, eq=False)
class _Steps:
    """What the record has of one rank's steps.

    Attributes
    ----------
    times : ndarray of shape (n_steps, 3 + 2 degree)
        When it offered, had waited and had mixed; then when each neighbour's newest message arrived.
    events : Events
        Of the same steps, and of the goodbye.
    first : int
        Number of the first of them: that of a run that was resumed is not 0.
    """

    times: Array
    events: Events
    first: int


def _recorded_steps(run: RunRecord, layout: Layout) -> list[_Steps]:
    """Return the steps of every rank; none without a timeline and events."""
    if not ((run.path / "timeline.npz").exists() and (run.path / "events.npz").exists()):
        return []
    gossips = layout.method.exchange != "allreduce"
    tables = zip(read_tables(run.path, "timeline"), read_tables(run.path, "events"), run.ranks, strict=True)
    return [
        _Steps(
            times,
            Events(table, len(layout.topology.neighbors(rank)) if gossips else 0),
            int(row["rounds"]) - len(times),
        )
        for rank, (times, table, row) in enumerate(tables)
    ]


def _gradient_times(run: RunRecord, config: RunConfig, steps: Sequence[_Steps]) -> list[Array]:
    """Return the seconds of each rank's gradients, in order; infinite for a rank that never finished one.

    One that was cut counts as what it lasted until then, as for a learned deadline. Without a timeline it is one
    number a rank, the mean.
    """
    means = [np.array([_mean_s(row)]) for row in run.ranks]
    if not steps:
        return means
    found = []
    for mean, rank in zip(means, steps, strict=True):
        seconds = np.zeros(0)
        if math.isfinite(mean[0]):
            seconds = _traced_s(rank.times, rank.events, config.method.late == "memory")
        found.append(seconds if seconds.size else mean)
    return found


def _mean_s(row: dict[str, float]) -> float:
    """Return a rank's mean gradient time."""
    finished = row["gradients"] + row["partial_gradients"]
    return max(row["compute_s"] / (finished + row["late_gradients"]), LEAST_S) if finished else math.inf


def _traced_s(times: Array, events: Events, carries_on: bool) -> Array:
    """Return the times of one rank's gradients, the first one excepted: nothing says when it began.

    A gradient lasts through the gossip in its middle. That waits for nobody; where a late gradient is
    carried on with it may, but then a gradient ends with the first step of its point.
    """
    offered, waited, mixed = times[:, 0], times[:, 1], times[:, 2]
    lasts = offered[1:] - mixed[:-1]
    if carries_on:
        _, firsts = np.unique(events.points[: len(times)], return_index=True)
        ends = np.sort(firsts[events.points[firsts] != NONE])
    else:
        ends = np.flatnonzero(waited > offered)
    if not ends.size:
        return np.zeros(0)
    passed = np.concatenate([[0.0], np.cumsum(lasts)])[ends]
    return np.asarray(np.maximum(np.diff(passed), LEAST_S))


def _overhead_s(run: RunRecord) -> float:
    """Return the seconds of a message: what is neither computing nor waiting, of the median rank."""
    found = [
        (row["wall_s"] - row["compute_s"] - row["wait_s"]) / (row["messages_sent"] + row["messages_received"])
        for row in run.ranks
        if row["messages_sent"] + row["messages_received"]
    ]
    return max(float(np.median(found)), 0.0) if found else 0.0


def _latency_s(run: RunRecord, layout: Layout, steps: Sequence[_Steps]) -> float:
    """Return the latency: of messages where the timeline has them, else from the rank that waited least."""
    allreduce = layout.method.exchange == "allreduce"
    n_numbers = layout.method.message_size(read_params(run.path).shape[1]) + (TRAILER if allreduce else HEADER)
    link_s = 8 * n_numbers / layout.config.cost.bytes_per_s
    least_s: float = min(row["wait_s"] / max(row["rounds"], 1.0) for row in run.ranks)
    if allreduce:
        hops = max(2 * math.ceil(math.log2(layout.n_workers)), 1)
        return max((least_s - 2.0 * link_s) / hops, 0.0)
    passing = _message_times(layout, steps)
    if not passing.size:
        return max(least_s - link_s, 0.0)
    return max(float(np.percentile(passing, QUICK)) - link_s, 0.0)


def _message_times(layout: Layout, steps: Sequence[_Steps]) -> Array:
    """Return how long messages took that were used, from the offer to being taken in."""
    found: list[float] = []
    for rank, own in enumerate(steps):
        for place, source in enumerate(layout.topology.neighbors(rank)):
            sender = steps[source]
            used, first = np.unique(own.events.used[: len(own.times), place], return_index=True)
            for step, taken_in in zip(used - sender.first, first, strict=True):
                # No times: of none at all, of one from before the checkpoint, and of the goodbye.
                if 0 <= step < len(sender.times):
                    found.append(float(own.times[taken_in, 3 + place] - sender.times[step, 0]))
    return np.array(found)


def read_traces(path: Path) -> tuple[list[Array], float | None]:
    """Read the times of gradients from a run directory or a text file with a column for each worker.

    Returns
    -------
    (list of ndarray, float or None)
        Seconds of each worker; and over how many rows they are, where that is known.

    Raises
    ------
    InputError
        If there are none.
    """
    if path.is_dir():
        found = calibrate(read_run(path))
        return list(found.cost.traces), found.cost.rows
    try:
        with warnings.catch_warnings(action="ignore"):  # of an empty file: it is refused below
            table = np.loadtxt(path, ndmin=2)
    except OSError as error:
        raise InputError(f"cost.trace: {str(path)!r} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise InputError(
            f"cost.trace: {str(path)!r} must be a text file of seconds: {str(error).rstrip('.')}."
        ) from None
    if not table.size:
        raise InputError(f"cost.trace: {str(path)!r} must be a text file of seconds, and it is empty.")
    return list(table.T), None
