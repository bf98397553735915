"""The checked-in job scripts on a real Slurm of four nodes, and what happens to them there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jobs
import pytest
import slurm
from slurm import Slurm

pytestmark = pytest.mark.cluster

SCRIPTS = sorted(path.name for path in (jobs.REPOSITORY / "jobscripts" / "slurm").glob("*.sh"))


@pytest.fixture(scope="module")
def cluster(need: Callable[[str | None], None], required: bool) -> Iterator[Slurm]:
    if required and slurm.missing():
        slurm.install(slurm.PACKAGES)
    need(slurm.missing())
    with Slurm() as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return jobs.copy(tmp_path)


def output(place: Path, name: str, job: str) -> str:
    path = place / f"{name}-{job}.out"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_every_script(cluster: Slurm, place: Path, script: str) -> None:
    ended = cluster.run("sbatch", "--test-only", f"slurm/{script}", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "4 nodes" in ended.stderr or "node[1-4]" in ended.stderr


def test_a_job_trains_on_four_nodes_and_says_where_first(cluster: Slurm, place: Path) -> None:
    jobs.change(place / "experiments" / "train.toml", ("rounds = 300", "rounds = 100"))
    job = cluster.submit("slurm/train.sh", cwd=place)
    assert cluster.wait(job) == {job: "COMPLETED"}, output(place, "train", job)
    said = output(place, "train", job).splitlines()
    assert [line.split()[0] for line in said[:5]] == ["date", "host", "job", "revision", "threads"]
    assert any("n_ranks  4" in line for line in said)
    assert any("launcher_match  yes" in line for line in said)
    record = jobs.check(place / "runs" / "train")
    assert record.run["result"]["suboptimality"] < 0.5
    # Once more there is nothing left to do.
    before = (place / "runs" / "train" / "run.json").read_bytes()
    job = cluster.submit("slurm/train.sh", cwd=place)
    assert cluster.wait(job) == {job: "COMPLETED"}, output(place, "train", job)
    assert (place / "runs" / "train" / "run.json").read_bytes() == before


def test_an_array_runs_members_of_a_sweep_which_are_then_collected(cluster: Slurm, place: Path) -> None:
    jobs.change(place / "experiments" / "straggler_study.toml", ("rounds = 250", "rounds = 40"))
    job = cluster.submit("--array=0,5", "slurm/straggler_study.sh", cwd=place)
    states = cluster.wait(job)
    assert states == {f"{job}_0": "COMPLETED", f"{job}_5": "COMPLETED"}
    runs = sorted((place / "runs" / "straggler_study" / "runs").glob("*/run.json"))
    kinds = {jobs.check(path.parent).run["config"]["method"]["kind"] for path in runs}
    assert kinds == {"goco", "allreduce"}
    ended = cluster.run("bash", "-c", ". ./site.sh; goco sweep experiments/straggler_study.toml --collect", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "2 of 6 members are there" in ended.stdout


@pytest.mark.parametrize("kind", ["none", "pmix"])
def test_a_wrong_kind_of_mpi_is_refused_with_the_cure(cluster: Slurm, place: Path, kind: str) -> None:
    script = place / "slurm" / "train.sh"
    jobs.change(script, ("srun --mpi=pmi2", f"srun --mpi={kind}"), ("(launch 4 goco info)\n", ""))
    job = cluster.submit("slurm/train.sh", cwd=place)
    assert cluster.wait(job) == {job: "FAILED"}
    said = output(place, "train", job)
    assert said.count("srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)") == 1
    assert not (place / "runs" / "train").exists()


def test_a_chain_goes_on_after_a_signal_a_dead_rank_and_a_dead_node(cluster: Slurm, place: Path) -> None:
    """One run through all of them, each met by another job of the chain."""
    out, name = place / "runs" / "resume_chain", "resume_chain"
    jobs.change(
        place / "experiments" / "resume_chain.toml",
        ("[stop]\ngradient_norm = 1e-8\n", "[stragglers]\nwork_s = 0.02\n"),
        ("every_s = 60", "every = 10"),
    )
    job = cluster.submit("slurm/resume_chain.sh", cwd=place)

    def element(number: int) -> str:
        return f"{job}_{number}"

    def is_running(number: int) -> bool:
        return cluster.states(job).get(element(number)) == "RUNNING"

    def wrote_another(number: int) -> bool:
        """Whether this element of the chain has come further than where it began."""
        text = output(place, name, element(number)) if is_running(number) else ""
        return "threads" in text and newest() > start

    def newest() -> int:
        """Return the round that the slowest rank would go on in."""
        sets = [json.loads(path.read_text()) for path in out.parent.glob("*.checkpoints/*/whole.json")]
        return max((min(each["rounds"]) for each in sets), default=0)

    start = newest()
    cluster.wait_for(lambda: wrote_another(1), "the first job wrote no checkpoint")
    cluster.signal_batch(element(1), "USR1")
    cluster.wait_for(lambda: is_running(2), "the second job did not start")
    assert cluster.states(job)[element(1)] == "COMPLETED"
    assert jobs.check(out).run["result"]["stopped_by"] == "signal"

    start = newest()
    cluster.wait_for(lambda: wrote_another(2), "the second job wrote no checkpoint")
    os.kill(cluster.ranks("run")[2], signal.SIGKILL)
    cluster.wait_for(lambda: is_running(3), "the third job did not start")

    start = newest()
    cluster.wait_for(lambda: wrote_another(3), "the third job wrote no checkpoint")
    # What follows has a hundred rounds to go: rounds may be others when a run is resumed.
    n_rounds = newest() + 100
    jobs.change(place / "experiments" / "resume_chain.toml", ("rounds = 100000", f"rounds = {n_rounds}"))
    cluster.fail_node(3)
    cluster.wait_for(lambda: not is_running(3), "the failed node was not noticed")
    cluster.start_node(3)

    def all_done() -> bool:
        for number, state in cluster.states(job).items():
            if state == "PENDING":  # Slurm would wait for two minutes with what it puts back into the queue
                cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now", cwd=place)
        return set(cluster.states(job).values()) == {"COMPLETED"}

    cluster.wait_for(all_done, "the chain did not end")
    record = jobs.check(out)
    assert record.history["round"][-1] == n_rounds
    for number in (2, 3):  # put back into the queue, and found the run further on or finished
        assert "restarted 1 times" in output(place, name, element(number))
