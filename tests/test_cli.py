"""The command ``goco`` as a user runs it: real processes, real launcher."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goco_mpi import record_schema
from goco_mpi.cli import main

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TIMEOUT_S = 60
"""Bound on a hanging process; the runs take about a second."""

GOCO = [sys.executable, "-m", "goco_mpi"]
EXPERIMENT = """\
seed = 1
rounds = 20
[data]
source = "synthetic"
n_samples = 200
n_features = 6
shards = 8
[objective]
kind = "least_squares"
[topology]
kind = "ring"
[placement]
replication = 1
[record]
every = 5
optimum = true
"""
FILES = ["history.csv", "params.npy", "ranks.csv", "run.json"]
HISTORY = [
    "round",
    "wall_s",
    "loss",
    "suboptimality",
    "consensus_distance",
    "test_accuracy",
    "bytes_sent",
    "shard_gradients",
]
RESULT = {
    "loss",
    "loss_start",
    "loss_optimum",
    "suboptimality",
    "consensus_distance",
    "test_accuracy",
    "rounds",
    "wall_s",
    "step_size",
}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(EXPERIMENT)
    return path


def environment(**more: str) -> dict[str, str]:
    """Return this environment without what a launcher around these tests has set."""
    launcher = ("PMI", "OMPI_COMM_WORLD", "MPI_LOCAL", "PMIX", "SLURM_STEP", "SLURM_PROCID")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def run(*command: str | Path, cwd: Path, timeout: float = TIMEOUT_S, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def check_record(out: Path, n_ranks: int, rounds: int = 20) -> dict[str, Any]:
    events = [] if json.loads((out / "run.json").read_text())["environment"].get("simulated") else ["events.npz"]
    assert sorted(path.name for path in out.iterdir()) == [*events, *FILES]
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")) == []
    document: dict[str, Any] = json.loads((out / "run.json").read_text())
    assert set(document) == {"schema_version", "config", "environment", "result"}
    assert document["schema_version"] == record_schema.VERSION
    assert document["config"]["rounds"] == rounds
    assert document["environment"]["n_ranks"] == n_ranks
    assert {"goco_mpi", "python", "platform", "libraries", "command"} <= set(document["environment"])
    result = document["result"]
    assert set(result) >= RESULT
    assert result["loss_optimum"] <= result["loss"] < result["loss_start"]
    assert 0.0 <= result["suboptimality"] < 1.0
    assert len(result["rounds"]) == n_ranks
    with (out / "history.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == HISTORY
    assert [int(row[0]) for row in rows[1:]] == list(range(0, rounds + 1, 5))
    assert float(rows[-1][HISTORY.index("loss")]) == result["loss"]
    with (out / "ranks.csv").open(newline="") as file:
        assert [int(row["rank"]) for row in csv.DictReader(file)] == list(range(n_ranks))
    assert np.load(out / "params.npy").shape == (n_ranks, 7)  # 6 features and the intercept
    return document


def one_error_line(ended: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line that an error is, having made sure that it is one."""
    assert ended.returncode == code, ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("goco: ")
    assert "Traceback" not in ended.stdout + ended.stderr
    return lines[0]


@pytest.mark.parametrize("n_ranks", [1, 4])
def test_run_writes_a_record(experiment: Path, mpiexec: list[str], n_ranks: int) -> None:
    launcher = [*mpiexec, "-n", str(n_ranks)] if n_ranks > 1 else []
    ended = run(*launcher, *GOCO, "run", experiment, "--set", "deadline.gossip_s=inf", cwd=experiment.parent)
    assert ended.returncode == 0, ended.stderr
    out = experiment.parent / "runs" / "small"  # the default, named after the experiment
    document = check_record(out, n_ranks)
    assert document["config"]["deadline"]["gossip_s"] == "inf"  # what --set asked for; JSON has no infinity
    assert document["result"]["wall_s"] > 0.0
    assert {"mpi_library", "launcher", "hosts", "threads", "cores"} <= set(document["environment"])
    # One rank speaks, and it says what came out.
    assert ended.stdout.count("suboptimality") == 1
    assert ended.stdout.count("record in runs/small") == 1
    assert ended.stderr == ""


def test_simulate_writes_a_record_of_the_same_form(experiment: Path) -> None:
    ended = run(*GOCO, "simulate", experiment, "--workers", "5", "--out", "sim", cwd=experiment.parent)
    assert ended.returncode == 0, ended.stderr
    document = check_record(experiment.parent / "sim", 5)
    assert document["environment"]["simulated"] is True
    assert document["result"]["wall_s"] is None


