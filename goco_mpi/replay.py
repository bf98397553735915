"""``goco replay``: compute a recorded run once more, in one process, and compare.

The record says who used what (`goco_mpi.core.events`); everything else follows from the config and the
data. An asynchronous run that ends where its replay ends did what the equations say.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import parse_config
from goco_mpi.core.events import Events
from goco_mpi.core.replay import replay_allreduce, replay_gossip
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import batch, lay_out, load_problem, step_schedule
from goco_mpi.record import RunRecord, events_checksum, read_params, read_tables
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]

TOLERANCE = 1e-12
"""Largest difference to a recorded parameter vector, relative to its largest element."""


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes
    ----------
    differences : ndarray of shape (n_ranks,)
        Largest difference of each rank's parameters to the recorded ones, relative to the
        largest recorded element.
    n_steps : int
        Steps of all ranks.
    """

    differences: Array
    n_steps: int

    @property
    def agrees(self) -> bool:
        """Whether every rank's parameters are those recorded."""
        return bool((self.differences <= TOLERANCE).all())


def replay(run: RunRecord) -> Replay:
    """Compute all ranks' parameters of a recorded run from its config, data and events.

    Raises
    ------
    InputError
        If the run kept no events, or its data cannot be read.
    RunError
        If its events were altered, or contradict the rules.
    """
    if run.run["environment"].get("simulated"):
        raise InputError(f"{str(run.path)!r} is a simulation: it has no events to replay. Replay a real run.")
    tables = read_tables(run.path, "events")
    if events_checksum(tables) != run.run["result"]["events_sha256"]:
        raise RunError(f"The events of {str(run.path)!r} are not those of its run: their checksum differs.")
    recorded = read_params(run.path)
    config = parse_config(run.run["config"])
    if len(tables) != len(recorded):
        raise RunError(f"{str(run.path)!r} has events of {len(tables)} ranks, and parameters of {len(recorded)}.")
    found = _parameters(config, tables, run.run["result"]["step_size"])
    if found.shape != recorded.shape:
        raise RunError(f"The data of {str(run.path)!r} are no longer those of its run: they have another shape.")
    scale = np.abs(recorded).max(axis=1)
    differences = np.abs(found - recorded).max(axis=1) / np.where(scale > 0.0, scale, 1.0)
    return Replay(differences, sum(len(table) - 1 for table in tables))


def _parameters(config: RunConfig, tables: list[NDArray[np.int32]], step_size: float) -> Array:
    n_workers = len(tables)
    layout, problem = lay_out(config, n_workers), load_problem(config)
    shares = [problem.share(layout, worker) for worker in range(n_workers)]
    start = np.zeros(problem.objective.n_params)
    schedule, drawn = _recorded_schedule(config, step_size), batch(config)
    if layout.method.exchange == "allreduce":
        return replay_allreduce(shares, schedule, [Events(table, 0) for table in tables], start, drawn)
    topology = layout.topology
    return replay_gossip(
        layout.method,
        [layout.place(worker, share) for worker, share in enumerate(shares)],
        [layout.mixing(worker) for worker in range(n_workers)],
        schedule,
        [Events(table, len(topology.neighbors(worker))) for worker, table in enumerate(tables)],
        start,
        drawn,
    )


def _recorded_schedule(config: RunConfig, step_size: float) -> StepSchedule:
    """Return the step sizes that the run had, an automatic first one as recorded."""
    return dataclasses.replace(step_schedule(config, 1.0), size=step_size)
