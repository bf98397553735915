"""Rounds that table_newton needs on simulated workers: the figures of docs/methods/table_newton.md.

Run it with python examples/table_newton_rounds.py [--seeds 3] [--workers 8] [--copies 1 2] [--graph rook]

Least squares, as many shards as workers, 500 rows a shard, 100 columns of geometrically falling scale, and for every
shard a solution of its own. A round is one gradient's work; messages are free; a gradient that lasts ten rounds
is taken at the point of the last of them. The gap is [F(x) - F*] / [F(0) - F*] of the worst worker.
"""

import argparse
import dataclasses
from functools import cached_property

import numpy as np

from goco_mpi.core import encoding, mixing, objectives, placement, topology
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.rng import Purpose, stream
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stragglers import StragglerModel

ROWS, COLUMNS = 500, 100
TARGETS = (1e-3, 1e-6, 1e-10)
MOST_ROUNDS = 150
CASES = ("none slow", "one 10x slow", "each 10x with p=.3", "quarter late")


@dataclasses.dataclass(frozen=True)
class Scripted(StragglerModel):
    """Who is late in one of the ``CASES``."""

    case: str = CASES[0]

    @cached_property
    def _ends(self) -> list[set[int]]:
        """The rounds in which each worker has a gradient, where one in three lasts ten rounds."""
        slow = [stream(self.seed, Purpose.STRAGGLER, i, 0).random(MOST_ROUNDS) < 0.3 for i in range(self.n_workers)]
        return [set((np.cumsum(np.where(mask, 10, 1)) - 1).tolist()) for mask in slow]

    def finishes(self, worker: int, round_: int) -> bool:
        """Tell whether a worker has a gradient in this round."""
        if self.case == "one 10x slow" and worker == 3:
            return round_ % 10 == 9
        return self.case != "each 10x with p=.3" or round_ in self._ends[worker]

    def arrives(self, source: int, dest: int, round_: int) -> bool:
        """Tell whether a message arrives; of 64 % lost ones the newest is as old as of 90 % 1 to 5 rounds late."""
        if self.case != "quarter late" or source % 4 != 1:
            return True
        return bool(stream(self.seed, Purpose.LINK, (source << 32) + dest, round_).random() >= 0.64)


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

    simulate(
        shares,
        lambda round_: 1.0,
        Scripted("none", n_workers, seed, case=case, link_p=0.5),  # the links are to be asked
        MOST_ROUNDS,
        mixing_matrix=mixing.metropolis(topology.build(graph, n_workers)),
        method="table_newton",
        late="memory",
        all_weights=weights,
        observe=observe,
    )
    return [next((t for t, gap in enumerate(gaps) if gap <= target), np.inf) for target in TARGETS]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
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
