"""Wall-clock time with one rank really ten times slower: table_newton against its rivals, on least squares.

Run it with mpiexec -n 8 python -m mpi4py examples/slow_rank_times.py [ROUNDS [SOLVER ...]]

Every rank's gradient lasts 20 ms at least (it sleeps the rest, so that cores may be shared), rank 3's 200 ms. The
gap is [F - F*] / [F(0) - F*] at the mean of all ranks' parameters; F* is the least loss that any of the runs met.
Set-up is what a rank does once before its first round; it is not in the other times. ROUNDS (60) are those of
allreduce, SOLVER its method.solver, where there are several.
"""

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import goco_mpi

ROWS, COLUMNS, SHARDS = 20_000, 200, 16
TARGETS = (1e-3, 1e-6, 1e-10)
RUNS: dict[str, dict[str, Any]] = {
    "table_newton, 2 copies": {
        "rounds": 150,
        "topology": {"kind": "complete"},
        "method": {"kind": "table_newton"},
    },
    "table_newton, 1 copy": {
        "rounds": 150,
        "topology": {"kind": "complete"},
        "placement": {"kind": "uncoded"},
        "method": {"kind": "table_newton"},
    },
    "gradient_coding, 2 copies, preconditioned cg": {
        "rounds": 60,
        "placement": {"kind": "cyclic", "replication": 2},
        "method": {"kind": "gradient_coding", "solver": "cg"},
    },
    "allreduce, preconditioned cg": {
        "rounds": 30,
        "method": {"kind": "allreduce", "solver": "cg", "preconditioner": "local"},
    },
}


def rivals(n_rounds: int, solvers: list[str]) -> dict[str, dict[str, Any]]:
    """Return the runs of allreduce."""
    if not solvers:
        return {"allreduce": {"rounds": n_rounds, "method": {"kind": "allreduce"}}}
    return {
        f"allreduce, {solver}": {"rounds": n_rounds, "method": {"kind": "allreduce", "solver": solver}}
        for solver in solvers
    }


def write_data(path: Path) -> None:
    """Write rows of geometrically falling scale, every shard with a solution of its own."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ROWS, COLUMNS)) * np.geomspace(1.0, 0.1, COLUMNS)
    own = rng.standard_normal(COLUMNS) + 0.1 * rng.standard_normal((SHARDS, COLUMNS))
    targets = np.einsum("ij,ij->i", features, np.repeat(own, ROWS // SHARDS, axis=0))
    np.savez(path, features=features, targets=targets + 0.5 * rng.standard_normal(ROWS))


def column(path: Path, name: str) -> list[float]:
    """Return a column of a table."""
    with path.open() as file:
        return [float(row.get(name) or 0.0) for row in csv.DictReader(file)]


def main() -> None:
    """Go through the runs, and print a table."""
    comm = MPI.COMM_WORLD
    runs = {**RUNS, **rivals(int(sys.argv[1]) if len(sys.argv) > 1 else 60, sys.argv[2:])}
    folder = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    if comm.rank == 0:
        write_data(folder / "data.npz")
    common = {
        "data": {
            "source": str(folder / "data.npz"),
            "shards": SHARDS,
            "partition": "in_order",
            "test_fraction": 0.0,
            "intercept": False,
        },
        "objective": {"kind": "least_squares", "l2": 0.0},
        "stragglers": {"kind": "slow", "ranks": [3], "factor": 10.0, "work_s": 0.02},
        "record": {"every": 1},
    }
    for number, run in enumerate(runs.values()):
        goco_mpi.train({**common, **run}, comm=comm, out=folder / str(number))
    if comm.rank != 0:
        return
    tables = [folder / str(number) for number in range(len(runs))]
    least = min(loss for table in tables for loss in column(table / "history.csv", "loss"))
    print("| seconds to a gap of | " + " | ".join(f"{target:g}" for target in TARGETS) + " | set-up |")
    for name, table in zip(runs, tables, strict=True):
        losses, times = column(table / "history.csv", "loss"), column(table / "history.csv", "wall_s")
        gaps = [(loss - least) / (losses[0] - least) for loss in losses]
        found = [next((t for t, gap in zip(times, gaps, strict=True) if gap <= target), np.inf) for target in TARGETS]
        setup_s = max(column(table / "ranks.csv", "setup_s"))
        print(f"| {name} | " + " | ".join(f"{t:.2f}" for t in found) + f" | {setup_s:.2f} |")


if __name__ == "__main__":
    main()
