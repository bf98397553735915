"""Sweeps: from the file to members, and from members to one table, whatever happens on the way."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from goco_mpi.cli import main
from goco_mpi.config import parse_config
from goco_mpi.errors import InputError, RunError
from goco_mpi.record import HISTORY, read_run
from goco_mpi.simulation.rounds import simulate_experiment
from goco_mpi.sweeps.file import Sweep, read_sweep
from goco_mpi.sweeps.running import run_sweep

TIMEOUT_S = 120
"""Bound on a hanging process; these take a few seconds."""

BASE = """\
rounds = 20
data = {source = "synthetic", n_samples = 100, n_features = 4, shards = 8}
objective = {kind = "least_squares", l2 = 0.1}
record = {every = 10, optimum = true}
"""
VARIANTS = """\
[[variant]]
name = "coded"
placement.replication = 2
[[variant]]
name = "uncoded"
"placement.kind" = "uncoded"
[grid]
seed = [3, 4]
"""
SMALL = f"workers = 4\n[base]\n{BASE}{VARIANTS}"


def sweep_of(tmp_path: Path, content: str = SMALL) -> Sweep:
    path = tmp_path / "small.toml"
    path.write_text(content)
    return read_sweep(path)


def run(sweep: Sweep, out: Path, jobs: int = 1) -> tuple[int, list[str]]:
    """Run a sweep; return how many failed, and what it said."""
    lines: list[str] = []
    return run_sweep(sweep, out, jobs, [], lines.append), lines


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def members(out: Path, status: str) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["variant"], row["seed"]) for row in table(out) if row["status"] == status))


ALL = [("coded", "3"), ("coded", "4"), ("uncoded", "3"), ("uncoded", "4")]


def test_members_are_every_combination_of_every_variant(tmp_path: Path) -> None:
    content = SMALL + "workers = [4, 6]\ndata.heterogeneity = [0.0]\n"
    sweep = sweep_of(tmp_path, content)
    assert sweep.keys == ("seed", "workers", "data.heterogeneity")
    assert [(m.variant, m.settings["seed"], m.workers) for m in sweep.members] == [
        (name, seed, workers) for name in ("coded", "uncoded") for seed in (3, 4) for workers in (4, 6)
    ]
    first = sweep.members[0].config
    assert first is not None
    assert (first.seed, first.rounds, first.placement.replication) == (3, 20, 2)
    assert sweep.members[-1].config is not None
    assert sweep.members[-1].config.placement.kind == "uncoded"
    assert sweep.members[-1].label == "uncoded, seed=4, workers=6, data.heterogeneity=0.0"


def test_without_variants_and_grid_the_base_is_the_only_member(tmp_path: Path) -> None:
    (only,) = sweep_of(tmp_path, "[base]\n" + BASE).members
    assert (only.variant, only.settings, only.workers) == ("", {}, 8)


def test_a_base_file_is_found_from_the_sweep_and_its_data_from_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "deep" / "base.toml").write_text('data.source = "rows.npz"\n')
    (tmp_path / "deep" / "rows.npz").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = sweep_of(tmp_path, 'base = "deep/base.toml"\n').members[0].config
    assert config is not None
    assert config.data.source == str(tmp_path / "deep" / "rows.npz")


def test_the_checksum_is_of_what_decides_the_run_and_of_nothing_else(tmp_path: Path) -> None:
    def identities(content: str) -> list[str]:
        return [member.identity for member in sweep_of(tmp_path, content).members]

    ours = identities(SMALL)
    assert len(set(ours)) == 4
    assert identities(SMALL.replace('"coded"', '"renamed"').replace("[3, 4]", "[4, 3]")) == [
        ours[i] for i in (1, 0, 3, 2)
    ]
    # A default that is written out changes nothing; whatever changes the run does.
    assert identities(SMALL.replace("rounds = 20", "rounds = 20\nstep.scale = 1.0")) == ours
    for old, new in (
        ("workers = 4", "workers = 5"),
        ("rounds = 20", "rounds = 21"),
        ("workers", 'mode = "mpi"\nworkers'),
    ):
        assert not set(identities(SMALL.replace(old, new, 1))) & set(ours)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[gird]\nseed = [1]", ["gird", "grid"]),
        ("[grid]\nmethod.kindd = ['goco']", ["method.kindd", "method.kind"]),
        ("[[variant]]\nname = 'a'\nstep.scal = 1.0", ["step.scal"]),
        ("[base]\nround = 4", ["round", "rounds"]),
        ("[grid]\nseed = 3", ["grid.seed", "list", "3"]),
        ("[grid]\nseed = []", ["grid.seed", "at least one"]),
        ("grid = 3", ["grid", "table"]),
        ("[grid]\nmethod = ['goco']", ["method", "table"]),
        ("[[variant]]\nseed = 1", ["variant", "name"]),
        ("[[variant]]\nname = 'a'\n[[variant]]\nname = 'a'", ["'a'", "twice"]),
        ("[variant]\nname = 'a'", ["[[variant]]"]),
        ("[[variant]]\nname = 'a'\nseed = 1\n[grid]\nseed = [1, 2]", ["seed", "variant or by grid"]),
        ("mode = 'fly'", ["mode", "simulate", "fly"]),
        ("mode = 3", ["mode", "3"]),
        ("workers = 'many'", ["workers", "whole number"]),
        ("workers = 0", ["workers", "between 1"]),
        ("base = 'nowhere.toml'", ["base experiment", "nowhere.toml", "No such file"]),
        ("base = 3", ["base", "3"]),
        ("base = [", ["not valid TOML"]),
    ],
)
def test_a_wrong_sweep_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: list[str]
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(content)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_row_of_every_run_and_recorded_round(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(sweep_of(tmp_path), out)[0] == 0
    rows = table(out)
    assert list(rows[0]) == ["member", "variant", "workers", "seed", "run", "status", "reason", *HISTORY]
    assert [(row["variant"], row["seed"], row["round"]) for row in rows] == [
        (*member, round_) for member in ALL for round_ in ("0", "10", "20")
    ]
    for row in rows:
        assert (row["status"], row["reason"], row["wall_s"], row["workers"]) == ("done", "", "", "4")
    # Members are ordinary runs, and the runs are those of the experiments.
    raw: dict[str, Any] = {
        "seed": 4,
        "rounds": 20,
        "data": {"source": "synthetic", "n_samples": 100, "n_features": 4, "shards": 8},
        "objective": {"kind": "least_squares", "l2": 0.1},
        "placement": {"kind": "uncoded"},
        "record": {"every": 10, "optimum": True},
    }
    expected = simulate_experiment(parse_config(raw), 4)
    last = rows[-1]
    assert float(last["loss"]) == pytest.approx(expected.history[-1]["loss"], rel=1e-12)
    for name in ("bytes_sent", "shard_gradients"):
        assert float(last[name]) == expected.history[-1][name] > 0.0
    record = read_run(out / "runs" / last["run"])
    assert record.run["result"]["loss"] == float(last["loss"])
    assert record.run["environment"]["simulated"] is True


def test_the_grids_keys_are_columns(tmp_path: Path) -> None:
    content = f"workers = 4\n[base]\n{BASE}[grid]\nstep.scale = [0.5, 1.0]\nmethod.kind = ['goco']\n"
    assert run(sweep_of(tmp_path, content), tmp_path / "out")[0] == 0
    rows = table(tmp_path / "out")
    assert list(rows[0])[:6] == ["member", "variant", "step.scale", "method.kind", "workers", "seed"]
    assert {(row["step.scale"], row["method.kind"], row["seed"]) for row in rows} == {
        ("0.5", "goco", "0"),
        ("1.0", "goco", "0"),
    }


def test_only_what_is_missing_damaged_or_new_is_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = sweep_of(tmp_path)
    run(sweep, out)
    first = (out / "results.csv").read_bytes()
    failed, said = run(sweep, out)
    assert (failed, len(said)) == (0, 1)
    assert "4 of 4 members need not be run" in said[0]
    assert (out / "results.csv").read_bytes() == first

    shutil.rmtree(out / "runs" / sweep.members[1].identity)
    (out / "runs" / sweep.members[2].identity / "history.csv").write_text("round,loss\n0\n")
    said = run(sweep, out)[1]
    assert len(said) == 3
    assert {line.split("] ")[1].split(":")[0] for line in said[1:]} == {"coded, seed=4", "uncoded, seed=3"}
    assert (out / "results.csv").read_bytes() == first

    more = sweep_of(tmp_path, SMALL.replace("[3, 4]", "[4, 5]"))
    said = run(more, out)[1]
    assert "2 of 4" in said[0]
    assert sorted(line.split("] ")[1].split(":")[0] for line in said[1:]) == ["coded, seed=5", "uncoded, seed=5"]
    assert members(out, "done") == [("coded", "4"), ("coded", "5"), ("uncoded", "4"), ("uncoded", "5")]


def test_a_member_that_was_cut_short_is_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = sweep_of(tmp_path)
    run(sweep, out)
    first = (out / "results.csv").read_bytes()
    record = out / "runs" / sweep.members[1].identity / "run.json"
    record.write_text(record.read_text().replace('"stopped_by": "rounds"', '"stopped_by": "signal"'))
    said = run(sweep, out)[1]
    assert "3 of 4 members need not be run" in said[0]
    assert len(said) == 2
    assert '"stopped_by": "rounds"' in record.read_text()
    assert (out / "results.csv").read_bytes() == first


def test_members_with_the_same_experiment_are_run_once(tmp_path: Path) -> None:
    # One copy of every shard is one copy, whatever replication is asked for.
    content = f"workers = 4\n[base]\n{BASE}placement.kind = 'uncoded'\n[grid]\nplacement.replication = [1, 2]\n"
    out = tmp_path / "out"
    assert run(sweep_of(tmp_path, content), out)[0] == 0
    assert len(list((out / "runs").iterdir())) == 1
    assert [row["placement.replication"] for row in table(out)] == ["1"] * 3 + ["2"] * 3


FAILING = f"""{SMALL}
[[variant]]
name = "refused by the workers"
placement.replication = 5
[[variant]]
name = "refused by itself"
step.kind = "constant"
[[variant]]
name = "diverges"
rounds = 3000
step.scale = 30.0
[[variant]]
name = "worse"
step.scale = 10.0
rounds = 5
"""


def test_a_failed_member_is_a_row_with_its_reason_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "failing.toml", tmp_path / "out"
    path.write_text(FAILING.replace("[3, 4]", "[3]"))
    for _ in range(2):  # the second time only those without a record are tried again
        assert main(["sweep", str(path), "--out", str(out), "--jobs", "1", "--quiet"]) == 1
        printed, said = capsys.readouterr()
        assert printed == ""
        assert said.startswith("goco: 4 of 6 members failed")
        reasons = {row["variant"]: row["reason"] for row in table(out) if row["status"] == "failed"}
        assert "placement.replication must be between 1 and 4" in reasons["refused by the workers"]
        assert "step.size must be given" in reasons["refused by itself"]
        assert "diverged in round" in reasons["diverges"]
        assert "did not converge" in reasons["worse"]
        assert members(out, "done") == [("coded", "3"), ("uncoded", "3")]
        empty = next(row for row in table(out) if row["variant"] == "diverges")
        assert {empty[name] for name in HISTORY} == {""}


def test_results_do_not_depend_on_the_number_of_jobs(tmp_path: Path) -> None:
    for jobs in (1, 3):
        assert run(sweep_of(tmp_path), tmp_path / str(jobs), jobs)[0] == 0
    assert (tmp_path / "1" / "results.csv").read_bytes() == (tmp_path / "3" / "results.csv").read_bytes()


def test_what_is_no_sweep_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").touch()
    for name in ("thesis", "file"):
        with pytest.raises(InputError, match="is no sweep"):
            run(sweep_of(tmp_path), tmp_path / name)
    with pytest.raises(InputError, match="cannot be written"):
        run(sweep_of(tmp_path), tmp_path / "file" / "out")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


# One member is there at once; the others last far longer than any test.
LONG = """\
workers = 4
[base]
data = {source = "synthetic", n_samples = 100, n_features = 4, shards = 8}
objective.kind = "least_squares"
[grid]
rounds = [10, 100_000_000, 100_000_001]
"""


# Interrupts are ignored where the tests are a shell's background job.
INTERRUPTIBLE = """\
import signal, sys
from goco_mpi.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def workers_of(pid: int) -> list[int]:
    """Return the processes that simulate for a sweep."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_ends_at_once_and_goes_on_later(tmp_path: Path, how: signal.Signals) -> None:
    path, out = tmp_path / "long.toml", tmp_path / "out"
    path.write_text(LONG)
    command = [sys.executable, "-c", INTERRUPTIBLE, "sweep", str(path), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "rounds=10:" in process.stdout.readline()
        started = workers_of(process.pid)
        process.send_signal(how)
        said = process.communicate(timeout=TIMEOUT_S)[1]  # ends when the last process of the sweep has
        assert process.returncode == (130 if how is signal.SIGINT else -how)
    assert said == "" or how is signal.SIGKILL  # then Python's own resource tracker tidies up and says so
    assert len(started) == 2
    end = time.monotonic() + TIMEOUT_S
    while any(alive(pid) for pid in started) and time.monotonic() < end:
        os.sched_yield()
    assert not any(alive(pid) for pid in started)
    assert len(list((out / "runs").iterdir())) == 1
    if how is signal.SIGINT:
        assert [row["status"] for row in table(out)] == ["done"] * 2 + ["missing"] * 2
    failed, lines = run(sweep_of(tmp_path, LONG.replace(", 100_000_000, 100_000_001", "")), out)
    assert (failed, lines) == (0, ["1 of 1 members need not be run: they are there, or refused"])


@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps")
def test_a_process_that_is_killed_is_reported_and_what_is_finished_stays(tmp_path: Path) -> None:
    path, out = tmp_path / "long.toml", tmp_path / "out"
    path.write_text(LONG)
    command = [sys.executable, "-m", "goco_mpi", "sweep", str(path), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "rounds=10:" in process.stdout.readline()
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 1
    assert "fewer --jobs" in said
    assert said.count("\n") == 1
    assert [row["status"] for row in table(out)] == ["done"] * 2 + ["missing"] * 2


def test_members_on_mpi_are_the_runs_of_the_command(tmp_path: Path, mpiexec: list[str]) -> None:
    content = SMALL.replace("workers = 4", 'mode = "mpi"\nworkers = 2') + "method.late = ['wait']\n"
    content += '[[variant]]\nname = "diverges"\nstep.scale = 30.0\nrounds = 3000\n'
    sweep, out = sweep_of(tmp_path, content.replace("[3, 4]", "[3]")), tmp_path / "out"
    lines: list[str] = []
    assert run_sweep(sweep, out, 1, mpiexec, lines.append) == 1
    assert members(out, "done") == [("coded", "3"), ("uncoded", "3")]
    failed = [row for row in table(out) if row["status"] == "failed"]
    assert "diverged in round" in failed[0]["reason"]
    for member in sweep.members[:2]:
        assert member.config is not None
        record = read_run(out / "runs" / member.identity)
        assert record.run["environment"]["n_ranks"] == 2
        assert "simulated" not in record.run["environment"]
        expected = simulate_experiment(member.config, 2).history[-1]
        assert record.run["result"]["loss"] == pytest.approx(expected["loss"], rel=1e-10)
        assert record.history["shard_gradients"][-1] == expected["shard_gradients"]
        assert record.history["wall_s"][-1] > 0.0
    lines.clear()
    assert run_sweep(sweep, out, 1, mpiexec, lines.append) == 1  # only what failed is tried again
    assert len(lines) == 2


def test_a_launcher_that_is_none_is_named(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 'mode = "mpi"\n')
    with pytest.raises(InputError, match="--mpiexec 'no-such-launcher'"):
        run_sweep(sweep, tmp_path / "out", 1, ["no-such-launcher"])


def test_a_table_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "results.csv").mkdir()
    with pytest.raises(RunError, match=r"results.csv.*--out"):
        run(sweep_of(tmp_path, "[base]\n" + BASE), out)
