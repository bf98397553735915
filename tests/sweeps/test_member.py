"""Members of a sweep that something else runs, such as the elements of a job array, and the table of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from goco_mpi.cli import main
from goco_mpi.config import read_config
from goco_mpi.sweeps.file import read_sweep

SWEEP = """\
workers = 4
[base]
rounds = 20
data = {source = "synthetic", n_samples = 100, n_features = 4, shards = 8}
objective = {kind = "least_squares", l2 = 0.1}
[grid]
placement.replication = [2, 9]
seed = [3, 4]
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SWEEP)
    return tmp_path / "small.toml"


def test_members_run_apart_are_collected_into_the_table_and_nothing_else_is_run(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path("runs/small")
    for place in (1, 0):
        assert main(["sweep", "small.toml", "--member", str(place)]) == 0
        name = capsys.readouterr().out.strip()
        assert name == read_sweep(sweep).members[place].identity
        experiment = out / "experiments" / f"{name}.toml"
        assert read_config(experiment) == read_sweep(sweep).members[place].config
        assert [path.name for path in experiment.parent.iterdir() if path.name.startswith(".")] == []
        if place == 1:
            assert main(["simulate", str(experiment), "--workers", "4", "--out", str(out / "runs" / name)]) == 0
            capsys.readouterr()
    assert main(["sweep", "small.toml", "--collect"]) == 0
    assert "1 of 4 members are there" in capsys.readouterr().out
    with (out / "results.csv").open(newline="") as file:
        states = {(row["placement.replication"], row["seed"]): row["status"] for row in csv.DictReader(file)}
    assert states == {("2", "3"): "missing", ("2", "4"): "done", ("9", "3"): "missing", ("9", "4"): "missing"}


@pytest.mark.parametrize("place", ["-1", "4"])
def test_a_member_that_is_none_is_refused(sweep: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    assert main(["sweep", "small.toml", f"--member={place}"]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert "--member must be between 0 and 3" in said
    assert not Path("runs").exists()


def test_a_member_that_is_refused_is_not_written(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.write_text(SWEEP.replace("placement.replication = [2, 9]", "step.scale = [1.0, 0.0]"))
    assert main(["sweep", "small.toml", "--member", "2"]) == 2
    assert "step.scale" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_an_experiment_that_cannot_be_written_is_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").touch()
    assert main(["sweep", "small.toml", "--member", "0", "--out", "taken"]) == 1
    assert "cannot be written" in capsys.readouterr().err
