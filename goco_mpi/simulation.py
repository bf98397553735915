"""An experiment in one process: `goco_mpi.core.simulate` from a config to an outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import RunConfig
from goco_mpi.core import gossip, metrics, objectives
from goco_mpi.core.simulate import simulate
from goco_mpi.experiment import lay_out, load_problem, step_schedule
from goco_mpi.record import Outcome


def simulate_experiment(
    config: RunConfig, n_workers: int, progress: Callable[[int], None] = lambda round_: None
) -> Outcome:
    """Run an experiment on ``n_workers`` simulated workers.

    No time passes: deadlines do not cut anything, and real stragglers are replaced by logical
    ones (`StragglerModel.scripted`).

    Raises
    ------
    InputError
        If config, data and number of workers do not fit.
    RunError
        If the run diverged.
    """
    layout = lay_out(config, n_workers)
    problem = load_problem(config)
    objective, pooled = problem.objective, problem.pooled_rows()
    rows = [problem.worker_rows(layout, worker).coded for worker in range(n_workers)]
    synchronous = layout.method.exchange == "allreduce"

    def curvature_of(part: objectives.WeightedRows) -> float:
        start = np.zeros(objective.n_params)
        return objectives.curvature(lambda v: objective.hessian_product(start, part, v), objective.n_params)

    automatic = config.step.kind == "auto"
    curvature = max(map(curvature_of, [pooled] if synchronous else rows)) if automatic else np.nan
    schedule = step_schedule(config, curvature)
    history: list[dict[str, Any]] = []

    def observe(round_: int, stacked_params: NDArray[np.float64]) -> bool:
        progress(round_)
        if round_ % config.record.every == 0 or round_ == config.rounds:
            mean = stacked_params.mean(axis=0)
            right = objective.accuracy(mean, problem.test.features, problem.test.targets)
            history.append(
                {
                    "round": round_,
                    "wall_s": None,
                    "loss": objective.loss(mean, pooled),
                    "consensus_distance": metrics.consensus_distance(stacked_params),
                    "test_accuracy": None if right is None or not right.size else float(right.mean()),
                }
            )
        return True

    stacked_params = simulate(
        objective,
        rows,
        schedule,
        layout.stragglers.scripted(),
        config.rounds,
        mixing_matrix=None if synchronous else layout.mixing_matrix,
        age_limit=gossip.age_limit(config.method.mixing, config.method.max_age),
        waits=config.method.late == "wait",
        observe=observe,
    )
    return Outcome(
        history=history,
        ranks=[{"rank": worker, "rounds": config.rounds} for worker in range(n_workers)],
        stacked_params=stacked_params,
        step_size=schedule(0),
        wall_s=None,
        loss_optimum=problem.optimum() if config.record.optimum else None,
    )
