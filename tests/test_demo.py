"""The demonstration of ``make run``, on a problem small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.py"
EXPERIMENT = """\
seed = 1
rounds = 30
[data]
source = "breast_cancer"
shards = 8
standardize = true
[objective]
kind = "logistic"
l2 = 1e-2
[topology]
kind = "complete"
[stragglers]
kind = "slow"
ranks = [3]
factor = 4.0
work_s = 1e-3
[record]
every = 2
optimum = true
"""


def test_the_demo_runs_and_compares(mpiexec: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    words = ["--mpiexec", " ".join(mpiexec), "-n", "4", "--out", "demo", "--experiment", "small.toml"]
    ended = subprocess.run(
        [sys.executable, str(DEMO), *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    names = {"goco_coded", "goco_uncoded", "allreduce", "goco_no_stragglers"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {*names, "loss.png"}
    for name in names:
        document = json.loads((tmp_path / "demo" / name / "run.json").read_text())
        assert document["environment"]["n_ranks"] == 4
        assert document["result"]["loss"] < document["result"]["loss_start"]
        if name != "goco_no_stragglers":
            assert name.replace("_", " ") in ended.stdout
    assert "of full speed" in ended.stdout