def test_run_and_simulate_are_reproducible(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        assert main(["simulate", str(experiment), "--out", str(experiment.parent / name), "--quiet"]) == 0
    one, two = experiment.parent / "one", experiment.parent / "two"
    assert (one / "params.npy").read_bytes() == (two / "params.npy").read_bytes()
    assert (one / "history.csv").read_bytes() == (two / "history.csv").read_bytes()
    assert capsys.readouterr() == ("", "")


def test_run_equals_simulate_on_the_quickstart(mpiexec: list[str], tmp_path: Path) -> None:
    settings = []
    for setting in (
        "stragglers.kind=bernoulli",
        "stragglers.p=0.3",
        "stragglers.work_s=0",
        "deadline.compute_s=inf",
        "deadline.gossip_s=inf",
        "rounds=60",
    ):
        settings += ["--set", setting]
    real, simulated = tmp_path / "real", tmp_path / "simulated"
    example = EXAMPLES / "quickstart.toml"
    for command in (
        [*mpiexec, "-n", "8", *GOCO, "run", example, *settings, "--out", real, "--quiet", "--ranks", "8"],
        [*GOCO, "simulate", example, *settings, "--out", simulated, "--quiet", "--workers", "8"],
    ):
        ended = run(*command, cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    params = np.load(simulated / "params.npy")
    assert params.shape == (8, 65 * 10)
    assert np.abs(params).max() > 1e-2
    np.testing.assert_allclose(np.load(real / "params.npy"), params, rtol=1e-12, atol=1e-14)
    results = [json.loads((out / "run.json").read_text())["result"] for out in (real, simulated)]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-10)
    assert results[0]["loss"] < 0.5 * results[0]["loss_start"]


def test_info_says_what_there_is(mpiexec: list[str], tmp_path: Path) -> None:
    ended = run(*mpiexec, "-n", "2", *GOCO, "info", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    table = dict(line.split(None, 1) for line in ended.stdout.splitlines())
    assert len(table) == len(ended.stdout.splitlines())  # one rank speaks
    assert table["n_ranks"].strip() == "2"
    assert "mpi4py" in table["libraries"]
    for name in ("goco_mpi", "python", "mpi_library", "launcher", "hosts", "cores", "threads"):
        assert table[name].strip()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["run", "a.toml", "--ranks", "many"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: goco" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("goco 0.")
    for command in ("run", "simulate", "report", "info"):
        assert command in text


# What is written into the directory, the overrides, and words that the message must have.
BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["method.kindd=dgd"], ["method.kindd", "kind"]),
    "unknown table": (["methods.kind=dgd"], ["methods", "method"]),
    "wrong type": (['rounds="many"'], ["rounds", "whole number", "'many'"]),
    "replication above ranks": (["placement.replication=4"], ["placement.replication", "4"]),
    "no such data file": (["data.source=nowhere.npz"], ["data.source", "nowhere.npz"]),
    "NaN in the data": (["data.source=nan.npz"], ["nan.npz", "finite", "row 3"]),
    "not svmlight": (["data.source=prose.svm"], ["prose.svm", "svmlight"]),
    "disconnected graph": (["topology.kind=edges", "topology.edges=[[0, 1]]"], ["connected"]),
    "p = 1": (["stragglers.kind=bernoulli", "stragglers.p=1"], ["stragglers.p", "below 1", "Got 1"]),
    "no equals sign": (["rounds"], ["--set", "'rounds'"]),
    "straggler out of range": (["stragglers.kind=slow", "stragglers.ranks=[3]"], ["stragglers.ranks", "3"]),
    "more shards than samples": (["data.shards=1000"], ["data.shards", "1000"]),
    "step without size": (["step.kind=constant"], ["step.size"]),
}


@pytest.fixture
def bad_files(experiment: Path) -> Path:
    directory = experiment.parent
    features = np.ones((20, 2))
    features[3, 1] = np.nan
    np.savez(directory / "nan.npz", features=features, targets=np.ones(20))
    (directory / "prose.svm").write_text("It was a bright cold day in April,\nand the clocks were striking thirteen.\n")
    return directory


def assert_refused(ended: subprocess.CompletedProcess[str], words: list[str], directory: Path) -> None:
    line = one_error_line(ended, 2)
    for word in words:
        assert word in line
    assert ended.stdout == ""
    assert not (directory / "runs").exists()


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_said_once(experiment: Path, bad_files: Path, mpiexec: list[str], name: str) -> None:
    overrides, words = BAD_INPUT[name]
    settings = [word for override in overrides for word in ("--set", override)]
    ended = run(*mpiexec, "-n", "3", *GOCO, "run", experiment, *settings, cwd=bad_files)
    assert_refused(ended, words, bad_files)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing.toml", ["missing.toml", "No such file"]),
        ("broken.toml", ["broken.toml", "not valid TOML"]),
        ("binary.toml", ["binary.toml", "not valid TOML"]),
        (".", ["directory"]),
    ],
)
def test_a_bad_experiment_file_is_one_line_said_once(
    tmp_path: Path, mpiexec: list[str], file: str, words: list[str]
) -> None:
    (tmp_path / "broken.toml").write_text("rounds = \n[data")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00rounds")
    assert_refused(run(*mpiexec, "-n", "3", *GOCO, "run", file, cwd=tmp_path), words, tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "rounds=0",
        "rounds=true",
        "rounds.x=1",
        "seed=-1",
        "topology=3",
        'data.shards="8"',
        "data.source=" + "long" * 100,
        "data.source=small.toml",
        "data.test_fraction=nan",
        "stragglers.ranks=[1,'x']",
        "deadline.gossip_s=soon",
        "deadline.gossip_s=-1",
        "step.scale=0",
        "objective.kind=softmax",
        "topology.kind=hypercube",
        "=3",
        "",
    ],
)
def test_more_bad_settings(experiment: Path, capsys: pytest.CaptureFixture[str], override: str) -> None:
    out = experiment.parent / "out"
    command = ["simulate", str(experiment), "--workers", "3", "--out", str(out), "--set", override]
    assert main(command) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith("goco: ")
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_diverging_run_fails_and_names_the_step(experiment: Path, mpiexec: list[str]) -> None:
    out = experiment.parent / "out"
    first = run(*mpiexec, "-n", "3", *GOCO, "run", experiment, "--out", out, "--quiet", cwd=experiment.parent)
    assert first.returncode == 0
    earlier = content(out)
    settings = ["--set", "step.kind=constant", "--set", "step.size=1e6", "--set", "rounds=10000"]
    ended = run(
        *mpiexec, "-n", "3", *GOCO, "run", experiment, *settings, "--out", out, "--force", cwd=experiment.parent
    )
    line = one_error_line(ended, 1)
    assert "step.size" in line
    assert "diverged" in line
    assert content(out) == earlier
    assert {path.name for path in experiment.parent.iterdir()} == {"small.toml", "out"}


