"""``goco watch`` beside a real job of two ranks, and where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from goco_mpi import status
from goco_mpi.cli import main
from goco_mpi.commands import watch

N_RANKS = 2
EXPERIMENT = """\
rounds = 400
[data]
source = "synthetic"
n_samples = 200
n_features = 4
shards = 4
[objective]
kind = "least_squares"
[deadline]
gossip_s = inf
compute_s = inf
[stragglers]
kind = "slow"
work_s = 5e-3
"""


@pytest.fixture(scope="module")
def recorded(run_experiment: Callable[..., Path]) -> Path:
    """A finished run."""
    return run_experiment("finished", "rounds=20")


def test_a_job_is_followed_to_its_end(
    recorded: Path, mpiexec: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "LINE_EVERY_S", 0.5)
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.1)
    out = recorded.with_name("followed")
    words = [sys.executable, "-m", "goco_mpi", "run", "experiment.toml", "--out", "followed", "--quiet"]
    job = subprocess.Popen(
        [*mpiexec, "-n", "2", *words], cwd=recorded.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        while status.read(status.directory_of(out)) is None:
            assert job.poll() is None
        assert main(["watch", str(out)]) == 0
        assert job.wait(60) == 0
    finally:
        job.kill()
    printed = capsys.readouterr().out.splitlines()
    running = [text for text in printed if text.startswith("round")]
    assert any("of 400" in text and "rounds/s" in text and "left" in text for text in running)
    assert any("loss about" in text for text in running)
    assert printed[-2].startswith("loss ")
    assert printed[-1] == f"record in {out}"
    assert not status.directory_of(out).exists()


def test_a_finished_run_is_told_as_when_it_ended(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not status.directory_of(recorded).exists()
    for words in (["watch", str(recorded)], ["watch", str(recorded), "--once"]):
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"record in {recorded}"


def test_a_run_is_found_from_its_own_directory(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recorded)
    assert main(["watch", "."]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "record in ."


@pytest.mark.parametrize("name", ["nowhere", ".", "..", "/", ""])
def test_a_run_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["watch", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("goco: ")
    assert said.count("\n") == 1
    assert "is no run" in said


def test_one_look_at_a_job_is_one_line_with_who_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = status.directory_of(tmp_path / "run")
    status.begin(directory, {"n_ranks": 2, "rounds": 50, "period_s": 1.0})
    said = {"host": "n", "state": "running", "noted_s": 2.0, "up_s": 2.0, "round": 10, "gradients": 9}
    said |= {"late": 0, "wait_s": 0.5, "suspects": []}
    for rank in (0, 1):
        status.write(directory, rank, status.encode(said))
    now = (directory / "rank0").stat().st_mtime
    os.utime(directory / "rank1", (now - 100.0, now - 100.0))
    assert main(["watch", str(tmp_path / "run"), "--once"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("round 10 of 50, 5 rounds/s, about 8 s left")
    assert "rank 1 silent for 1 min 40 s" in printed
    assert printed.count("\n") == 1


def test_a_job_that_ends_without_a_result_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = status.directory_of(tmp_path / "run")
    status.begin(directory, {"n_ranks": 2, "rounds": 50, "period_s": 1.0})
    monkeypatch.setattr(watch, "ENDING_S", 0.0)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: status.end(directory))
    assert main(["watch", str(tmp_path / "run")]) == 1
    assert "ended without a result" in capsys.readouterr().out


def test_a_record_that_is_there_before_its_job_has_ended_is_its_result(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(recorded, out)
    directory = status.directory_of(out)
    monkeypatch.setattr(watch, "ENDING_S", 0.0)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: status.end(directory))
    for age_s, code in ((10.0, 0), (-10.0, 1)):  # written after the job began, or by a job before
        status.begin(directory, {"n_ranks": 2, "rounds": 50, "period_s": 1.0})
        begun_s = (out / "run.json").stat().st_mtime - age_s
        os.utime(directory / "job", (begun_s, begun_s))
        assert main(["watch", str(out)]) == code
        assert ("ended without a result" in capsys.readouterr().out) == bool(code)


def test_telling_changes_nothing_of_what_is_computed(run_experiment: Callable[..., Path], recorded: Path) -> None:
    silent = run_experiment("silent", "rounds=20", "record.status=false")
    assert (np.load(silent / "params.npy") == np.load(recorded / "params.npy")).all()
