"""Data of real size on 8 ranks of one machine: make test-large.

- a9a, where it lies in ``../shared/data`` beside this repository: `push_pull` with one rank ten times slower ends
  within 1e-6 of the optimum that scipy finds by itself.
- A shard store of 2 GB, made by ``goco shard``: least squares on it, where every rank reads its own shards and no
  more, and its memory keeps within its bound.

The exit code is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from large import launch, on_ranks

from goco_mpi.config import parse_config
from goco_mpi.experiment import lay_out
from goco_mpi.record import read_run

ROOT = Path(__file__).parents[1]
A9A = ROOT.parent / "shared" / "data" / "a9a"
N_RANKS = 8
TIME_LIMIT_S = 900.0
GAP = 1e-6
OVERHEAD_MIB = 60.0
"""What a rank may take beside its shards, its vectors, and a Python that does nothing."""
MIB = float(1 << 20)

STORE = """\
rounds = 40
[data]
source = "store"
shards = 16
partition = "in_order"
test_fraction = 0.0
[objective]
kind = "least_squares"
[topology]
kind = "exponential"
[placement]
replication = 2
[method]
kind = "push_pull"
[stragglers]
kind = "slow"
ranks = [3]
factor = 10.0
work_s = 0.1
[record]
every = 10
"""


def scipy_optimum(source: Path, l2: float) -> float:
    """Return the least (1/n) sum log(1 + exp(-y row . x)) + (l2 / 2) ||x||^2, the rows with a 1 behind them."""
    import scipy.optimize
    import scipy.sparse as sp
    from scipy.special import expit
    from sklearn.datasets import load_svmlight_file

    features, labels = load_svmlight_file(str(source))
    rows = sp.csr_array(sp.hstack([features, np.ones((features.shape[0], 1))]))
    signs = np.where(labels == labels.max(), 1.0, -1.0)

    def loss_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (rows @ x)
        gradient = rows.T @ (-signs * expit(-margins)) / len(signs) + l2 * x
        return float(np.logaddexp(0.0, -margins).mean() + 0.5 * l2 * x @ x), gradient

    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-9}
    found = scipy.optimize.minimize(
        loss_and_gradient, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options=options
    )
    return float(found.fun)


def train_a9a(goco: Sequence[str], directory: Path) -> list[str]:
    """Train on a9a; return what is wrong with the result."""
    if not A9A.exists():
        print(f"SKIPPED: a9a is not there: {A9A}", flush=True)
        return []
    command = [*goco, "run", str(ROOT / "examples" / "a9a.toml"), "--set", f"data.source={A9A}", "--out", "a9a"]
    seconds, _ = launch([*command, "--quiet"], directory, TIME_LIMIT_S)
    record = read_run(directory / "a9a")
    loss, l2 = record.run["result"]["loss"], record.run["config"]["objective"]["l2"]
    gap = loss - scipy_optimum(A9A, l2)
    rounds = record.run["result"]["rounds"]
    print(
        f"a9a by push_pull, rank 3 ten times slower: {gap:.2g} above the optimum of scipy in {max(rounds)} rounds (the "
        f"slow rank's: {rounds[3]}), {record.run['result']['wall_s']:.1f} s of {seconds:.1f} s",
        flush=True,
    )
    print(f"  bytes of the file that each rank read: {[int(row['bytes_read']) for row in record.ranks]}", flush=True)
    wrong = [] if abs(gap) <= GAP else [f"a9a: {gap:.3g} above the optimum"]
    if not record.run["result"]["suboptimality"] <= GAP:
        wrong.append(f"a9a: the run itself says {record.run['result']['suboptimality']:.3g}")
    return wrong


def train_from_store(goco: Sequence[str], directory: Path, n_samples: int, n_features: int) -> list[str]:
    """Make a shard store and train from it; return what is wrong."""
    shard = [sys.executable, "-m", "goco_mpi", "shard", "synthetic_regression", "store", "--shards", "16"]
    sizes = ["--set", f"data.n_samples={n_samples}", "--set", f"data.n_features={n_features}"]
    shard += ["--partition", "in_order", "--test-fraction", "0"]
    seconds, _ = launch([*shard, *sizes], directory, TIME_LIMIT_S)
    nbytes = sum(file.stat().st_size for file in (directory / "store").iterdir())
    print(f"a shard store of {nbytes / 1e9:.2f} GB made in {seconds:.1f} s", flush=True)
    (directory / "experiment.toml").write_text(STORE)
    seconds, _ = launch([*goco, "run", "experiment.toml", "--out", "run", "--quiet"], directory, TIME_LIMIT_S)
    record = read_run(directory / "run")
    result = record.run["result"]
    print(
        f"{N_RANKS} ranks trained in {seconds:.1f} s, of which {result['wall_s']:.1f} s were rounds: loss "
        f"{result['loss_start']:.4g} to {result['loss']:.4g}",
        flush=True,
    )
    bare = float(
        subprocess.run(
            [sys.executable, "-c", "from goco_mpi.engine.memory import peak_mib; print(peak_mib())"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    degrees = lay_out(parse_config(record.run["config"]), N_RANKS).topology.degrees
    n_params = n_features + 1
    wrong = [] if result["loss"] < 0.5 * result["loss_start"] else ["the loss has hardly fallen"]
    for row in record.ranks:
        rank, rows = int(row["rank"]), int(row["rows"])
        shards = 8.0 * rows * (n_params + 1) / MIB
        vectors = 8.0 * (3 * int(degrees[rank]) + 6) * n_params / MIB
        bound = bare + shards + vectors + OVERHEAD_MIB
        parts = f"Python {bare:.1f} + shards {shards:.1f} + vectors {vectors:.2f} + {OVERHEAD_MIB:g}"
        print(
            f"  rank {rank}: {row['peak_mib']:.1f} MiB, bound {bound:.1f} = {parts}; {row['bytes_read'] / MIB:.1f} MiB "
            f"read in {row['load_s']:.2f} s",
            flush=True,
        )
        if row["peak_mib"] > bound:
            wrong.append(f"rank {rank} had {row['peak_mib']:.1f} MiB, and its bound is {bound:.1f}")
        own = 8.0 * rows * (n_features + 1)
        if not own <= row["bytes_read"] <= 1.01 * own + (8 << 20):
            wrong.append(f"rank {rank} read {row['bytes_read']:.0f} bytes, and its shards have {own:.0f}")
    return wrong


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mpiexec", required=True, metavar="COMMAND", help="launcher, with its arguments")
    parser.add_argument("--samples", type=int, default=500_000, help="rows of the store; 500000 are 2 GB")
    parser.add_argument("--features", type=int, default=500)
    options = parser.parse_args()
    goco = on_ranks(options.mpiexec, N_RANKS)
    with tempfile.TemporaryDirectory(prefix="goco-large-") as name:
        directory = Path(name)
        wrong = train_a9a(goco, directory)
        wrong += train_from_store(goco, directory, options.samples, options.features)
    for text in wrong:
        print(f"FAILED: {text}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
