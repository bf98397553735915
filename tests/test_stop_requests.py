"""Runs that are asked to end from outside: real ranks, real signals, a real file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from goco_mpi.record import read_run
from goco_mpi.replay import replay

TIMEOUT_S = 60
"""What a hanging run is ended by; these take two seconds."""

# The command itself, but every rank leaves its process id when its rounds have begun.
TELLING = """\
import os, pathlib, sys
from goco_mpi import cli
from goco_mpi.engine import launcher, runner
take = runner.Snapshots.take
def told(self, round_, *rest):
    mine = pathlib.Path("pids", str(launcher.inspect().rank))
    if round_ >= 20 and not mine.exists():
        mine.write_text(str(os.getpid()))
    take(self, round_, *rest)
runner.Snapshots.take = told
sys.exit(cli.main())
"""
# The same, but it leaves its process id in its set-up, and goes on when a signal has come.
SETTING_UP = """\
import os, pathlib, sys, time
from goco_mpi import cli
from goco_mpi.engine import launcher, train
load = train.load
def slowly(session, layout):
    rank = launcher.inspect().rank
    pathlib.Path("pids", str(rank)).write_text(str(os.getpid()))
    while rank == 1 and not pathlib.Path("sent").exists():
        time.sleep(0.01)
    return load(session, layout)
train.load = slowly
sys.exit(cli.main())
"""
# What is told of a job that has six seconds left when the run begins.
ENDING_SOON = """\
import os, time
from goco_mpi.commands import experiments
prepare = experiments.prepare
def late(options):
    os.environ["SLURM_JOB_END_TIME"] = str(time.time() + 6)
    return prepare(options)
experiments.prepare = late
"""
EXPERIMENT = """\
rounds = 1_000_000_000
[data]
source = "synthetic"
n_samples = 200
n_features = 6
shards = 6
[objective]
kind = "least_squares"
[topology]
kind = "ring"
[placement]
replication = 1
[stragglers]
work_s = 3e-3
[record]
every = 5
"""


def until(condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> bool:
    """Look again and again until ``condition`` holds, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Job:
    """A job of three ranks that has begun."""

    process: subprocess.Popen[str]
    directory: Path
    pids: dict[int, int]

    def end(self) -> tuple[int, str, str]:
        """Wait for the job's end; return its exit code and what it said."""
        out, said = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out, said


@contextmanager
def job(
    mpiexec: list[str], directory: Path, *settings: str, program: str = TELLING, **environment: str
) -> Iterator[Job]:
    (directory / "pids").mkdir()
    (directory / "experiment.toml").write_text(EXPERIMENT)
    launcher = ("PMI", "OMPI_COMM_WORLD", "MPI_LOCAL", "PMIX", "SLURM_", "PBS_", "GOCO_JOB")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    words = [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(
        [*mpiexec, "-n", "3", sys.executable, "-c", program, "run", "experiment.toml", "--out", "out", *words],
        cwd=directory,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids: dict[int, int] = {}

    def begun() -> bool:
        texts = {int(path.name): path.read_text() for path in (directory / "pids").iterdir()}
        pids.update({rank: int(text) for rank, text in texts.items() if text})
        return len(pids) == 3 or process.poll() is not None

    try:
        assert until(begun)
        yield Job(process, directory, pids)
    finally:
        if process.poll() is None:
            process.kill()
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)


def check_ended_well(running: Job, reason: str) -> None:
    code, out, said = running.end()
    assert code == 0, said
    assert "stopped in round" in out
    assert "Traceback" not in said
    result = json.loads((running.directory / "out" / "run.json").read_text())["result"]
    assert result["stopped_by"] == reason
    found = replay(read_run(running.directory / "out"))
    assert found.agrees
    assert found.n_steps > 0
    assert "--resume" in out  # how to go on
    left = sorted(path.name for path in running.directory.iterdir() if "out" in path.name)
    assert left == ["out", "out.checkpoints"]


@pytest.mark.parametrize(
    ("number", "rank", "settings"),
    [
        (signal.SIGTERM, 2, ["method.kind=goco"]),
        (signal.SIGUSR1, 1, ["method.kind=allreduce"]),
        (signal.SIGTERM, 1, ["method.kind=gradient_coding", "placement.kind=cyclic", "placement.replication=2"]),
    ],
    ids=["gossip", "allreduce", "master"],
)
def test_a_signal_to_one_rank_stops_all_in_good_order(
    mpiexec: list[str], tmp_path: Path, number: signal.Signals, rank: int, settings: list[str]
) -> None:
    with job(mpiexec, tmp_path, *settings) as running:
        os.kill(running.pids[rank], number)
        check_ended_well(running, "signal")


def test_a_stop_file_stops_all_and_is_removed(mpiexec: list[str], tmp_path: Path) -> None:
    with job(mpiexec, tmp_path) as running:
        (tmp_path / "out.stop").touch()
        check_ended_well(running, "stop_file")


def test_a_stop_file_that_is_there_already_keeps_the_run_from_starting(mpiexec: list[str], tmp_path: Path) -> None:
    (tmp_path / "out.stop").touch()
    with job(mpiexec, tmp_path) as running:
        code, out, said = running.end()
    assert (code, out) == (2, "")
    assert said.count("\n") == 1
    assert "out.stop" in said
    assert (tmp_path / "out.stop").exists()
    assert not (tmp_path / "out").exists()


def test_a_run_ends_before_its_job_does(mpiexec: list[str], tmp_path: Path) -> None:
    # Rank 0 alone is told, when it has started; it stops half of the time that is left before that end.
    with job(mpiexec, tmp_path, program=ENDING_SOON + TELLING) as running:
        check_ended_well(running, "scheduler")


def test_a_signal_in_the_set_up_ends_the_run_before_its_first_round(mpiexec: list[str], tmp_path: Path) -> None:
    with job(mpiexec, tmp_path, program=SETTING_UP) as running:
        os.kill(running.pids[1], signal.SIGTERM)
        (tmp_path / "sent").touch()
        code, out, said = running.end()
    assert code == 0, said
    assert "stopped in round" in out
    result = json.loads((tmp_path / "out" / "run.json").read_text())["result"]
    assert result["stopped_by"] == "signal"
    assert max(result["rounds"]) <= 2
