"""Your own objective, in scipy's manner.

Run it with mpiexec -n 4 python -m mpi4py examples/own_objective.py

A robust (Huber) regression. The objective is any object with ``loss(x, shard)`` and
``gradient(x, shard, out)``; a shard is whatever it understands, here a pair of arrays.
"""

import numpy as np
from mpi4py import MPI

from goco_mpi import minimize


class Huber:
    """Mean Huber loss of a linear model: quadratic up to ``delta``, linear beyond."""

    def __init__(self, delta):
        self.delta = delta

    def loss(self, x, shard):
        """Return the mean loss over the samples of a shard."""
        features, targets = shard
        r = np.abs(features @ x - targets)
        return np.mean(np.where(r <= self.delta, 0.5 * r**2, self.delta * (r - 0.5 * self.delta)))

    def gradient(self, x, shard, out):
        """Write its gradient into ``out``."""
        features, targets = shard
        r = np.clip(features @ x - targets, -self.delta, self.delta)
        np.matmul(features.T, r / len(r), out=out)


class Shards:
    """Twelve shards, each drawn only where it is asked for: a rank makes no others."""

    def __len__(self):
        return 12

    def __getitem__(self, k):
        rng = np.random.default_rng(k)
        features = rng.standard_normal((200, 3))
        targets = features @ [1.0, -2.0, 3.0] + 0.1 * rng.standard_normal(200)
        targets[:10] += 100.0  # gross errors, which least squares would follow
        return features, targets


result = minimize(
    Huber(delta=1.0),
    np.zeros(3),
    shards=Shards(),
    topology="ring",
    rounds=5000,
    step={"kind": "constant", "size": 1.0},  # the curvature of the Huber loss is at most 1 on such features
    method={"late": "memory"},
    stop={"gradient_norm": 1e-4},
)
if MPI.COMM_WORLD.rank == 0:
    print(f"{result.message} x = {np.round(result.x, 2)}, F(x) = {result.fun:.4f}, {result.nit} rounds.")
