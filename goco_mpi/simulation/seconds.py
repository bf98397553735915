"""An experiment in simulated seconds: `goco_mpi.core.discrete_event` from a config to an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.costs import CostModel
from goco_mpi.core.discrete_event import Network, Pacing, TimedRun, run_allreduce
from goco_mpi.core.discrete_event.network import Observe
from goco_mpi.core.pace.counts import Spent
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import batch
from goco_mpi.outcome import Outcome
from goco_mpi.schema import RunConfig
from goco_mpi.simulation.calibration import read_traces
from goco_mpi.simulation.rounds import Simulation

Array = NDArray[np.float64]


def cost_model(config: RunConfig, rows_each: float) -> CostModel:
    """Build the cost model of ``[cost]``.

    Parameters
    ----------
    config : RunConfig
    rows_each : float
        An equal part of the training rows.

    Raises
    ------
    InputError
        If the trace cannot be read.
    """
    cost = config.cost
    traces, rows = ([], None) if cost.trace is None else read_traces(Path(cost.trace))
    return CostModel(
        kind=cost.compute,
        seed=config.seed,
        compute_s=cost.compute_s,
        rows=rows_each if cost.rows is None and rows is None else float(cost.rows or rows or 0),
        spread=cost.spread,
        slow_p=cost.slow_p,
        slow_factor=cost.slow_factor,
        traces=traces,
        overhead_s=cost.overhead_s,
        latency_s=cost.latency_s,
        bytes_per_s=cost.bytes_per_s,
    )


@dataclass(frozen=True, eq=False)
class TimedOutcome:
    """An outcome, and how much was simulated for it."""

    outcome: Outcome
    n_events: int


def simulate_in_time(
    config: RunConfig,
    n_workers: int,
    progress: Callable[[int], None] = lambda round_: None,
    cost: CostModel | None = None,
    measured: bool = False,
) -> TimedOutcome:
    """Run an experiment on simulated workers that each have their own time.

    ``stop.target_loss`` ends it for all at once, at the loss of the mean of the parameters, and
    ``stop.time_limit_s`` at the first row of the history past that time; ``stop.gradient_norm`` does nothing here.

    Parameters
    ----------
    config : RunConfig
    n_workers : int
    progress : callable (round) -> None
        Called when half of the workers have come that far.
    cost : CostModel, optional
        Instead of that of ``[cost]``.
    measured : bool
        Whether the cost was measured in a run of the experiment: lateness that it injects in seconds is in it
        already, and only counts for the encoding weights.

    Raises
    ------
    InputError
        If config, data and number of workers do not fit.
    RunError
        If the run diverged, or never ends.
    """
    simulation = Simulation(config, n_workers)
    if simulation.layout.method.exchange == "central":
        raise InputError(
            f"method.kind = '{config.method.kind}' has a master, and simulated seconds are not worked out for one yet. "
            "Leave out --time, or use mpiexec and goco run."
        )
    stragglers = simulation.layout.stragglers
    if measured:
        stragglers = stragglers.without_seconds()
    if cost is None:
        cost = cost_model(config, simulation.problem.train.n_samples / n_workers)
    history: list[dict[str, Any]] = []
    reason = "rounds"

    def row(round_: int, now: float, stacked_params: Array, spent: Spent) -> dict[str, Any]:
        return {"round": round_, "wall_s": now, **simulation.evaluate(stacked_params), **spent._asdict()}

    def observe(round_: int, now: float, stacked_params: Array, spent: Spent) -> bool:
        nonlocal reason
        progress(round_)
        if round_ < config.rounds:  # the last row is that of the end
            history.append(row(round_, now, stacked_params, spent))
            if config.stop.target_loss is not None and history[-1]["loss"] <= config.stop.target_loss:
                reason = "target_loss"
            elif config.stop.time_limit_s is not None and now >= config.stop.time_limit_s:
                reason = "time_limit_s"
        return reason == "rounds"

    run = _run(simulation, stragglers, cost, observe)
    if not math.isfinite(run.wall_s):
        raise RunError("The run never ends: everybody waits for a worker that never finishes its gradient.")
    last_round = history[-1]["round"] if run.stopped else config.rounds
    if history[-1]["round"] == last_round:
        history.pop()
    ends = [rank["wall_s"] for rank in run.ranks]
    spent = Spent(*(float(np.mean([rank[name] for rank in run.ranks])) for name in Spent._fields))
    history.append(row(last_round, float(np.median(ends)), run.stacked_params, spent))
    outcome = Outcome(
        history=history,
        ranks=[{**rank, "rows": share.n_rows} for rank, share in zip(run.ranks, simulation.shares, strict=True)],
        stacked_params=run.stacked_params,
        step_size=simulation.step_size(0),
        wall_s=run.wall_s,
        loss_optimum=simulation.problem.optimum() if config.record.optimum else None,
        stopped_by=reason,
        gradient_dissimilarity=simulation.problem.gradient_dissimilarity(),
    )
    return TimedOutcome(outcome, run.n_events)


def _run(simulation: Simulation, stragglers: StragglerModel, cost: CostModel, observe: Observe) -> TimedRun:
    config, layout = simulation.config, simulation.layout
    places = [
        layout.place(worker, share, simulation.step_size.momentum) for worker, share in enumerate(simulation.shares)
    ]
    start = np.zeros(simulation.problem.objective.n_params)
    method, every = layout.method, config.record.every
    if method.exchange == "allreduce":
        return run_allreduce(
            method, places, simulation.step_size, stragglers, cost, config.rounds, start, observe, every, batch(config)
        )
    deadline = config.deadline
    network = Network(
        method,
        places,
        [layout.mixing(worker) for worker in range(layout.n_workers)],
        simulation.step_size,
        stragglers,
        cost,
        Pacing(
            config.method.late,
            deadline.compute_s,
            deadline.gossip_s,
            deadline.compute_factor,
            deadline.gossip_factor,
        ),
        config.rounds,
        start,
        batch=batch(config),
    )
    return network.run(observe, every)
