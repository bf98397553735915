"""Ranks that end by SIGKILL, on Open MPI with ULFM: the others go on. Elsewhere the job ends at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_deaths import run, stacked_step

from goco_mpi.config import parse_config
from goco_mpi.core.stacked.deaths import NEVER, Deaths
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem
from goco_mpi.record import read_params, read_run
from goco_mpi.replay import replay

pytestmark = pytest.mark.cluster

MORTAL = Path(__file__).with_name("mortal.py")
EXPERIMENT = """
rounds = 250
[data]
source = "breast_cancer"
partition = "by_label"
shards = 32
standardize = true
[objective]
kind = "logistic"
l2 = 1.0
[placement]
replication = 4
[method]
kind = "push_pull"
[stragglers]
work_s = 0.002
[record]
every = 25
optimum = true
"""
LIMIT_S = 280
"""Of a run of seconds, on a busy machine."""
SECONDS = 30.0
"""In which a job that cannot go on has ended."""
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
ASK = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str
    seconds: float
    path: Path

    @property
    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = read_run(self.path).run["result"]
        return result

    @property
    def dead(self) -> list[int]:
        return [death["rank"] for death in self.result.get("deaths", [])]


Goco = Callable[..., Ended]


def library(python: str) -> str:
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()[0] if done.stdout else done.stderr[-200:]


@pytest.fixture(scope="module")
def survivor_python(need: Callable[[str | None], None]) -> str:
    """An interpreter whose MPI goes on when ranks die."""
    pythons = [python for python in (sys.executable, os.environ.get("GOCO_OTHER_PYTHON")) if python]
    found = next((python for python in pythons if library(python).startswith("Open MPI v5")), None)
    need(None if found else "neither this interpreter nor GOCO_OTHER_PYTHON has Open MPI 5, which has ULFM")
    assert found is not None
    return found


def launch(
    command: list[str], ends: dict[int, list[Any]], path: Path, settings: tuple[str, ...], resume: bool = False
) -> Ended:
    experiment = path.with_suffix(".toml")
    experiment.write_text(EXPERIMENT)
    words = [word for setting in settings for word in ("--set", setting)]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(MORTAL), json.dumps(ends), "run", str(experiment), "--out", str(path), *words]
        + ["--resume"] * resume,
        env={**os.environ, **OPEN_MPI, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # SIGKILL would leave the ranks behind
        out, err = process.communicate()
        pytest.fail(f"the run did not end: {out}\n{err}")
    return Ended(process.returncode, out, err, time.perf_counter() - began, path)


@pytest.fixture
def goco(survivor_python: str, tmp_path: Path) -> Goco:
    """Run the experiment on ranks of which some end as told."""
    mpiexec = str(Path(survivor_python).with_name("mpiexec"))

    def start(n_ranks: int, ends: dict[int, list[Any]], *settings: str, resume: bool = False) -> Ended:
        command = [mpiexec, "--with-ft", "ulfm", "-n", str(n_ranks), survivor_python]
        return launch(command, ends, tmp_path / "run", settings, resume)

    return start


def assert_optimal(ended: Ended, gap: float = 1e-8) -> None:
    result = ended.result
    assert ended.code == 0, ended.err
    assert abs(result["loss"] - result["loss_optimum"]) <= gap


def test_three_of_sixteen_killed_one_after_the_other_change_nothing_in_the_result(goco: Goco, tmp_path: Path) -> None:
    ended = goco(16, {3: ["round", 30], 0: ["round", 60], 11: ["round", 90]}, "rounds=900")
    assert_optimal(ended)
    shutil.move(ended.path, tmp_path / "with_deaths")
    ended = replace(ended, path=tmp_path / "with_deaths")
    undisturbed = goco(16, {}, "rounds=900")
    assert undisturbed.dead == []
    assert abs(ended.result["loss"] - undisturbed.result["loss"]) <= 1e-8
    assert ended.dead == [0, 3, 11]
    assert ended.result["stopped_by"] == "rounds"
    rows = (ended.path / "ranks.csv").read_text().splitlines()
    died = {line.split(",")[0]: line.rsplit(",", 1)[1] for line in rows[1:]}
    assert [rank for rank, round_ in died.items() if round_] == ["0", "3", "11"]
    assert len(died) == 16
    assert ended.err.count("died; round") == 3


@pytest.mark.parametrize("kind", ["exact_diffusion", "table_newton"])
def test_other_exact_methods_reach_the_optimum_too(kind: str, goco: Goco) -> None:
    settings = ["topology.kind=complete"] if kind == "table_newton" else ["deadline.gossip_s=inf"]
    ended = goco(5, {2: ["round", 30]}, f"method.kind={kind}", "rounds=150", *settings)
    assert_optimal(ended)
    assert ended.dead == [2]


def test_two_killed_at_once_one_of_them_rank_0(goco: Goco) -> None:
    ended = goco(6, {0: ["round", 40], 4: ["round", 40]})
    assert_optimal(ended)
    assert ended.dead == [0, 4]


def test_the_last_copies_of_shards_stop_the_run_by_name(goco: Goco) -> None:
    ended = goco(4, {1: ["round", 60]}, "placement.replication=1", "checkpoint.every=20")
    layout = lay_out(parse_config(read_run(ended.path).run["config"]), 4)
    *others, last = layout.placement.shards_of(1)
    assert ended.code == 1
    assert f"goco: Rank 1 died, and with that the last copies of shards {', '.join(map(str, others))} and {last} (" in (
        ended.err
    )
    assert ended.result["stopped_by"] == "lost_shard"
    resumed = goco(4, {}, "placement.replication=1", "checkpoint.every=20", resume=True)
    assert_optimal(resumed)
    assert resumed.result["stopped_by"] == "rounds"


def test_deaths_at_every_stage_of_the_shutdown_are_survived(goco: Goco) -> None:
    ends = {0: ["gather"], 1: ["goodbye"], 2: ["regroup"]}
    ended = goco(6, ends)
    assert_optimal(ended, 1e-6)
    assert ended.dead == sorted(ends)


@pytest.mark.parametrize(
    ("ends", "settings", "said"),
    [
        ({0: ["write"]}, [], "The rank that was to write the record died before it could."),
        ({2: ["setup"]}, [], "Rank 2 died while all ranks were needed"),
        ({2: ["round", 30]}, ["method.kind=allreduce", "placement.kind=uncoded"], "Rank 2 died while all ranks were"),
        ({2: ["round", 30]}, ["method.kind=sgc"], "Rank 2 died while all ranks were needed"),
    ],
    ids=["write", "setup", "allreduce", "sgc"],
)
def test_where_nobody_can_go_on_the_job_ends_in_seconds_with_one_message(
    ends: dict[int, list[Any]], settings: list[str], said: str, goco: Goco
) -> None:
    ended = goco(4, ends, *settings)
    assert ended.code != 0
    assert ended.err.count(said) == 1, ended.err
    assert "Traceback" not in ended.err


def test_a_frozen_rank_is_not_taken_for_dead(goco: Goco) -> None:
    # Long enough for the freeze of 5 s to end within the run.
    ended = goco(4, {2: ["freeze", 50]}, "rounds=1200", "stragglers.work_s=0.006")
    assert_optimal(ended)
    assert ended.dead == []
    assert "died" not in ended.err
    assert replay(read_run(ended.path)).agrees


def test_a_run_with_a_death_ends_in_the_simulators_parameters(goco: Goco) -> None:
    n = 6
    settings = ["rounds=40", "method.late=wait", "step.kind=constant", "step.size=0.1", "method.weights=plain"]
    ended = goco(n, {4: ["offer", 15]}, *settings)
    assert ended.code == 0, ended.err
    config = parse_config(read_run(ended.path).run["config"])
    layout, problem = lay_out(config, n), load_problem(config)
    noticed = np.full((n, n), NEVER)
    for rank, round_ in ended.result["deaths"][0]["noticed"].items():
        noticed[int(rank), 4] = round_
    living = [rank for rank in range(n) if rank != 4]
    assert (noticed[living, 4] < 40).all()
    shares = [problem.share(layout, worker) for worker in range(n)]
    step = stacked_step(layout, problem.objective.n_params, Deaths({4: 15}, noticed))
    np.testing.assert_allclose(read_params(ended.path), run(step, shares, 0.1, 40)[living], rtol=1e-12, atol=1e-14)


def test_without_fault_tolerance_a_death_ends_the_job_in_seconds(mpiexec: list[str], tmp_path: Path) -> None:
    ended = launch([*mpiexec, "-n", "4", sys.executable], {2: ["round", 30]}, tmp_path / "run", ("rounds=1000000",))
    assert ended.code != 0
    assert ended.seconds < SECONDS
    assert not ended.path.exists()
