"""What `goco bench simulate` measures: the simulator's rounds against the arithmetic that they cannot do without.

The network: a random regular graph of degree 6, 32 parameters, three shards on every worker, half of the workers late
in every round. Seconds are of the processor, in one process, so that what else runs counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from goco_mpi.core import mixing, objectives, topology
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import gossip_step
from goco_mpi.core.stragglers import StragglerModel

N_PARAMS, DEGREE, SHARDS = 32, 6, 3
L2, STEP = 1e-2, 0.05
WORKER_ROUNDS = 100_000
"""How many worker-rounds one measurement is of: a fraction of a second."""


class Network:
    """Least squares on simulated workers with so many rows each, and the bare arithmetic of a round on it."""

    def __init__(self, n_workers: int, n_rows: int) -> None:
        rng = np.random.default_rng(0)
        self.features = rng.standard_normal((n_workers, n_rows, N_PARAMS))
        self.targets = rng.standard_normal((n_workers, n_rows))
        self.weights = np.full((n_workers, n_rows), 1.0 / n_rows)
        graph = topology.build("random_regular", n_workers, degree=DEGREE, seed=0)
        self.mixing_matrix: sp.csr_array = mixing.metropolis(graph)
        self.rounds = max(10, WORKER_ROUNDS // n_workers)
        objective = objectives.build("least_squares", N_PARAMS, L2, None)
        self.shares = []
        for features, targets, weights in zip(self.features, self.targets, self.weights, strict=True):
            rows = WeightedRows(features, targets, weights, 1.0)
            sizes, shard_weights = [n_rows // SHARDS] * SHARDS, np.full(SHARDS, 1.0 / SHARDS)
            self.shares.append(ModelShare(objective, rows, rows, sizes, shard_weights, rows))
        self.stragglers = StragglerModel("bernoulli", n_workers, p=0.5)

    def simulated_s(self) -> float:
        """Return the seconds of a round of `goco_mpi.core.simulate`, its set-up apart."""
        stamps: list[float] = []

        def observe(round_: int, stacked_params: object) -> bool:
            stamps.append(time.process_time())
            return True

        step = gossip_step(self.shares, self.mixing_matrix, self.stragglers)
        simulate(step, self.shares, lambda t: STEP, self.stragglers, self.rounds, observe=observe)
        return (stamps[-1] - stamps[0]) / self.rounds

    def bare_s(self) -> float:
        """Return the seconds of a round's sparse product and gradients alone."""
        x = np.zeros((len(self.shares), N_PARAMS))
        transposed = self.features.transpose(0, 2, 1)
        start = time.process_time()
        for _ in range(self.rounds):
            residuals = (self.features @ x[:, :, None])[:, :, 0] - self.targets
            residuals *= self.weights
            gradients = (transposed @ residuals[:, :, None])[:, :, 0] + L2 * x
            x = self.mixing_matrix @ (x - STEP * gradients)
        seconds = (time.process_time() - start) / self.rounds
        self.bare_params = x
        return seconds


def overhead(repeats: int, n_workers: int, n_rows: int) -> list[float]:
    """Return the simulator's seconds of a round / the bare ones, in turn, after one of each that is thrown away."""
    network = Network(n_workers, n_rows)
    return _ratios(network.simulated_s, network.bare_s, repeats)


def growth(repeats: int, n_workers: int, than: int, n_rows: int) -> list[float]:
    """Return the simulator's seconds of a worker and round with ``n_workers`` / with ``than``: 1 is linear."""
    many, few = Network(n_workers, n_rows), Network(than, n_rows)
    return [ratio * than / n_workers for ratio in _ratios(many.simulated_s, few.simulated_s, repeats)]


def _ratios(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> list[float]:
    return [ours() / theirs() for _ in range(repeats + 1)][1:]
