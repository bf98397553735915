"""Is what `goco plan` says of a recorded run right? Its candidates run for real, beside what it predicted.

    python examples/plan/check.py examples/plan/compute_bound.toml --out runs/plan

runs the experiment on 8 ranks, plans from its record, and sweeps over the plan's best candidates under MPI, each with
its own step size and three seeds. Work that lasts (`stragglers.work_s`) stands for computing on a rank of its own, so
that ranks may share cores; it lasts as many times as long as a shard has holders.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from goco_mpi.config import flat

LONGER, UNPACED = 1.5, 5.0
"""A real run may take so many times the rounds that were predicted; where nobody waits rounds are no measure."""
SEEDS = [0, 1, 2]


def goco(*words: str) -> str:
    """Run goco and return what it printed."""
    done = subprocess.run([sys.executable, "-m", "goco_mpi", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"goco {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def toml(value: Any) -> str:
    """Write a value that JSON gave."""
    return value if value == "inf" else json.dumps(value)


def chosen(plan: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """Return allreduce, the fastest candidates, and the fastest of each number of holders, of those that get there."""
    reached = sorted((c for c in plan["candidates"] if c["seconds"]), key=lambda c: c["seconds"])
    kept = [c for c in reached if c["choice"] == "allreduce"] + reached[:most]
    for holders in (1, 2, 3):
        kept += [c for c in reached if replication(c) == holders and c["choice"] != "allreduce"][:1]
    return list({c["choice"]: c for c in kept}.values())


def replication(candidate: dict[str, Any]) -> int:
    """Return how many holders a shard has."""
    return int(candidate["settings"].get("placement", {}).get("replication", 1))


def write_sweep(file: Path, experiment: Path, candidates: list[dict[str, Any]]) -> None:
    """Write the sweep of the candidates."""
    work_s = tomllib.loads(experiment.read_text())["stragglers"]["work_s"]
    lines = ['mode = "mpi"', "workers = 8", f"base = {json.dumps(str(experiment.resolve()))}", ""]
    for candidate in candidates:
        lines += ["[[variant]]", f"name = {json.dumps(candidate['choice'])}"]
        settings = {key: value for key, value in flat(candidate["settings"]).items() if value is not None}
        settings["stragglers.work_s"] = work_s * replication(candidate)
        settings["record.every"] = 1
        longer = UNPACED if settings.get("deadline.gossip_s") == 0.0 else LONGER
        settings["rounds"] = max(math.ceil(longer * candidate["rounds"]), 10)
        lines += [f"{key} = {toml(value)}" for key, value in settings.items()] + [""]
    file.write_text("\n".join([*lines, "[grid]", f"seed = {SEEDS}", ""]))


def seconds_to(table: Path, gap: float) -> dict[str, list[float]]:
    """Return the seconds that every variant needed to the gap, of each seed."""
    first: dict[tuple[str, str], float] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["variant"], row["seed"]
            first.setdefault(key, math.inf)
            if row["suboptimality"] and float(row["suboptimality"]) <= gap:
                first[key] = min(first[key], float(row["wall_s"]))
    seconds: dict[str, list[float]] = {}
    for (variant, _), value in first.items():
        seconds.setdefault(variant, []).append(value)
    return seconds


def main() -> None:
    """Run, plan, sweep, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gap", type=float, default=0.01)
    parser.add_argument("--most", type=int, default=4, help="of the fastest candidates")
    parser.add_argument("--mpiexec", default=str(Path(sys.executable).with_name("mpiexec")))
    options = parser.parse_args()
    out = options.out / options.experiment.stem
    out.mkdir(parents=True, exist_ok=True)
    launch = [*shlex.split(options.mpiexec), "-n", "8", sys.executable, "-m", "goco_mpi", "run"]
    record = out / "recorded"
    subprocess.run([*launch, str(options.experiment), "--out", str(record), "--force", "--quiet"], check=True)
    plan = json.loads(goco("plan", str(record), "--gap", str(options.gap), "--json"))
    (out / "plan.json").write_text(json.dumps(plan, indent=2))
    candidates = chosen(plan, options.most)
    write_sweep(out / "sweep.toml", options.experiment, candidates)
    command = ["sweep", str(out / "sweep.toml"), "--out", str(out / "sweep"), "--mpiexec", options.mpiexec, "--quiet"]
    done = subprocess.run([sys.executable, "-m", "goco_mpi", *command])
    found = seconds_to(out / "sweep" / "results.csv", options.gap)
    print("\n".join(plan["words"]))
    print("| candidate | predicted, s | real, s: median | least to most |\n|---|---|---|---|")
    for candidate in sorted(candidates, key=lambda c: c["seconds"]):
        real = sorted(found.get(candidate["choice"], [math.nan]))
        mark = "**" if plan["best"] and candidate["choice"] == plan["best"]["choice"] else ""
        low, middle, high = (shown(s) for s in (real[0], statistics.median(real), real[-1]))
        print(f"| {mark}{candidate['choice']}{mark} | {candidate['seconds']:.2f} | {middle} | {low} to {high} |")
    if done.returncode:
        print(f"goco sweep ended with {done.returncode}: see {out / 'sweep' / 'results.csv'}")


def shown(seconds: float) -> str:
    """Write a time."""
    return "never" if math.isinf(seconds) else f"{seconds:.2f}"


if __name__ == "__main__":
    main()