def test_a_run_worse_than_its_start_fails_and_keeps_its_record(experiment: Path) -> None:
    # Too large a step, and too few rounds to see it grow without bound.
    settings = ["--set", "step.kind=constant", "--set", "step.size=10", "--set", "rounds=5"]
    ended = run(*GOCO, "run", experiment, *settings, "--out", "out", "--quiet", cwd=experiment.parent)
    line = one_error_line(ended, 1)
    assert "did not converge" in line
    assert "step.size" in line
    result = json.loads((experiment.parent / "out" / "run.json").read_text())["result"]
    assert result["loss"] > result["loss_start"]


def test_an_earlier_run_is_safe_without_force_and_replaced_with_it(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = experiment.parent / "out"
    command = ["simulate", str(experiment), "--workers", "2", "--out", str(out), "--quiet"]
    assert main(command) == 0
    earlier = content(out)
    assert main([*command, "--set", "seed=2"]) == 2
    assert "--force" in capsys.readouterr().err
    assert content(out) == earlier
    assert main([*command, "--set", "seed=2", "--force"]) == 0
    assert content(out)["params.npy"] != earlier["params.npy"]
    assert sorted(content(out)) == FILES
    assert {path.name for path in experiment.parent.iterdir()} == {"small.toml", "out"}


def test_an_earlier_run_is_refused_once_under_mpiexec_before_training(experiment: Path, mpiexec: list[str]) -> None:
    out = experiment.parent / "out"
    out.mkdir()
    (out / "run.json").write_text("an earlier run")
    # So many rounds that only a refusal before the first one ends in time.
    settings = ["--set", f"rounds={10**9}", "--out", out]
    ended = run(*mpiexec, "-n", "3", *GOCO, "run", experiment, *settings, cwd=experiment.parent)
    assert "--force" in one_error_line(ended, 2)
    assert content(out) == {"run.json": b"an earlier run"}


def test_force_spares_what_is_no_run(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = experiment.parent / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("years of work")
    command = ["simulate", str(experiment), "--force", "--quiet", "--out"]
    assert main([*command, str(precious)]) == 2
    assert main([*command, str(precious / "chapter1.tex")]) == 2
    assert content(precious) == {"chapter1.tex": b"years of work"}
    assert capsys.readouterr().err.count("goco: ") == 2


def test_an_empty_directory_may_be_filled(experiment: Path) -> None:
    out = experiment.parent / "made_before"
    out.mkdir()
    assert main(["simulate", str(experiment), "--workers", "2", "--out", str(out), "--quiet"]) == 0
    assert sorted(content(out)) == FILES


@pytest.mark.parametrize("place", ["small.toml/out", "x" * 300], ids=["below a file", "name too long"])
def test_an_unwritable_place_is_refused_before_training(experiment: Path, place: str) -> None:
    # After hours of training it would be too late, hence so many rounds that the end never comes.
    command = [*GOCO, "run", experiment, "--set", f"rounds={10**9}", "--out", place]
    ended = run(*command, cwd=experiment.parent, timeout=20)
    assert "--out" in one_error_line(ended, 2)


def test_another_number_of_ranks_is_refused_once(experiment: Path, mpiexec: list[str]) -> None:
    ended = run(*mpiexec, "-n", "3", *GOCO, "run", experiment, "--ranks", "4", cwd=experiment.parent)
    line = one_error_line(ended, 2)
    assert "--ranks" in line
    assert "4" in line
    assert "3" in line


def foreign_launcher(rank: int) -> dict[str, str]:
    """Return what the launcher of another MPI than the one in use sets for one of its four ranks."""
    from mpi4py import MPI

    if MPI.get_vendor()[0] == "Open MPI":
        return {"PMI_SIZE": "4", "PMI_RANK": str(rank), "MPI_LOCALNRANKS": "4"}
    return {
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
    }


def test_a_launcher_of_another_mpi_is_refused_with_cause_and_cure(experiment: Path) -> None:
    # Undetected, it would be four jobs of one rank each, all of them writing the same directory.
    ended = run(*GOCO, "run", experiment, cwd=experiment.parent, **foreign_launcher(0))
    line = one_error_line(ended, 2)
    assert "launcher" in line  # the cause
    assert "mpiexec" in line  # the cure
    assert not (experiment.parent / "runs").exists()
    for rank in (1, 3):
        other = run(*GOCO, "run", experiment, cwd=experiment.parent, **foreign_launcher(rank))
        assert (other.returncode, other.stdout, other.stderr) == (2, "", "")


def test_mpich_under_pmix_is_refused_before_it_aborts(experiment: Path) -> None:
    from mpi4py import MPI

    if MPI.get_vendor()[0] == "Open MPI":
        pytest.skip("Open MPI speaks PMIx")
    srun = {"PMIX_NAMESPACE": "slurm.pmix.1.0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    line = one_error_line(run(*GOCO, "run", experiment, cwd=experiment.parent, **srun), 2)
    assert "PMIx" in line
    assert "srun --mpi=pmi2" in line


def gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody has collected yet has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return Path("/proc").exists()  # it went in between; without /proc it is there


def until(condition: Any, seconds: float) -> bool:
    """Look again and again until ``condition`` holds, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# The command itself, but every rank leaves its process id, and rank 0 reports its rounds often.
TELLING = """\
import os, pathlib, signal, sys
from goco_mpi import cli, progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests are a shell's background job
progress.LOG_EVERY_S = 0.05
pathlib.Path("pids", str(os.getpid())).touch()
sys.exit(cli.main())
"""


def test_killing_one_rank_ends_all(experiment: Path, mpiexec: list[str]) -> None:
    directory = experiment.parent
    (directory / "pids").mkdir()
    settings = ["--set", f"rounds={10**9}", "--set", "stragglers.work_s=1e-3"]
    said = directory / "stderr"
    with said.open("w") as file:
        job = subprocess.Popen(
            [*mpiexec, "-n", "3", sys.executable, "-c", TELLING, "run", experiment, *settings],
            cwd=directory,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    pids: list[int] = []
    try:
        assert until(lambda: "round " in said.read_text() or job.poll() is not None, TIMEOUT_S)
        assert job.poll() is None, said.read_text()
        pids = [int(path.name) for path in (directory / "pids").iterdir()]
        assert len(pids) == 3
        assert not any(gone(pid) for pid in pids)
        os.kill(pids[1], signal.SIGKILL)
        assert job.wait(timeout=10) != 0
        assert until(lambda: all(gone(pid) for pid in pids), 10)
    finally:
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        if job.poll() is None:
            job.terminate()
            job.wait(timeout=TIMEOUT_S)
    assert not list(directory.glob("runs/*/run.json"))  # a record is whole or not there


# The command itself, but rank 1 stops for good where its rounds would begin.
FREEZING = """\
import signal, sys
from goco_mpi import cli
from goco_mpi.engine import launcher, runner
if launcher.inspect().rank == 1:
    runner.RoundLoop.run = lambda self: signal.pause()
sys.exit(cli.main())
"""


def test_a_frozen_rank_is_named_and_ends_the_job(experiment: Path, mpiexec: list[str]) -> None:
    settings = ["--set", "deadline.gossip_s=0.01", "--set", "deadline.shutdown_s=0.5"]
    ended = run(
        *mpiexec, "-n", "2", sys.executable, "-c", FREEZING, "run", experiment, *settings, cwd=experiment.parent
    )
    assert ended.returncode != 0
    assert "ranks [1] did not end" in ended.stderr
    assert "deadline.shutdown_s = 0.5" in ended.stderr
    assert not (experiment.parent / "runs").exists()


def test_an_interrupt_ends_all_quietly(experiment: Path) -> None:
    directory = experiment.parent
    (directory / "pids").mkdir()
    said = directory / "stderr"
    with said.open("w") as file:
        job = subprocess.Popen(
            [sys.executable, "-c", TELLING, "run", experiment, "--set", f"rounds={10**9}"],
            cwd=directory,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    try:
        assert until(lambda: "round " in said.read_text() or job.poll() is not None, TIMEOUT_S)
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=10) == 130
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    assert "Traceback" not in said.read_text()


@pytest.fixture
def two_runs(experiment: Path) -> list[Path]:
    outs = [experiment.parent / name for name in ("fast_one", "slow_one")]
    for out, rounds in zip(outs, (40, 20), strict=True):
        command = ["run", str(experiment), "--set", f"rounds={rounds}", "--out", str(out), "--quiet"]
        ended = run(*GOCO, *command, cwd=experiment.parent)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    return outs


def test_report_compares_runs_and_draws_them(two_runs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "pictures" / "loss.png"
    ended = run(
        *GOCO,
        "report",
        *two_runs,
        "--reference",
        two_runs[1],
        "--gap",
        "0.5",
        "--png",
        picture,
        cwd=tmp_path,
        COLUMNS="150",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "fast one" in ended.stdout
    assert "slow one" in ended.stdout
    assert "% of full speed" in ended.stdout.replace("\n", " ")
    assert str(picture) in ended.stdout.replace("\n", "")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size > 5_000


def test_report_refuses_what_it_cannot_compare(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = experiment.parent
    simulated, damaged, foreign = directory / "simulated", directory / "damaged", directory / "foreign"
    assert main(["simulate", str(experiment), "--workers", "2", "--out", str(simulated), "--quiet"]) == 0
    for copy, text in ((damaged, "{"), (foreign, '{"schema_version": 99}')):
        copy.mkdir()
        for name, data in content(simulated).items():
            (copy / name).write_bytes(data)
        (copy / "run.json").write_text(text)
    for path, word in (
        (simulated, "--targets"),
        (directory / "nowhere", "not a run directory"),
        (experiment, "not a run directory"),
        (damaged, "damaged"),
        (foreign, "schema version 99"),
    ):
        assert main(["report", str(path)]) == 2
        printed, said = capsys.readouterr()
        assert printed == ""
        assert said.startswith("goco: ")
        assert said.count("\n") == 1
        assert word in said


def test_a_rank_imports_neither_scipy_nor_the_data_libraries_before_it_needs_them():
    # A thousand ranks import from one file system, and scipy alone takes as much memory as a small model's shards.
    code = "import sys, goco_mpi.engine.train, goco_mpi.record; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not {"scipy", "sklearn", "networkx", "matplotlib", "h5py", "pyarrow"} & set(done.stdout.split())
    assert "numpy" in done.stdout.split()
