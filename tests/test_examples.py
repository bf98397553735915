"""The examples run as they tell their readers to, under mpiexec."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from goco_mpi.record import HISTORY
from goco_mpi.sweeps.file import read_sweep

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(mpiexec: list[str], n_ranks: int, name: str) -> str:
    command = [*mpiexec, "-n", str(n_ranks), sys.executable, "-m", "mpi4py", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("n_ranks", [1, 4])
def test_an_experiment_from_python_ends_by_its_callback(mpiexec: list[str], n_ranks: int) -> None:
    printed = run(mpiexec, n_ranks, "train_from_python.py")
    assert "callback raised StopIteration" in printed
    accuracy = re.search(r"accuracy ([0-9.]+) %", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 90.0


@pytest.mark.parametrize("n_ranks", [1, 4])
def test_an_own_objective_finds_the_truth_beneath_gross_errors(mpiexec: list[str], n_ranks: int) -> None:
    printed = run(mpiexec, n_ranks, "own_objective.py")
    assert "gradient fell to stop.gradient_norm" in printed
    found = re.search(r"x = \[(.*?)\]", printed)
    assert found is not None
    # Twelve shards of 190 good samples with noise 0.1, and the errors' bounded pull.
    assert [float(x) for x in found[1].split()] == pytest.approx([1.0, -2.0, 3.0], abs=0.05)


@pytest.mark.parametrize("name", ["paper", "regimes"])
def test_no_member_of_a_sweep_is_refused(name: str) -> None:
    sweep = read_sweep(EXAMPLES / name / "sweep.toml")
    assert len(sweep.members) > 100
    assert {member.refusal for member in sweep.members} == {""}


def test_the_map_says_where_coding_pays(tmp_path: Path) -> None:
    # Rounds that one, two and four copies need at their best step.
    needed = {
        ("goco", "0.0", "0.0"): {1: 20, 2: 10, 4: 6},
        ("goco", "0.0", "1.0"): {2: 10},
        ("goco", "0.3", "0.0"): {},
        ("push-pull", "0.0", "0.0"): {1: 16, 2: 12, 4: 12},
        ("push-pull", "0.0", "1.0"): {1: 20},
        ("push-pull", "0.3", "0.0"): {},
    }
    rows = []
    for (method, late, apart), best in needed.items():
        for d in (1, 2, 4):
            for scale, factor in (("1.0", 2), ("2.0", 1)):
                rounds = best.get(d)
                for round_ in range(0, 50, 2):
                    there = rounds is not None and round_ >= rounds * factor
                    row = dict.fromkeys(HISTORY, "1") | {"round": round_, "suboptimality": 0.01 if there else 1.0}
                    row |= {"stragglers.p": late, "data.heterogeneity": apart, "placement.replication": d}
                    row |= {"step.scale": scale, "variant": method, "workers": 20, "seed": 0, "run": ""}
                    row |= {"status": "done", "reason": "", "member": f"{method} {late} {apart} {d} {scale}"}
                    rows.append(row)
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    picture = tmp_path / "map.svg"
    command = [sys.executable, str(EXAMPLES / "regimes" / "map.py"), str(tmp_path), "--figure", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    cells = r"[0-9.]+ \(d=\d\)|only d=\d|neither"
    alone, diverse, never, better, more, _ = (
        re.findall(cells, line) for line in done.stdout.splitlines() if line.startswith("  heterogeneity")
    )
    # Without overhead 20 x 5, 10 x 10 and 6 x 20 shards; with 30: 20 x 35, 10 x 40, 6 x 50.
    assert alone == ["1.0 (d=2)", "1.1 (d=2)", "1.2 (d=2)", "1.7 (d=4)", "2.3 (d=4)", "2.9 (d=4)"]
    assert diverse == ["only d=2"] * 6
    assert never == ["neither"] * 6
    # The rival's one copy needs 16 rounds, or 20: 16 x 5 to 10 x 10, 16 x 35 to 6 x 50.
    assert better == ["0.8 (d=2)", "0.9 (d=2)", "1.0 (d=2)", "1.3 (d=4)", "1.9 (d=4)", "2.3 (d=4)"]
    assert more == ["1.0 (d=2)", "1.1 (d=2)", "1.2 (d=2)", "1.5 (d=2)", "1.8 (d=2)", "1.9 (d=2)"]
    assert "<svg" in picture.read_text()
