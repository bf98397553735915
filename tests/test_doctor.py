"""What is made of the facts about a job."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from goco_mpi.cli import main
from goco_mpi.doctor import Facts, Link, RankFacts, examine

TIMEOUT_S = 60
"""What a hanging job is ended by."""


def rank(**changes: Any) -> RankFacts:
    """Return a rank that has a node of eight cores to itself."""
    fit = RankFacts("node0", 1, 8, 8, 8, "goco_mpi 1, Python 3", "MPICH 5", 1e-7, 0.0)
    return replace(fit, **changes)


def job(*ranks: RankFacts, **changes: Any) -> Facts:
    """Return a job that is fit, but for the changes; by default four nodes of one rank."""
    ranks = ranks or tuple(rank(host=f"node{i}", wall_offset_s=1e-3 * i) for i in range(4))
    links = [Link((i, i + 1), 2e-6 * (1 + i), 1e10) for i in range(len(ranks) - 1)]
    fit = Facts(ranks, "srun", len(ranks), len(ranks), True, "/scratch", "", [], True, 3600.0, 120.0, links)
    return replace(fit, **changes)


def nodes(n: int, **changes: Any) -> list[RankFacts]:
    return [rank(host=f"node{i}", **changes) for i in range(n)]


@pytest.mark.parametrize(
    "facts", [job(), job(rank(), links=[], launched=None, expected=None, batch=False, left_s=None)]
)
def test_a_job_that_is_fit_needs_no_advice(facts: Facts) -> None:
    findings = examine(facts)
    assert [(finding.level, finding.advice) for finding in findings] == [("ok", "")] * len(findings)
    assert len({finding.what for finding in findings}) == len(findings) >= 8


SLOW_LINK = [Link((0, 1), 2e-6, 1e10), Link((1, 2), 2e-6, 1e10), Link((2, 3), 3e-6, 1e8)]
ILL: dict[str, tuple[Facts, str, str, list[str]]] = {
    "ranks alone": (job(rank(), launched=4), "world size", "problem", ["4 ranks", "srun --mpi=pmi2"]),
    "ranks missing": (job(expected=6), "world size", "problem", ["4 ranks", "--ranks asks for 6"]),
    "two ranks a node": (
        job(*[replace(r, ranks_on_node=2, threads=4) for r in [*nodes(2), *nodes(2)]]),
        "ranks on nodes",
        "advice",
        ["2 nodes, 2 a node", "one rank a node"],
    ),
    "threads beyond the node": (job(*nodes(2, threads=16)), "threads", "problem", ["OMP_NUM_THREADS"]),
    "threads beyond the binding": (job(*nodes(2, cores=1)), "threads", "problem", ["8 threads a rank on 1 of 8"]),
    "cores idle": (job(*nodes(2, threads=2)), "threads", "advice", ["--cpus-per-task"]),
    "ranks take turns": (
        job(*[rank(ranks_on_node=16, threads=1, cores=8) for _ in range(16)]),
        "threads",
        "advice",
        ["16 ranks of node0", "8 cores"],
    ),
    "another MPI": (
        job(rank(), rank(host="node1", mpi="MPICH 4")),
        "MPI",
        "problem",
        ["MPICH 5 (on node0)", "MPICH 4 (on node1)"],
    ),
    "another version": (job(rank(), rank(host="node1", software="goco_mpi 2")), "software", "problem", ["node1"]),
    "could outlive a rank": (job(outlives=None), "death of a rank", "advice", ["--with-ft ulfm"]),
    "read-only": (job(refusal="Read-only file system"), "run directory", "problem", ["Read-only", "--out"]),
    "not shared": (job(blind=["node3"]), "run directory", "problem", ["1 of 4 nodes", "node3", "shared file system"]),
    "coarse clock": (job(*nodes(2, tick_s=0.015)), "clock", "problem", ["15 ms", "deadline.gossip_s"]),
    "clocks apart": (job(rank(), rank(host="node1", wall_offset_s=-80.0)), "time of day", "advice", ["node1", "-80.0"]),
    "little time": (job(left_s=100.0), "time limit", "advice", ["100 s", "stop.margin_s"]),
    "unknown time": (job(left_s=None), "time limit", "advice", ["GOCO_JOB_END_TIME", "signal"]),
    "slow network": (
        job(links=[Link((0, 1), 1e-3, 1e8), Link((1, 2), 1e-3, 1e8)]),
        "between nodes",
        "advice",
        ["1 ms", "100 MB/s", "interconnect"],
    ),
    "one slow link": (
        job(links=SLOW_LINK),
        "slowest between nodes",
        "advice",
        ["ranks 2 (node2) and 3 (node3)", "100 MB/s", "repair"],
    ),
}


@pytest.mark.parametrize("name", ILL)
def test_what_is_wrong_is_said_with_the_way_out_and_nothing_else(name: str) -> None:
    facts, what, level, words = ILL[name]
    [finding] = [finding for finding in examine(facts) if finding.level != "ok"]
    assert (finding.what, finding.level) == (what, level)
    text = f"{finding.found} {finding.advice}"
    for word in words:
        assert word.lower() in text.lower()
    assert finding.advice.endswith(".")


def test_times_of_ranks_that_take_turns_are_no_ground_for_advice() -> None:
    crowded = job(*[rank(host=f"node{i}", ranks_on_node=16, threads=1) for i in range(4)], links=SLOW_LINK)
    assert not any("between nodes" in finding.what for finding in examine(crowded) if finding.level != "ok")


def check(mpiexec: list[str], directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ("PMI", "OMPI_COMM_WORLD", "MPI_LOCAL", "PMIX", "SLURM_", "PBS_", "GOCO_JOB")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    return subprocess.run(
        [*mpiexec, "-n", "3", sys.executable, "-m", "goco_mpi", "info", "--check", *arguments],
        cwd=directory,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_the_command_checks_a_real_job_and_leaves_nothing_behind(mpiexec: list[str], tmp_path: Path) -> None:
    ended = check(mpiexec, tmp_path, "--ranks", "3")
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in ("world size", "3 ranks", "MPI", "run directory", "within a node", "MB/s", "clock"):
        assert word in ended.stdout
    assert ended.stdout.count("world size") == 1  # one rank speaks
    assert list(tmp_path.iterdir()) == []


def test_what_is_for_the_check_alone_is_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--ranks", "2"], ["--out", "runs/mine"]):
        assert main(["info", *arguments]) == 2
        assert "--check" in capsys.readouterr().err


def test_the_command_fails_where_the_job_is_not_fit(mpiexec: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = check(mpiexec, tmp_path, "--ranks", "4", "--out", "file/out")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "problem, world size: --ranks asks for 4" in ended.stdout
    assert "problem, run directory" in ended.stdout
