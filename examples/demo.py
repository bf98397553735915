"""GOCO against uncoded gossip and allreduce, on real MPI with one rank ten times slower.

    python examples/demo.py --mpiexec mpiexec -n 8

Every method runs with its own best step, found by simulating it; then the runs are compared.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from goco_mpi.config import read_config
from goco_mpi.errors import GocoError, RunError
from goco_mpi.simulation.rounds import Simulation

HERE = Path(__file__).resolve().parent
GAP = 0.01
MOST_ROUNDS = 200
SCALES = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0]
# Rounds of an allreduce last as long as the slowest rank's: fewer do.
VARIANTS = {
    "goco_coded": [],
    "goco_uncoded": ["placement.kind=uncoded"],
    "allreduce": ["method.kind=allreduce", "rounds=40"],
}
NO_STRAGGLERS = ["stragglers.ranks=[]", "stragglers.delay_p=0"]


def best_scale(experiment: Path, overrides: list[str], n_ranks: int) -> float:
    """Return the smallest multiple of the automatic step within a fifth of the fewest simulated rounds to the gap."""
    needed: dict[float, int] = {}
    for scale in SCALES:
        config = read_config(experiment, [*overrides, f"step.scale={scale}", f"rounds={MOST_ROUNDS}"])
        simulation = Simulation(config, n_ranks)
        objective, pooled = simulation.problem.objective, simulation.problem.pooled_rows()
        if not needed:
            start, optimum = objective.loss(np.zeros(objective.n_params), pooled), simulation.problem.optimum()
            target = optimum + GAP * (start - optimum)
        enough = round(1.2 * min(needed.values(), default=MOST_ROUNDS))

        def go_on(round_: int, stacked_params: np.ndarray) -> bool:
            needed[scale] = round_  # noqa: B023
            return round_ <= enough and objective.loss(stacked_params.mean(axis=0), pooled) > target  # noqa: B023

        try:
            simulation.run(go_on)
        except RunError:  # diverged, and so would any larger step
            needed[scale] = MOST_ROUNDS
            break
    return min(scale for scale in needed if needed[scale] <= 1.2 * min(needed.values()))


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mpiexec", default="mpiexec")
    parser.add_argument("-n", type=int, default=8, help="ranks")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--experiment", type=Path, default=HERE / "demo.toml")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def launch(name: str, overrides: list[str]) -> Path:
        out = options.out / name
        settings = [word for override in overrides for word in ("--set", override)]
        command = [*options.mpiexec.split(), "-n", str(options.n), sys.executable, "-m", "goco_mpi", "run"]
        command += [str(options.experiment), *settings, "--out", str(out), "--force", "--quiet"]
        if code := subprocess.run(command).returncode:
            sys.exit(code)  # goco has said why
        return out

    print(f"{options.n} ranks; rank 3 is ten times slower, the others are held up now and then")
    runs = []
    steps = {}
    for name, overrides in VARIANTS.items():
        steps[name] = best_scale(options.experiment, overrides, options.n)
        print(
            f"  {name.replace('_', ' '):<14} best step (simulated): {steps[name]:g} / curvature; running ...",
            flush=True,
        )
        runs.append(launch(name, [*overrides, f"step.scale={steps[name]}"]))
    print("  goco coded     once more with no stragglers, for its full speed ...", flush=True)
    reference = launch("goco_no_stragglers", [*NO_STRAGGLERS, f"step.scale={steps['goco_coded']}"])
    print()
    goco = shutil.which("goco", path=str(Path(sys.executable).parent)) or "goco"
    report = [goco, "report", *map(str, runs), "--reference", str(reference), "--gap", str(GAP)]
    return subprocess.run([*report, "--png", str(options.out / "loss.png")]).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GocoError as error:
        sys.exit(f"demo: {error}")
