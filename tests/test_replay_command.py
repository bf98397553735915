"""``goco replay``: a real run computed once more, and what it says of altered records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from goco_mpi.cli import main
from goco_mpi.config import parse_config
from goco_mpi.core.events import NONE
from goco_mpi.errors import InputError
from goco_mpi.record import FIRST_PARAMS, events_checksum, read_params, read_run, read_tables
from goco_mpi.replay import TOLERANCE, replay

N_RANKS, ROUNDS, SLOW = 4, 40, 2
TIMEOUT_S = 60
EXPERIMENT = f"""\
seed = 3
rounds = {ROUNDS}
[data]
source = "synthetic"
n_samples = 400
n_features = 6
shards = 8
heterogeneity = 1.0
partition = "in_order"
[objective]
kind = "least_squares"
[topology]
kind = "ring"
[step]
tau = 20.0
[stragglers]
kind = "slow"
ranks = [{SLOW}]
factor = 8.0
work_s = 2e-3
[record]
every = 10
"""

Tables = list[NDArray[np.int32]]
Runner = Callable[..., Path]


@pytest.fixture(scope="module")
def original(run_experiment: Runner) -> Path:
    """A run with a slow rank, made once and never changed."""
    return run_experiment("original")


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be altered."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def write_tables(run: Path, tables: Tables, checksum: bool = True) -> None:
    """Replace the events of a record, and unless told otherwise their checksum too."""
    arrays: dict[str, Any] = {f"rank{rank}": table for rank, table in enumerate(tables)}
    np.savez_compressed(run / "events.npz", **arrays)
    if checksum:
        document = json.loads((run / "run.json").read_text())
        document["result"]["events_sha256"] = events_checksum(tables)
        (run / "run.json").write_text(json.dumps(document))


def assert_replays(run: Path, capsys: pytest.CaptureFixture[str], n_steps: int | None = None) -> None:
    assert main(["replay", str(run)]) == 0
    printed, said = capsys.readouterr()
    assert said == ""
    assert printed.count("\n") == 1
    n_steps = n_steps or sum(len(table) - 1 for table in read_tables(run, "events"))
    assert printed.startswith(f"{run}: {n_steps} steps of {N_RANKS} ranks replayed; the largest difference is ")
    assert printed.endswith("within 1e-12\n")


def refusal(run: Path, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that says why a replay failed."""
    assert main(["replay", str(run)]) == code
    said = capsys.readouterr().err
    assert said.startswith("goco: ")
    assert said.count("\n") == 1
    return said


