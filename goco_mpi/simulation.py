"""An experiment in one process: `goco_mpi.core.simulate` from a config to an outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core import metrics, objectives
from goco_mpi.core.simulate import Observe, simulate
from goco_mpi.experiment import batch, compression, lay_out, load_problem, step_schedule
from goco_mpi.record import Outcome
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]


class Simulation:
    """An experiment set up on simulated workers.

    No time passes: deadlines do not cut anything, and real stragglers are replaced by logical
    ones (`StragglerModel.scripted`).

    Parameters
    ----------
    config : RunConfig
    n_workers : int

    Raises
    ------
    InputError
        If config, data and number of workers do not fit.
    """

    def __init__(self, config: RunConfig, n_workers: int) -> None:
        self.config = config
        self.layout = lay_out(config, n_workers)
        self.problem = load_problem(config)
        self._synchronous = self.layout.method.exchange == "allreduce"
        self._shares = [self.problem.share(self.layout, worker) for worker in range(n_workers)]
        automatic = config.step.kind == "auto"
        self.step_size = step_schedule(config, self._curvature() if automatic else np.nan)

    def _curvature(self) -> float:
        objective = self.problem.objective
        start = np.zeros(objective.n_params)

        def largest(rows: objectives.WeightedRows) -> float:
            return objectives.curvature(lambda v: objective.hessian_product(start, rows, v), objective.n_params)

        if self._synchronous:
            return largest(self.problem.pooled_rows())
        return max(largest(share.coded) for share in self._shares)

    def run(self, observe: Observe) -> Array:
        """Simulate the rounds; see `goco_mpi.core.simulate.simulate`."""
        return simulate(
            self._shares,
            self.step_size,
            self.layout.stragglers.scripted(),
            self.config.rounds,
            mixing_matrix=self.layout.mixing_matrix,
            method=self.config.method.kind,
            rule=str(self.config.method.mixing),
            max_age=self.config.method.max_age,
            late=self.config.method.late,
            compression=compression(self.config),
            batch=batch(self.config),
            momentum=self.config.method.momentum,
            observe=observe,
        )


def simulate_experiment(
    config: RunConfig, n_workers: int, progress: Callable[[int], None] = lambda round_: None
) -> Outcome:
    """Run an experiment on ``n_workers`` simulated workers.

    Raises
    ------
    InputError
        If config, data and number of workers do not fit.
    RunError
        If the run diverged.
    """
    simulation = Simulation(config, n_workers)
    problem, pooled = simulation.problem, simulation.problem.pooled_rows()
    history: list[dict[str, Any]] = []

    def observe(round_: int, stacked_params: Array) -> bool:
        progress(round_)
        if round_ % config.record.every == 0 or round_ == config.rounds:
            mean = stacked_params.mean(axis=0)
            right = problem.objective.accuracy(mean, problem.test.features, problem.test.targets)
            history.append(
                {
                    "round": round_,
                    "wall_s": None,
                    "loss": problem.objective.loss(mean, pooled),
                    "consensus_distance": metrics.consensus_distance(stacked_params),
                    "test_accuracy": None if right is None or not right.size else float(right.mean()),
                }
            )
        return True

    stacked_params = simulation.run(observe)
    return Outcome(
        history=history,
        ranks=[{"rank": worker, "rounds": config.rounds} for worker in range(n_workers)],
        stacked_params=stacked_params,
        step_size=simulation.step_size(0),
        wall_s=None,
        loss_optimum=problem.optimum() if config.record.optimum else None,
    )
