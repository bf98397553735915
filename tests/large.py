"""One run on many ranks of one machine: make test-large.

It starts, trains, replays and ends, and what it took is printed: seconds, and memory a rank. ``goco info --check`` goes
first, on as many ranks. The exit code is 1 if anything fails, the machine's memory permitting.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from goco_mpi.record import read_run
from goco_mpi.replay import replay

TIME_LIMIT_S = 600.0
"""What a job may take."""
EXPERIMENT = """\
rounds = 200
[data]
source = "synthetic"
n_samples = 20000
n_features = 200
shards = {shards}
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
ranks = [1]
factor = 10.0
work_s = 0.05
[record]
every = 20
optimum = true
"""


def memory(pid: int) -> tuple[int, int]:
    """Return the number of a process's descendants that run Python, and the memory that they take together, in bytes.

    Pages that several share are divided among them (``Pss``).
    """
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    count = total = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            if "python" not in Path(f"/proc/{one}/exe").readlink().name:
                continue
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        count += 1
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return count, total


def on_ranks(mpiexec: str, n_ranks: int) -> list[str]:
    """Return the words with which a command of goco begins that is to run on ``n_ranks`` ranks."""
    return [*shlex.split(mpiexec), "-n", str(n_ranks), sys.executable, "-m", "goco_mpi"]


def launch(
    command: Sequence[str], directory: Path, time_limit_s: float, n_ranks: int | None = None
) -> tuple[float, float]:
    """Run a command with one BLAS thread; return the seconds it took and the most memory a rank, in bytes.

    Memory is looked at once a second, where the number of ranks is given.

    Raises
    ------
    SystemExit
        If it fails, or does not end in time.
    """
    start, most = time.monotonic(), 0.0
    process = subprocess.Popen(command, cwd=directory, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while process.poll() is None:
            if time.monotonic() - start > time_limit_s:
                raise SystemExit(f"{shlex.join(command)} did not end within {time_limit_s:g} s")
            if n_ranks is not None:
                count, total = memory(process.pid)
                if count >= n_ranks:
                    most = max(most, total / count)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
    finally:
        if process.poll() is None:
            process.terminate()  # a launcher that is killed would leave its ranks behind
            process.wait(30)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with exit code {process.returncode}")
    return time.monotonic() - start, most


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--mpiexec", required=True, metavar="COMMAND", help="launcher, with its arguments")
    options = parser.parse_args()
    n_ranks = options.ranks
    goco = on_ranks(options.mpiexec, n_ranks)
    with tempfile.TemporaryDirectory(prefix="goco-large-") as name:
        directory = Path(name)
        (directory / "experiment.toml").write_text(EXPERIMENT.format(shards=2 * n_ranks))
        seconds, _ = launch([*goco, "info", "--check", "--ranks", str(n_ranks)], directory, TIME_LIMIT_S)
        print(f"{n_ranks} ranks examined in {seconds:.1f} s", flush=True)
        seconds, most = launch([*goco, "run", "experiment.toml", "--out", "out"], directory, TIME_LIMIT_S, n_ranks)
        run = read_run(directory / "out")
        result = run.run["result"]
        print(
            f"{n_ranks} ranks trained in {seconds:.1f} s, of which {result['wall_s']:.1f} s were rounds; "
            f"{most / 2**20:.0f} MiB a rank",
            flush=True,
        )
        found = replay(run)
        print(f"replayed {found.n_steps} steps; the largest difference is {found.differences.max():.2g}", flush=True)
    if not found.agrees or result["suboptimality"] > 0.01:
        print(f"FAILED: suboptimality {result['suboptimality']:.3g}, replay agrees: {found.agrees}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