def test_a_run_in_which_ranks_died_is_refused_by_their_names(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((copy / "run.json").read_text())
    document["result"]["deaths"] = [{"rank": rank, "round": 7, "noticed": {"0": 7}} for rank in (1, 2)]
    (copy / "run.json").write_text(json.dumps(document))
    assert "cannot be replayed: ranks 1 and 2 died in that run" in refusal(copy, 2, capsys)


@pytest.mark.parametrize("warm", [False, True])
def test_data_of_another_width_are_refused(copy: Path, warm: bool, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((copy / "run.json").read_text())
    document["config"]["data"]["n_features"] += 1  # as where the file that the run read has been replaced
    (copy / "run.json").write_text(json.dumps(document))
    if warm:
        np.save(copy / FIRST_PARAMS, np.zeros(read_params(copy).shape[1]))
    assert "are no longer those of its run" in refusal(copy, 1, capsys)


def test_a_real_run_replays_to_its_parameters(original: Path) -> None:
    # As a user does it, in a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "goco_mpi", "replay", str(original)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"of {N_RANKS} ranks replayed" in done.stdout
    assert done.stdout.endswith("within 1e-12\n")


def test_the_run_of_these_tests_was_asynchronous(original: Path) -> None:
    # Else a replay would prove little: the slow rank drops out of step, and vectors of other rounds are mixed.
    tables = read_tables(original, "events")
    assert all(table[-1, 0] == ROUNDS for table in tables)
    slow, others = tables[SLOW], [table for rank, table in enumerate(tables) if rank != SLOW]
    assert (slow[:, 1] != NONE).sum() < 0.6 * min((table[:, 1] != NONE).sum() for table in others)
    of_other_rounds = sum(
        tables[j][step, 0] != table[row, 0]
        for rank, table in enumerate(tables)
        for place, j in enumerate(sorted({(rank - 1) % N_RANKS, (rank + 1) % N_RANKS}))
        for row, step in enumerate(table[:, 2 + place])
        if step != NONE
    )
    assert of_other_rounds > 5


@pytest.mark.parametrize(
    "settings",
    [
        ["method.late=partial"],
        ["method.late=memory"],
        ["method.mixing=fold", "topology.kind=complete", "stragglers.link_p=0.3"],
        ["method.kind=allreduce"],
        ["method.kind=allreduce", "method.solver=nesterov"],
        ["stop.target_loss=5.0", "stop.every=1", "rounds=100000"],
        ["method.kind=allreduce", "stop.target_loss=5.0", "stop.every=1", "rounds=100000"],
        ["stop.time_limit_s=0.2", "rounds=100000"],
    ],
    ids=" ".join,
)
def test_runs_of_every_kind_replay(
    run_experiment: Runner, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_experiment("_".join(settings).replace("/", ""), *settings)
    assert_replays(out, capsys)
    result = json.loads((out / "run.json").read_text())["result"]
    stopped = [setting.split("=")[0] for setting in settings if setting.startswith("stop.") and "every" not in setting]
    assert result["stopped_by"] == (stopped[0].removeprefix("stop.") if stopped else "rounds")
    assert np.abs(np.load(out / "params.npy")).max() > 0.1  # something was learned


def test_several_runs_are_replayed_one_after_the_other(
    original: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = np.load(copy / "params.npy")
    params[1] *= 1.0 + 1e-9
    np.save(copy / "params.npy", params)
    assert main(["replay", str(original), str(copy), str(original)]) == 1
    printed, said = capsys.readouterr()
    assert [line.split()[-2:] for line in printed.splitlines()] == [
        ["within", "1e-12"],
        ["beyond", "1e-12"],
        ["within", "1e-12"],
    ]
    assert said.count("\n") == 1


@pytest.mark.parametrize("column", [0, 1, 2, 3], ids=["round", "point", "used", "used"])
def test_an_altered_event_is_caught_by_the_checksum(
    copy: Path, column: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = read_tables(copy, "events")
    tables[1][5, column] += 1
    write_tables(copy, tables, checksum=False)
    assert "checksum" in refusal(copy, 1, capsys)


def test_exchanged_ranks_are_caught_by_the_checksum(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = read_tables(copy, "events")
    write_tables(copy, [tables[1], tables[0], *tables[2:]], checksum=False)
    assert "checksum" in refusal(copy, 1, capsys)


def assert_caught(run: Path, tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that altered events with their own checksum are refused, or end elsewhere."""
    write_tables(run, tables)
    said = refusal(run, 1, capsys)
    assert "The events contradict" in said or "A run and its replay differ" in said
    assert "checksum" not in said


CHANGES = [-2, -1, 1, 3]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rank", range(N_RANKS))
def test_another_vector_is_caught_by_the_parameters_or_the_rules(
    copy: Path, rank: int, change: int, capsys: pytest.CaptureFixture[str]
) -> None:
    original = read_tables(copy, "events")
    rows = np.flatnonzero((original[rank][:, 2:] > 3).all(axis=1))
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        for column in (2, 3):
            tables = [table.copy() for table in original]
            tables[rank][row, column] += change
            assert_caught(copy, tables, capsys)
            tables[rank][row, column] = NONE
            assert_caught(copy, tables, capsys)


@pytest.mark.parametrize("column", [0, 1], ids=["round", "point"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rank", range(N_RANKS))
def test_another_round_or_gradient_is_caught_by_the_parameters_or_the_rules(
    copy: Path, rank: int, change: int, column: int, capsys: pytest.CaptureFixture[str]
) -> None:
    original = read_tables(copy, "events")
    rows = np.flatnonzero(original[rank][:, 1] > 1)  # with a gradient, or the step size would not matter
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        tables = [table.copy() for table in original]
        tables[rank][row, column] += change
        assert_caught(copy, tables, capsys)
    tables[rank][rows[0], 1] = NONE
    assert_caught(copy, tables, capsys)


@pytest.mark.parametrize("rank", range(N_RANKS))
def test_a_step_left_out_or_a_missing_goodbye_is_caught(
    copy: Path, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    original = read_tables(copy, "events")
    with_gradient = np.flatnonzero(original[rank][:, 1] != NONE)
    for row in (with_gradient[1], with_gradient[-1], len(original[rank]) - 1):
        tables = list(original)
        tables[rank] = np.delete(tables[rank], row, axis=0)
        assert_caught(copy, tables, capsys)


@pytest.mark.parametrize(
    "alter",
    [
        lambda table: table[:, :3],
        lambda table: table[:, :1],
        lambda table: table[0],
        lambda table: table[:0],
        lambda table: table[0, 0],
        lambda table: table[None],
        lambda table: np.hstack([table, table[:, 1:2]]),
        lambda table: table.astype(np.float64) + 0.25,
    ],
    ids=["column short", "one column", "one row", "empty", "number", "three axes", "column more", "no whole numbers"],
)
@pytest.mark.parametrize("kind", ["goco", "allreduce"])
def test_tables_of_another_form_are_refused_even_with_their_checksum(
    copy: Path,
    alter: Callable[[NDArray[np.int32]], NDArray[np.int32]],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables = read_tables(copy, "events")
    if kind == "allreduce":
        document = json.loads((copy / "run.json").read_text())
        document["config"]["method"]["kind"] = kind
        (copy / "run.json").write_text(json.dumps(document))
        rounds = np.arange(5, dtype=np.int32)
        tables = [np.column_stack([rounds, rounds])] * N_RANKS
    write_tables(copy, [alter(table) for table in tables])
    assert main(["replay", str(copy)]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("goco: ")
    assert said.count("\n") == 1


def test_events_of_another_number_of_ranks_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(copy, read_tables(copy, "events")[:3])
    assert "events of 3 ranks, and parameters of 4" in refusal(copy, 1, capsys)


@pytest.mark.parametrize("rank", range(N_RANKS))
@pytest.mark.parametrize("change", [1e-9, -1e-9])
def test_altered_parameters_are_caught(
    copy: Path, rank: int, change: float, capsys: pytest.CaptureFixture[str]
) -> None:
    params = np.load(copy / "params.npy")
    params[rank] *= 1.0 + change
    np.save(copy / "params.npy", params)
    assert "A run and its replay differ" in refusal(copy, 1, capsys)
    found = replay(read_run(copy))
    assert not found.agrees
    assert int(found.differences.argmax()) == rank
    assert found.differences[rank] == pytest.approx(1e-9, rel=1e-2)


def test_one_altered_element_is_caught(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = np.load(copy / "params.npy")
    params[3, 2] += 100 * TOLERANCE * np.abs(params[3]).max()
    np.save(copy / "params.npy", params)
    assert "A run and its replay differ" in refusal(copy, 1, capsys)


def test_parameters_that_are_not_finite_are_caught(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = np.load(copy / "params.npy")
    params[0, 0] = np.nan
    np.save(copy / "params.npy", params)
    refusal(copy, 1, capsys)


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"step": {"tau": 30.0}}, {"objective": {"l2": 0.5}}, {"data": {"n_samples": 500}}], ids=str
)
def test_another_config_than_that_of_the_run_is_caught(
    copy: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((copy / "run.json").read_text())
    for name, value in change.items():
        if isinstance(value, dict):
            document["config"][name] |= value
        else:
            document["config"][name] = value
    parse_config(document["config"])  # a possible one
    (copy / "run.json").write_text(json.dumps(document))
    assert main(["replay", str(copy)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_record_without_events_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "events.npz").unlink()
    assert "has no events" in refusal(copy, 2, capsys)


@pytest.mark.parametrize("content", [b"", b"PK", b"It was a bright cold day in April", b"\x93NUMPY\x01\x00v\x00{"])
def test_events_that_are_no_archive_are_refused(copy: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "events.npz").write_bytes(content)
    said = refusal(copy, 2, capsys)
    assert "events.npz" in said
    assert "damaged" in said


def test_an_array_in_place_of_an_archive_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (copy / "events.npz").open("wb") as file:
        np.save(file, np.zeros((3, 4), dtype=np.int32))
    assert "damaged" in refusal(copy, 2, capsys)


def test_an_archive_of_other_arrays_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(copy / "events.npz", rank0=np.zeros((3, 4), np.int32), rank2=np.zeros((3, 4), np.int32))
    assert "damaged" in refusal(copy, 2, capsys)


def test_truncated_events_are_refused_wherever_they_end(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (copy / "events.npz").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (copy / "events.npz").write_bytes(whole[:length])
        assert "damaged" in refusal(copy, 2, capsys)


def test_no_damaged_byte_of_the_events_goes_unnoticed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Every byte in turn. Where the archive is not found to be damaged, it was a date or so, or the checksum tells.
    whole = (copy / "events.npz").read_bytes()
    checksum = events_checksum(read_tables(copy, "events"))
    n_damaged = 0
    for place in range(len(whole)):
        flipped = (0x01, 0x80, 0xFF)[place % 3]
        (copy / "events.npz").write_bytes(whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :])
        try:
            tables = read_tables(copy, "events")
        except InputError:
            n_damaged += 1
            continue
        if events_checksum(tables) != checksum:
            assert "checksum" in refusal(copy, 1, capsys)
    assert n_damaged > len(whole) // 2


def test_missing_parameters_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "params.npy").unlink()
    assert "params.npy" in refusal(copy, 2, capsys)


def test_a_simulation_has_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    out = tmp_path / "simulated"
    command = ["simulate", str(tmp_path / "experiment.toml"), "--workers", "4", "--out", str(out), "--quiet"]
    assert main(command) == 0
    assert "is a simulation" in refusal(out, 2, capsys)


def test_a_run_that_kept_no_events_says_how_to_keep_them(
    run_experiment: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_experiment("without", "record.events=false", "rounds=5")
    assert not (out / "events.npz").exists()
    assert "record.events" in refusal(out, 2, capsys)


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run directory" in refusal(tmp_path, 2, capsys)
    assert "not a run directory" in refusal(tmp_path / "nowhere", 2, capsys)
