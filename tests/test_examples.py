"""The examples run as they tell their readers to, under mpiexec."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
