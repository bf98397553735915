"""Rounds that table_newton needs on simulated workers: the figures of docs/methods/table_newton.md.

Run it with python examples/table_newton_rounds.py [--seeds 5] [--workers 8] [--copies 1 2] [--graph rook]

Least squares, as many shards as workers, 500 rows a shard, 100 columns of geometrically falling scale, and for every
shard a solution of its own. A round is one gradient's work; messages are free; a gradient that lasts ten rounds
is taken at the point of the last of them. The gap is [F(x) - F*] / [F(0) - F*] of the worst worker.
"""

import argparse
from functools import cached_property

import numpy as np

from goco_mpi.core import encoding, mixing, objectives, placement, topology
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.rng import Purpose, stream
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import gossip_step
from goco_mpi.core.stragglers import StragglerModel

ROWS, COLUMNS = 500, 100
TARGETS = (1e-3, 1e-6, 1e-10)
MOST_ROUNDS = 150
CASES = ("none slow", "one 10x slow", "each 10x with p=.3", "quarter late")


class TenInThree(StragglerModel):
    """Every third gradient or so lasts ten rounds."""

    @cached_property
    def _ends(self) -> np.ndarray:
        """In which rounds workers have a gradient, shape (n_workers, MOST_ROUNDS)."""
        ends = np.zeros((self.n_workers, 10 * MOST_ROUNDS), dtype=bool)
        for worker, row in enumerate(ends):
            slow = stream(self.seed, Purpose.STRAGGLER, worker, 0).random(MOST_ROUNDS) < 0.3
            row[np.cumsum(np.where(slow, 10, 1)) - 1] = True
        return ends

    def finishing(self, round_: int) -> np.ndarray:
        """Return who has a gradient in this round."""
        return self._ends[:, round_]


def stragglers(case: str, n_workers: int, seed: int) -> StragglerModel:
    """Return who is late in one of the ``CASES``."""
    if case == "one 10x slow":
        return StragglerModel("persistent", n_workers, seed, ranks=(3,), factor=10.0)
    if case == "each 10x with p=.3":
        return TenInThree("none", n_workers, seed)
    # Of 64 % lost messages the newest is as old as of 90 % 1 to 5 rounds late.
    lost = tuple(0.64 if case == "quarter late" and worker % 4 == 1 else 0.0 for worker in range(n_workers))
    return StragglerModel("none", n_workers, seed, link_p=lost)


def rounds(case: str, n_workers: int, copies: int, condition: float, seed: int, graph: str = "complete") -> list[float]:
    """Return the rounds to each of ``TARGETS``, infinite where there are not enough."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_workers * ROWS, COLUMNS)) * np.geomspace(1.0, condition**-0.5, COLUMNS)
    own = rng.standard_normal(COLUMNS) + 0.1 * rng.standard_normal((n_workers, COLUMNS))
    targets = np.einsum("ij,ij->i", features, np.repeat(own, ROWS, axis=0)) + 0.5 * rng.standard_normal(len(features))
    objective = objectives.build("least_squares", COLUMNS, 0.0, None)

    holders = placement.build("pairwise_balanced" if copies > 1 else "uncoded", n_workers, n_workers, copies, seed)
    weights = encoding.plain(holders, np.ones(n_workers))
    shares = []
    for worker in range(n_workers):
        held = holders.shards_of(worker)
        index = np.concatenate([np.arange(k * ROWS, (k + 1) * ROWS) for k in held])
        coded = np.repeat(weights[worker, held] / ROWS, ROWS)
        data = WeightedRows(features[index], targets[index], coded, float(weights[worker].sum()))
        shares.append(ModelShare(objective, data, data, [ROWS] * len(held), weights[worker, held], data))

    hessian = features.T @ features / len(features)
    best = np.linalg.solve(hessian, features.T @ targets / len(features))
    gaps: list[float] = []

    def observe(round_: int, x: np.ndarray) -> bool:
        error = x - best
        gaps.append(float(np.einsum("ij,jk,ik->i", error, hessian, error).max() / (best @ hessian @ best)))
        return gaps[-1] > min(TARGETS)

    matrix, script = mixing.metropolis(topology.build(graph, n_workers)), stragglers(case, n_workers, seed)
    step = gossip_step(shares, matrix, script, "table_newton")
    step.all_weights = weights
    simulate(step, shares, lambda round_: 1.0, script, MOST_ROUNDS, late="memory", observe=observe)
    return [next((t for t, gap in enumerate(gaps) if gap <= target), np.inf) for target in TARGETS]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--graph", choices=("complete", "rook"), default="complete")
    parser.add_argument("--condition", type=float, default=100.0)
    options = parser.parse_args()
    print("| copies |", " | ".join(CASES), "|")
    for copies in options.copies:
        cells = []
        for case in CASES:
            found = [
                rounds(case, options.workers, copies, options.condition, seed, options.graph)
                for seed in range(options.seeds)
            ]
            cells.append(" / ".join(f"{value:.0f}" for value in np.median(found, axis=0)))
        print(f"| {copies} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
