"""``goco report --timeline``: the trace of a real run, as Perfetto would read it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goco_mpi.cli import main
from goco_mpi.core.events import NONE
from goco_mpi.record import read_run, read_tables
from goco_mpi.reporting.timeline import trace

N_RANKS, ROUNDS, SLOW = 4, 40, 2
NEIGHBORS = {rank: sorted({(rank - 1) % N_RANKS, (rank + 1) % N_RANKS}) for rank in range(N_RANKS)}
EXPERIMENT = f"""\
seed = 3
rounds = {ROUNDS}
[data]
source = "synthetic"
n_samples = 400
n_features = 6
shards = 8
[objective]
kind = "least_squares"
[topology]
kind = "ring"
[stragglers]
kind = "slow"
ranks = [{SLOW}]
factor = 8.0
work_s = 2e-3
[record]
timeline = true
"""
SLICES = ["compute", "wait", "mix"]

Event = dict[str, Any]
Runner = Callable[..., Path]


@pytest.fixture(scope="module")
def recorded(run_experiment: Runner) -> Path:
    """A run with a slow rank, made once."""
    return run_experiment("recorded")


@pytest.fixture(scope="module")
def events(recorded: Path) -> list[Event]:
    """What the command wrote of it."""
    file = recorded.parent / "traces" / "timeline.json"  # a directory that is not there yet
    assert main(["report", str(recorded), "--timeline", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["displayTimeUnit"] == "ms"
    found: list[Event] = document["traceEvents"]
    return found


def tenths(event: Event, key: str) -> int:
    """Return a time in the tenths of a microsecond that the trace counts in."""
    value: int = round(10 * event[key])
    assert 10 * event[key] == pytest.approx(value, abs=1e-3)
    return value


def slices(events: list[Event], rank: int) -> list[Event]:
    """Return the slices of a rank in the order of the file."""
    return [event for event in events if event["ph"] == "X" and event["tid"] == rank]


def test_the_command_says_where_the_timeline_is(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.json"
    assert main(["report", str(recorded), "--timeline", str(file)]) == 0
    printed, said = capsys.readouterr()
    assert said == ""
    assert f"timeline in {file}: open it with https://ui.perfetto.dev" in printed
    assert json.loads(file.read_text()) == trace(read_run(recorded))


def test_every_rank_is_one_named_thread_of_one_process(recorded: Path, events: list[Event]) -> None:
    names = [event for event in events if event["ph"] == "M" and event["name"] == "thread_name"]
    hosts = read_run(recorded).run["environment"]["hosts"]
    assert [(event["tid"], event["args"]["name"]) for event in names] == [
        (rank, f"rank {rank} ({hosts[rank]})") for rank in range(N_RANKS)
    ]
    processes = [event for event in events if event["ph"] == "M" and event["name"] == "process_name"]
    assert len(processes) == 1
    assert "recorded" in processes[0]["args"]["name"]
    assert {event["pid"] for event in events} == {0}
    assert {event["tid"] for event in events if "tid" in event} == set(range(N_RANKS))
    assert {event["ph"] for event in events} == {"M", "X", "s", "f"}


@pytest.mark.parametrize("rank", range(N_RANKS))
def test_a_step_is_a_slice_of_compute_one_of_wait_and_one_of_mix(
    recorded: Path, events: list[Event], rank: int
) -> None:
    table = read_tables(recorded, "events")[rank][:-1]  # the goodbye is no step
    found = slices(events, rank)
    assert len(table) > 5
    assert [event["name"] for event in found] == SLICES * len(table)
    for step, (round_, point, *used) in enumerate(table.tolist()):
        compute, wait, mix = (event["args"] for event in found[3 * step : 3 * step + 3])
        for details in (compute, wait, mix):
            assert (details["round"], details["step"]) == (round_, step)
        assert compute["gradient taken at step"] == point
        expected = {str(j): s for j, s in zip(NEIGHBORS[rank], used, strict=True) if s != NONE}
        assert mix["steps used of ranks"] == expected
        assert set(wait["suspects"]) <= set(NEIGHBORS[rank])


@pytest.mark.parametrize("rank", range(N_RANKS))
def test_slices_of_a_rank_follow_each_other_without_overlap_or_gap(events: list[Event], rank: int) -> None:
    # Perfetto drops a slice that overlaps the one before, be it by a tenth of a microsecond.
    found = slices(events, rank)
    assert tenths(found[0], "ts") >= 0
    for before, after in itertools.pairwise(found):
        assert tenths(before, "dur") >= 0
        assert tenths(before, "ts") + tenths(before, "dur") == tenths(after, "ts")


def test_slices_are_as_long_as_the_work(recorded: Path, events: list[Event]) -> None:
    # The gradients of the slow rank last 16 ms at least, rounds in the middle of them included.
    for row in read_run(recorded).ranks:
        found = slices(events, int(row["rank"]))
        wait_s = sum(event["dur"] for event in found if event["name"] == "wait") / 1e6
        assert wait_s == pytest.approx(row["wait_s"], rel=1e-3, abs=1e-4)
    mine = slices(events, SLOW)
    gradients = {event["args"]["gradient taken at step"] for event in mine[::3]} - {NONE}
    assert sum(event["dur"] for event in mine) >= 16e3 * len(gradients) > 0


def flows(events: list[Event]) -> list[tuple[Event, Event]]:
    """Return starts and finishes in pairs, having made sure that they are."""
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert Counter(event["id"] for event in events if event["ph"] in "sf") == dict.fromkeys(starts, 2)
    assert set(starts) == set(ends)
    return [(starts[number], ends[number]) for number in starts]


def test_every_vector_that_was_mixed_is_one_arrow_from_its_sender(recorded: Path, events: list[Event]) -> None:
    tables = read_tables(recorded, "events")
    expected = Counter(
        (j, rank)
        for rank, table in enumerate(tables)
        for place, j in enumerate(NEIGHBORS[rank])
        for step in set(table[:-1, 2 + place].tolist())
        if step not in (NONE, len(tables[j]) - 1)  # a goodbye has no times
    )
    pairs = flows(events)
    assert Counter((start["tid"], end["tid"]) for start, end in pairs) == expected
    assert len(pairs) > ROUNDS
    for start, end in pairs:
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])  # what pairs them, with the id
        assert end["bp"] == "e"  # it ends in the slice around it, not at the next one


def test_a_run_that_went_on_from_a_checkpoint_counts_its_steps_on(run_experiment: Runner) -> None:
    waiting = ["deadline.compute_s=inf", "deadline.gossip_s=inf", "stragglers.kind=none"]
    run_experiment("resumed", f"rounds={ROUNDS // 2}", "checkpoint.every=10", *waiting)
    path = run_experiment("resumed", f"rounds={ROUNDS}", "checkpoint.every=10", *waiting, resume=True)
    tables, found = read_tables(path, "events"), trace(read_run(path))["traceEvents"]
    first = ROUNDS - (len(tables[0]) - 1)
    assert first >= 10
    for rank in range(N_RANKS):
        assert [event["args"]["step"] for event in slices(found, rank)[::3]] == list(range(first, ROUNDS))
    pairs = flows(found)
    # Of one step each neighbour's vector was sent before the checkpoint, or none has: the others are arrows.
    assert len(pairs) >= 2 * N_RANKS * (ROUNDS - first - 1)
    for start, end in pairs:
        assert tenths(start, "ts") <= tenths(end, "ts")


def test_an_arrow_does_not_end_before_it_starts(events: list[Event]) -> None:
    # All ranks are on one node, and read the same clock.
    for start, end in flows(events):
        assert tenths(end, "ts") >= tenths(start, "ts")


def test_arrows_start_and_end_in_slices_of_their_ranks(recorded: Path, events: list[Event]) -> None:
    offers = {rank: {tenths(event, "ts") for event in slices(events, rank)[1::3]} for rank in range(N_RANKS)}
    ends = {rank: tenths(slices(events, rank)[-1], "ts") for rank in range(N_RANKS)}
    begins = {rank: tenths(slices(events, rank)[0], "ts") for rank in range(N_RANKS)}
    for start, end in flows(events):
        assert min(abs(tenths(start, "ts") - offer) for offer in offers[start["tid"]]) <= 1
        assert begins[end["tid"]] <= tenths(end, "ts") <= ends[end["tid"]]


def test_a_vector_arrives_before_the_mixing_that_uses_it(recorded: Path) -> None:
    # The newest arrival may be of a vector that is even newer.
    tables, times = read_tables(recorded, "events"), read_tables(recorded, "timeline")
    for table, when in zip(tables, times, strict=True):
        assert len(when) == len(table) - 1
        for place in range(2):
            used, arrived = table[:-1, 2 + place], when[:, 3 + place]
            assert (arrived[used != NONE] <= when[used != NONE, 2]).all()
            assert (np.diff(arrived[~np.isnan(arrived)]) >= 0).all()


def test_times_go_on_within_a_step_and_from_one_to_the_next(recorded: Path) -> None:
    for when in read_tables(recorded, "timeline"):
        assert when.dtype == np.float64
        assert when.shape[1] == 3 + 2 * 2
        assert (np.diff(when[:, :3].ravel()) >= 0).all()
        assert set(np.unique(when[:, 5:])) <= {0.0, 1.0}


def test_a_slow_rank_becomes_a_suspect_of_its_neighbours(events: list[Event]) -> None:
    suspects = [event["args"]["suspects"] for rank in NEIGHBORS[SLOW] for event in slices(events, rank)[1::3]]
    assert [SLOW] in suspects


def test_an_allreduce_has_slices_and_no_arrows(run_experiment: Runner, tmp_path: Path) -> None:
    out = run_experiment("allreduce", "method.kind=allreduce", "stragglers.work_s=0", "rounds=10")
    assert main(["report", str(out), "--timeline", str(tmp_path / "t.json")]) == 0
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [len(slices(events, rank)) for rank in range(N_RANKS)] == [3 * 10] * N_RANKS
    assert flows(events) == []


def test_without_times_or_events_there_is_no_timeline(
    run_experiment: Runner, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untimed = run_experiment("untimed", "record.timeline=false", "rounds=5", "stragglers.work_s=0")
    assert not (untimed / "timeline.npz").exists()
    without_events, broken = tmp_path / "without_events", tmp_path / "broken"
    shutil.copytree(recorded, without_events)
    (without_events / "events.npz").unlink()
    shutil.copytree(recorded, broken)
    (broken / "timeline.npz").write_bytes(b"It was a bright cold day in April")
    for out, words in (
        (untimed, "record.timeline"),
        (without_events, "record.events"),
        (broken, "timeline.npz' is damaged"),
    ):
        file = tmp_path / "t.json"
        assert main(["report", str(out), "--timeline", str(file)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.startswith("goco: ")
        assert said.count("\n") == 1
        assert not file.exists()


def test_a_place_that_cannot_be_written_is_one_line(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "t.json"):
        assert main(["report", str(recorded), "--timeline", str(place)]) == 2
        said = capsys.readouterr().err
        assert "--timeline" in said
        assert said.count("\n") == 1
