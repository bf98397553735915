"""The example runs as it tells its readers to, in a small form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "digits_torch.py"


def test_the_classifier_learns_by_both_methods(mpiexec: list[str]) -> None:
    command = [*mpiexec, "-n", "3", sys.executable, "-m", "mpi4py", str(EXAMPLE), "--rounds", "80", "--shard-s", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    accuracies = [float(found) for found in re.findall(r"([0-9.]+) %  +[0-9]+ +[0-9.]+\n", done.stdout)]
    assert len(accuracies) == 2
    assert min(accuracies) > 70.0  # ten classes
