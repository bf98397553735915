"""``goco replay``: compute a recorded run once more, in one process, and compare.

The record says who used what (`goco_mpi.core.events`); everything else follows from the config and the
data. An asynchronous run that ends where its replay ends did what the equations say.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goco_mpi.checkpoint import DamagedError, read_rank
from goco_mpi.config import parse_config
from goco_mpi.core.events import Events
from goco_mpi.core.methods import Place, State
from goco_mpi.core.replay import Start, replay_allreduce, replay_gossip
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.core.survivors import ranks_text
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import batch, lay_out, step_schedule
from goco_mpi.problem import Problem, load_problem
from goco_mpi.record import START, RunRecord, events_checksum, read_first_params, read_params, read_tables
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]

TOLERANCE = 1e-12
"""Largest difference to a recorded parameter vector, relative to its largest element."""
MARGIN = 100.0
"""How much larger than one sample of grown rounding another may be."""
MOST = 1e-3
"""Beyond this an agreement would say nothing."""


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
    grown_rounding : float
        The same between this replay and one whose sums rounding has disturbed, where the method is sensitive to that:
        no replay can be expected nearer to the run.
    """

    differences: Array
    n_steps: int
    grown_rounding: float = 0.0

    @property
    def tolerance(self) -> float:
        """Largest difference at which a run and its replay agree."""
        return max(TOLERANCE, min(MARGIN * self.grown_rounding, MOST))

    @property
    def agrees(self) -> bool:
        """Whether every rank's parameters are those recorded."""
        return bool((self.differences <= self.tolerance).all())


def replay(run: RunRecord) -> Replay:
    """Compute all ranks' parameters of a recorded run from its config, data and events.

    Raises
    ------
    InputError
        If the run kept no events, or its data cannot be read.
    RunError
        If its events were altered, or contradict the rules; or its data are others now.
    """
    if run.run["environment"].get("simulated"):
        raise InputError(f"{str(run.path)!r} is a simulation: it has no events to replay. Replay a real run.")
    deaths = [death["rank"] for death in run.run["result"].get("deaths", [])]
    if deaths:
        raise InputError(
            f"{str(run.path)!r} cannot be replayed: {ranks_text(deaths)} died in that run, and what the others used of "
            "their vectors died with them. Replay a run without deaths."
        )
    tables = read_tables(run.path, "events")
    if events_checksum(tables) != run.run["result"]["events_sha256"]:
        raise RunError(f"The events of {str(run.path)!r} are not those of its run: their checksum differs.")
    recorded = read_params(run.path)
    config = parse_config(run.run["config"])
    if len(tables) != len(recorded):
        raise RunError(f"{str(run.path)!r} has events of {len(tables)} ranks, and parameters of {len(recorded)}.")
    result = run.run["result"]
    schedule = _recorded_schedule(config, result["step_size"], result.get("momentum"))
    problem = load_problem(config)
    shape = len(tables), problem.objective.n_params
    if recorded.shape != shape:
        raise RunError(
            f"The data of {str(run.path)!r} are no longer those of its run: with them its parameters are of shape "
            f"{shape}. Got {recorded.shape}. Put the data of that run back."
        )
    found, disturbed = _parameters(run, config, problem, tables, schedule)
    scale = np.abs(recorded).max(axis=1)
    scale = np.where(scale > 0.0, scale, 1.0)
    differences = np.abs(found - recorded).max(axis=1) / scale
    grown = float((np.abs(found - disturbed).max(axis=1) / scale).max())
    return Replay(differences, sum(len(table) - 1 for table in tables), grown)


def _parameters(
    run: RunRecord, config: RunConfig, problem: Problem, tables: list[NDArray[np.int32]], schedule: StepSchedule
) -> tuple[Array, Array]:
    """Return all ranks' final parameters, and those that disturbed sums lead a sensitive method to."""
    n_workers = len(tables)
    layout = lay_out(config, n_workers)
    shares = [problem.share(layout, worker) for worker in range(n_workers)]
    first_params = read_first_params(run.path)
    start = np.zeros(problem.objective.n_params) if first_params is None else first_params
    drawn = batch(config)
    places = [layout.place(worker, share, schedule.momentum) for worker, share in enumerate(shares)]

    def starts() -> list[Start] | None:
        path = run.path / START
        if run.run["result"].get("resumed_from") is None:
            return None
        return [_start(path, place, layout.method.start(start, place)) for place in places]

    if layout.method.exchange == "allreduce":
        events = [Events(table, 0) for table in tables]
        found = replay_allreduce(layout.method, places, schedule, events, start, drawn, starts=starts())
        if not layout.method.sensitive:
            return found, found
        return found, replay_allreduce(
            layout.method, places, schedule, events, start, drawn, disturbed=True, starts=starts()
        )
    topology = layout.topology
    found = replay_gossip(
        layout.method,
        places,
        [layout.mixing(worker) for worker in range(n_workers)],
        schedule,
        [Events(table, len(topology.neighbors(worker))) for worker, table in enumerate(tables)],
        start,
        drawn,
        starts(),
    )
    return found, found


def _start(path: Path, place: Place, fresh: State) -> Start:
    """Return where a rank of a run that was resumed began."""
    try:
        kept = read_rank(path, place.worker, fresh)
    except DamagedError as error:
        raise InputError(f"{error}.") from None
    heard = [
        None if slot is None or slot["value"] is None else (slot["step"], slot["round"], slot["value"])
        for slot in kept["exchange"].get("slots", [])
    ]
    return Start(kept["state"], kept["counts"].rounds, heard, kept["work"]["last"])


def _recorded_schedule(config: RunConfig, step_size: float, momentum: float | None) -> StepSchedule:
    """Return the step sizes that the run had, an automatic first one and a momentum as recorded."""
    return dataclasses.replace(step_schedule(config, 1.0), size=step_size, momentum=momentum)
