"""Checkpoints under kills at random moments, full disks and places that cannot be written: 200 processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writer import Victims, files, newest, write_set

from goco_mpi import checkpoint

pytestmark = pytest.mark.cluster

N_RANKS = 3
N_WRITERS, N_RUNS = 180, 20
LIMIT_S = 120
"""Of one run, on a busy machine."""
EXPERIMENT = """\
seed = 3
rounds = 1_000_000
[data]
source = "synthetic"
n_samples = 400
n_features = 40
shards = 8
[objective]
kind = "least_squares"
[topology]
kind = "ring"
[stragglers]
kind = "slow"
ranks = [1]
factor = 10.0
work_s = 1e-3
[checkpoint]
every_s = 0.02
"""


def test_180_writers_killed_at_random_moments_leave_what_can_be_gone_on_from(tmp_path: Path) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, 20_000)
    before = 1
    with Victims(tmp_path, N_RANKS, 20_000) as victims:
        for delay_s in np.random.default_rng(11).uniform(0.0, 0.1, N_WRITERS):
            victims.kill_one(float(delay_s))
            number = newest(tmp_path, N_RANKS)
            assert number >= before
            before = number
    assert before > 1


class Job:
    """``goco run`` under a launcher, in a process group of its own."""

    def __init__(self, mpiexec: list[str], directory: Path, *options: str) -> None:
        goco = [sys.executable, "-m", "goco_mpi", "run", "experiment.toml", "--out", "run", *options]
        self.process = subprocess.Popen(
            [*mpiexec, "-n", str(N_RANKS), *goco],
            cwd=directory,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ranks(self) -> list[int]:
        """Return the processes of the ranks: those below the launcher that run goco."""
        found, parents = [], [self.process.pid]
        while parents:
            listed = subprocess.run(
                ["ps", "-o", "pid=,args=", "--ppid", str(parents.pop())], capture_output=True, text=True
            )
            for line in listed.stdout.splitlines():
                pid, _, words = line.strip().partition(" ")
                parents.append(int(pid))
                if words.startswith(sys.executable):
                    found.append(int(pid))
        return found

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said on standard error."""
        _, said = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, said

    def kill(self) -> None:
        """End what is left of it."""
        below = self.ranks()
        for pid in below:
            os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=LIMIT_S)


@pytest.fixture
def start(mpiexec: list[str], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    jobs: list[Job] = []

    def begin(*options: str) -> Job:
        jobs.append(Job(mpiexec, tmp_path, *options))
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.process.poll() is None:
            job.kill()


def wait_for(what: Callable[[], object], job: Job) -> None:
    end = time.monotonic() + LIMIT_S
    while not what():
        assert job.process.poll() is None, job.end()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_20_runs_killed_at_random_moments_go_on_and_replay(start: Callable[..., Job], tmp_path: Path) -> None:
    directory, rng, before = tmp_path / "run.checkpoints", np.random.default_rng(7), 0
    for number in range(N_RUNS):
        job = start("--resume", "--quiet")
        known = {found.number for found in checkpoint.whole_sets(directory)}
        wait_for(lambda: {one.number for one in checkpoint.whole_sets(directory)} - known, job)  # noqa: B023
        time.sleep(float(rng.uniform(0.0, 0.1)))
        if number % 2:  # one rank, and the launcher ends the others; or all at once
            os.kill(job.ranks()[number % N_RANKS], signal.SIGKILL)
            job.end()
        else:
            job.kill()
        newest_set = checkpoint.whole_sets(directory)[0]
        assert newest_set.number > before
        before = newest_set.number
        for rank in range(N_RANKS):
            assert np.isfinite(checkpoint.mean_params(directory)).all()
            assert (newest_set.path / f"rank{rank:05d}.npz").exists()
    code, said = start("--resume", "--set", "stop.time_limit_s=1.0").end()
    assert (code, "going on from round" in said) == (0, True), said
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["resumed_from"]["checkpoint"] == newest_set.path.name
    assert result["loss"] < result["loss_start"]
    replayed = subprocess.run(
        [sys.executable, "-m", "goco_mpi", "replay", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (replayed.returncode, replayed.stderr) == (0, "")


def test_a_disk_that_fills_up_does_not_end_the_run(
    start: Callable[..., Job], tmp_path: Path, need: Callable[[str | None], None]
) -> None:
    need(None if os.geteuid() == 0 else "mounting a small file system needs root")
    directory = tmp_path / "run.checkpoints"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)], capture_output=True)
    need(None if mounted.returncode == 0 else f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    try:
        (directory / "ballast").write_bytes(b"\0" * 40_000)
        code, said = start("--quiet", "--set", "stop.time_limit_s=1.0").end()
        assert code == 0, said
        assert said.count("cannot be written: No space left on device") == said.count("[rank ") > 0
        assert (tmp_path / "run" / "run.json").exists()
        assert not list(directory.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_place_that_cannot_be_written_is_refused_before_the_first_round(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    (tmp_path / "run.checkpoints").write_text("in the way")
    code, said = start().end()
    assert (code, said.count("Checkpoints cannot be written")) == (2, 1), said
    assert not (tmp_path / "run").exists()
