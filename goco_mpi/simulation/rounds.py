"""An experiment in one process: `goco_mpi.core.simulate` from a config to an outcome."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core import encoding, metrics, mixing
from goco_mpi.core.gossip import HEADER, TRAILER
from goco_mpi.core.methods import method_of
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.placement import Placement
from goco_mpi.core.simulate import Observe, Worked, simulate
from goco_mpi.core.stacked import (
    SOLVERS,
    STEPS,
    Links,
    StackedCentral,
    StackedChebyshev,
    StackedCompressed,
    StackedMomentum,
    Step,
    gossip_step,
    start,
)
from goco_mpi.core.stacked.gradients import StackedGradients
from goco_mpi.core.stacked.rated import StackedRated
from goco_mpi.errors import InputError
from goco_mpi.experiment import batch, compression, lay_out, step_schedule, synchronous_curvature
from goco_mpi.outcome import Outcome
from goco_mpi.problem import load_problem
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
        self.shares = [self.problem.share(self.layout, worker) for worker in range(n_workers)]
        automatic = config.step.kind == "auto"
        self.step_size = step_schedule(config, *(self._curvature() if automatic else (np.nan, None)))

    def _curvature(self) -> tuple[float, float | None]:
        objective = self.problem.objective
        start = np.zeros(objective.n_params)

        if self.layout.method.exchange != "gossip":
            decoded = [self.layout.decoded(worker, share) for worker, share in enumerate(self.shares)]

            def mean(v: Array) -> Array:
                return np.asarray(np.mean([share.hessian_product(start, v) for share in decoded], axis=0))

            return synchronous_curvature(self.config, mean, objective.n_params, objective.quadratic)
        return float(StackedGradients(self.shares).curvatures().max()), None

    def _weigh(self, worker: int, completion_rates: Array, own: float) -> Array:
        """Return (N/M) a_ik of a worker's shards, were these the completion rates, and ``own`` that of its rounds."""
        holders, kind = self._co_holders[worker], self.config.method.weights
        weights = np.asarray(encoding.KINDS[kind](holders, np.maximum(completion_rates, 1e-300))[worker])
        weights = np.minimum(weights, 100.0)
        if self.config.step.kind == "auto" and weights.size:  # chosen for the weights of those who always finish
            most = max(2.0 / self.config.step.scale, 1.0) / own * float((1.0 / holders.replication).sum())
            weights *= min(1.0, most / float(weights.sum()))
        return np.asarray(weights * (self.layout.n_workers / self.layout.placement.n_shards))

    @functools.cached_property
    def _co_holders(self) -> list[Placement]:
        """Return for each worker who holds its shards, and no others."""
        return [Placement(self.layout.placement.held[:, row]) for row in self.layout.placement.held]

    def evaluate(self, stacked_params: Array) -> dict[str, float | None]:
        """Return the columns of ``history.csv`` that say how good parameters of shape (n_workers, n_params) are."""
        problem, mean = self.problem, stacked_params.mean(axis=0)
        right = problem.objective.accuracy(mean, problem.test.features, problem.test.targets)
        return {
            "loss": problem.objective.loss(mean, self._pooled),
            "consensus_distance": metrics.consensus_distance(stacked_params),
            "test_accuracy": None if right is None or not right.size else float(right.mean()),
        }

    @functools.cached_property
    def _pooled(self) -> WeightedRows:
        return self.problem.pooled_rows()

    @property
    def bytes_per_round(self) -> int:
        """What all workers send in a round, as in the engine."""
        n_workers = self.layout.n_workers
        size = self.layout.method.message_size(self.problem.objective.n_params)
        if self._synchronous:
            return n_workers * (size + TRAILER) * 8
        topology = self.layout.topology
        return sum(len(topology.neighbors(worker)) for worker in range(n_workers)) * (size + HEADER) * 8

    def run(self, observe: Observe, worked: Worked = lambda done: None) -> Array:
        """Simulate the rounds; see `goco_mpi.core.simulate.simulate`."""
        return simulate(
            self._step(),
            self.shares,
            self.step_size,
            self.layout.stragglers.scripted(),
            self.config.rounds,
            late=self.config.method.late,
            batch=batch(self.config),
            observe=observe,
            worked=worked,
        )

    def _step(self) -> Step:
        """Return the method at its start, on stacked arrays."""
        layout, section = self.layout, self.config.method
        if layout.method.exchange == "gossip":
            return self._gossip(str(section.rates))
        solver, momentum = SOLVERS[self._solver], self.step_size.momentum
        if layout.method.exchange == "allreduce":
            return solver(start(self.shares), self.shares, momentum)
        code = None if layout.code is None else layout.code.encoding
        return StackedCentral(start(self.shares), self.shares, solver, momentum, code)

    @property
    def _solver(self) -> str:
        section = self.config.method
        if section.preconditioner == "local":
            return "master_cg" if self.layout.method.exchange == "central" else "preconditioned_cg"
        return section.solver or "descent"

    def _gossip(self, rates: str) -> Step:
        layout, section = self.layout, self.config.method
        matrix, stragglers, rule = layout.mixing_matrix, layout.stragglers.scripted(), str(section.mixing)

        def links() -> Links:
            return Links(matrix, stragglers, rule, section.max_age)

        compressed = compression(self.config)
        step: Step
        if compressed is not None:
            step = StackedCompressed(start(self.shares), links(), compressed)
        elif section.gossip_rounds > 1:
            radius = 1.0 - mixing.spectral_gap(matrix)
            step = StackedChebyshev(start(self.shares), links(), section.gossip_rounds, radius)
        elif section.momentum:
            step = StackedMomentum(start(self.shares), links(), section.momentum)
        else:
            twin = section.kind if section.kind in STEPS else method_of(section.kind).stacked
            if twin is None:
                raise InputError(
                    f"method.kind = {section.kind!r} has no twin to simulate: give its class an attribute 'stacked', "
                    "the method on stacked arrays (CONTRIBUTING.md). Without one it can be run and replayed."
                )
            step = gossip_step(self.shares, matrix, stragglers, twin, rule, section.max_age)
        step.all_weights = layout.all_weights
        return step if rates == "stated" else StackedRated(step, links(), rates, self._weigh)


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
    history: list[dict[str, Any]] = []
    load, shard_gradients = simulation.layout.placement.load, 0

    def worked(done: Array) -> None:
        nonlocal shard_gradients
        shard_gradients += round(float(done @ load))

    def observe(round_: int, stacked_params: Array) -> bool:
        progress(round_)
        if round_ % config.record.every == 0 or round_ == config.rounds:
            history.append(
                {
                    "round": round_,
                    "wall_s": None,
                    **simulation.evaluate(stacked_params),
                    "bytes_sent": round_ * simulation.bytes_per_round / n_workers,
                    "shard_gradients": shard_gradients / n_workers,
                }
            )
        return True

    stacked_params = simulation.run(observe, worked)
    return Outcome(
        history=history,
        ranks=[{"rank": worker, "rounds": config.rounds} for worker in range(n_workers)],
        stacked_params=stacked_params,
        step_size=simulation.step_size(0),
        momentum=simulation.step_size.momentum,
        wall_s=None,
        loss_optimum=simulation.problem.optimum() if config.record.optimum else None,
        gradient_dissimilarity=simulation.problem.gradient_dissimilarity(),
    )
