"""The checked-in PBS and LSF scripts, run by stand-ins of qsub and bsub, with MPICH and with Open MPI."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest

from goco_mpi.sweeps.file import read_sweep

pytestmark = pytest.mark.cluster

STANDINS = Path(__file__).with_name("standins")
LIMIT_S = 180.0
HOSTS = ["node1", "node2", "node3", "node4"]


class Batch:
    """A home directory, a copy of the job scripts, and a scheduler's stand-in."""

    def __init__(self, directory: Path, scheduler: str, python: str) -> None:
        self.home = directory / "home"
        self.home.mkdir()
        self.place = jobs.copy(directory, python)
        self.scheduler = scheduler

    def start(self, job: str, *options: str) -> subprocess.Popen[str]:
        script = self.place / self.scheduler / f"{job}.sh"
        by_name = self.scheduler == "pbs"
        command = [sys.executable, STANDINS / ("qsub" if by_name else "bsub"), *options, *([script] if by_name else [])]
        with script.open() as file:
            return subprocess.Popen(
                command,
                cwd=self.place,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self.home)},
                stdin=file,
                stderr=subprocess.PIPE,
                text=True,
            )

    def run(self, job: str, *options: str) -> None:
        """Run a job, which must end well."""
        with self.start(job, *options) as process:
            try:
                _, said = process.communicate(timeout=LIMIT_S)
            except BaseException:
                process.terminate()
                raise
        assert process.returncode == 0, said + self.output(job)

    def output(self, job: str) -> str:
        pattern = f"{job}.o*" if self.scheduler == "pbs" else f"{job}-*.out"
        return "".join(path.read_text() for path in sorted(self.place.glob(pattern)))


MPIS = ["this MPI", "the other MPI"]


@pytest.fixture
def python(request: pytest.FixtureRequest) -> str:
    if request.param == "this MPI":
        return sys.executable
    interpreter: str = request.getfixturevalue("other_launch")[0]
    return interpreter


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a script that takes long with one scheduler and one MPI, and with all of them where there is time."""
    for one in metafunc.definition.iter_markers("batch"):
        cases = [(scheduler, mpi) for scheduler in ("pbs", "lsf") for mpi in MPIS]
        if one.args and not metafunc.config.getoption("--goco-large"):
            cases = [(one.args[0], MPIS[0])]
        metafunc.parametrize(("scheduler", "python"), cases, indirect=["python"])


def elements(scheduler: str, job: str, numbers: str, limit: str = "") -> list[str]:
    """Return the option that makes a job an array, such as of 1-2, of which ``limit`` may run at a time."""
    return ["-J", numbers + limit if scheduler == "pbs" else f"{job}[{numbers}]{limit}"]


@pytest.mark.batch
def test_a_job_trains_with_one_rank_on_each_of_its_hosts(tmp_path: Path, scheduler: str, python: str) -> None:
    batch = Batch(tmp_path, scheduler, python)
    jobs.change(batch.place / "experiments" / "train.toml", ("rounds = 300", "rounds = 100"))
    batch.run("train")
    said = batch.output("train").splitlines()
    assert [line.split()[0] for line in said[:5]] == ["date", "host", "job", "revision", "threads"]
    assert any("launcher_match  yes" in line for line in said)
    jobs.check(batch.place / "runs" / "train")
    started = (batch.home / "hosts").read_text().splitlines()
    assert sorted({line.split()[1] for line in started}) == HOSTS
    assert {line.split()[0] for line in started} == {"ssh" if scheduler == "pbs" else "blaunch"}


@pytest.mark.batch("pbs")
def test_strong_scaling(tmp_path: Path, scheduler: str, python: str) -> None:
    check_scaling(Batch(tmp_path, scheduler, python), "strong_scaling")


@pytest.mark.batch("lsf")
def test_weak_scaling(tmp_path: Path, scheduler: str, python: str) -> None:
    check_scaling(Batch(tmp_path, scheduler, python), "weak_scaling")


def check_scaling(batch: Batch, job: str) -> None:
    """Run a job of runs on more and more nodes."""
    jobs.change(batch.place / "experiments" / f"{job}.toml", ("rounds = 200", "rounds = 20"))
    batch.run(job)
    for n_ranks in (1, 2, 4):
        jobs.check(batch.place / "runs" / job / str(n_ranks), n_ranks)


@pytest.mark.batch("lsf")
def test_elements_of_an_array_run_members_of_a_sweep(tmp_path: Path, scheduler: str, python: str) -> None:
    batch = Batch(tmp_path, scheduler, python)
    sweep = batch.place / "experiments" / "straggler_study.toml"
    jobs.change(sweep, ("rounds = 250", "rounds = 20"))
    first_two = "0-1" if scheduler == "pbs" else "1-2"  # LSF's arrays begin with 1
    batch.run("straggler_study", *elements(scheduler, "straggler_study", first_two))
    study = batch.place / "runs" / "straggler_study"
    members = [member.identity for member in read_sweep(sweep).members]
    assert sorted(path.stem for path in study.glob("experiments/*.toml")) == sorted(members[:2])
    for name in members[:2]:
        jobs.check(study / "runs" / name)


@pytest.mark.batch("pbs")
def test_a_chain_goes_on_after_a_signal(tmp_path: Path, scheduler: str, python: str) -> None:
    batch = Batch(tmp_path, scheduler, python)
    jobs.change(
        batch.place / "experiments" / "resume_chain.toml",
        ("[stop]\ngradient_norm = 1e-8\n", "[stragglers]\nwork_s = 0.005\n"),
        ("rounds = 100000", "rounds = 1000"),
        ("every_s = 60", "every = 10"),
        ("every = 1000\n", "every = 100\n"),
    )
    out = batch.place / "runs" / "resume_chain"
    with batch.start("resume_chain", *elements(scheduler, "resume_chain", "1-2", "%1")) as process:
        try:
            limit = time.monotonic() + LIMIT_S
            while not list(out.parent.glob("*.checkpoints/*/whole.json")):
                assert time.monotonic() < limit, batch.output("resume_chain")
                time.sleep(0.05)
            process.send_signal(signal.SIGUSR1)
            _, said = process.communicate(timeout=LIMIT_S)
        except BaseException:
            process.terminate()
            raise
    assert process.returncode == 0, said + batch.output("resume_chain")
    assert jobs.check(out).history["round"][-1] == 1000
    said = batch.output("resume_chain")
    assert "stopped in round" in said
    assert said.index("there is no checkpoint") < said.index("going on from round")


def test_what_the_scheduler_would_refuse_its_stand_in_refuses(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "pbs", sys.executable)
    jobs.change(batch.place / "pbs" / "train.sh", ("#PBS -r", "#PBS -Z"))
    with pytest.raises(AssertionError, match="unrecognized arguments: -Z"):
        batch.run("train")
