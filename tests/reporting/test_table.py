"""Figures that compare runs, on records made by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goco_mpi.errors import InputError
from goco_mpi.record import RunRecord
from goco_mpi.reporting import table

NAN = float("nan")


def record(
    name: str = "some_run",
    suboptimality: list[float] | None = None,
    wall_s: list[float] | None = None,
    ranks: list[tuple[float, float, float]] | None = None,
    **result: Any,
) -> RunRecord:
    """Make a record; ``ranks`` holds rounds, wall_s and wait_s of each."""
    gaps = [1.0, 0.4, 0.02, 0.005] if suboptimality is None else suboptimality
    times = [0.0, 1.0, 2.0, 4.0] if wall_s is None else wall_s
    return RunRecord(
        path=Path("runs") / name,
        run={
            "config": {"stragglers": {"kind": "slow", "ranks": [3], "factor": 10.0}},
            "environment": {"n_ranks": 4},
            "result": {"wall_s": times[-1], "suboptimality": gaps[-1], "test_accuracy": 0.9375, **result},
        },
        history={
            "round": np.arange(len(gaps)) * 10.0,
            "wall_s": np.array(times),
            "loss": np.array(gaps) + 0.3,
            "suboptimality": np.array(gaps),
        },
        ranks=[
            {"rank": float(place), "rounds": rounds, "wall_s": wall, "wait_s": wait}
            for place, (rounds, wall, wait) in enumerate(ranks or [(30.0, 4.0, 1.0)] * 4)
        ],
    )


@pytest.mark.parametrize(
    ("gap", "seconds", "rounds"),
    [(2.0, 0.0, 0), (0.4, 1.0, 10), (0.399, 2.0, 20), (0.01, 4.0, 30), (0.005, 4.0, 30), (0.004, None, None)],
)
def test_time_and_rounds_to_a_gap(gap: float, seconds: float | None, rounds: int | None) -> None:
    assert table.time_to_gap(record(), gap) == seconds
    assert table.rounds_to_gap(record(), gap) == rounds


def test_the_first_time_counts_though_the_gap_opens_again() -> None:
    assert table.time_to_gap(record(suboptimality=[1.0, 0.005, 0.5, 0.004]), 0.01) == 1.0


def test_an_unknown_optimum_is_never_reached() -> None:
    unknown = record(suboptimality=[NAN] * 4)
    assert table.time_to_gap(unknown, 0.5) is None
    assert table.rounds_to_gap(unknown, 0.5) is None


def test_rates_are_of_the_median_rank() -> None:
    # One slow rank of five changes nothing.
    ranks = [(100.0, 2.0, 0.2)] * 4 + [(3.0, 2.0, 1.9)]
    assert table.per_second(record(ranks=ranks), "rounds") == 50.0
    assert table.per_second(record(ranks=ranks), "wait_s") == pytest.approx(0.1)


def test_the_table_compares_with_the_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs = [
        record("quick"),
        record("twice_as_long", wall_s=[0.0, 2.0, 4.0, 8.0]),
        record("never", suboptimality=[1.0, 0.9, 0.8, 0.7], test_accuracy=None),
    ]
    table.print_table(runs, record("undisturbed", ranks=[(60.0, 4.0, 0.0)] * 4), 0.01)
    text = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if "│" in line}
    cells = {name: [cell.strip() for cell in row] for name, row in lines.items()}
    assert cells["quick"] == ["4.00 s", "1.0 x", "30", "7.5", "25 %", "5.0e-03", "93.8 %"]
    assert cells["twice as long"][:2] == ["8.00 s", "2.0 x"]
    assert cells["never"] == ["not reached", "-", "-", "7.5", "25 %", "7.0e-01", "-"]
    # 7.5 rounds a second, of 15 when nobody is slow.
    assert "50 % of full speed" in text


def test_a_run_that_is_there_at_once_does_not_divide_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    table.print_table([record(), record()], None, gap=2.0)
    assert "0.00 s" in capsys.readouterr().out


def test_a_run_that_stopped_before_its_first_round_has_no_rates(capsys: pytest.CaptureFixture[str]) -> None:
    at_once = record("at_once", [1.0], [0.0], [(0.0, 0.0, 0.0)] * 4)
    interrupted = record("interrupted", [1.0], [0.0], [(0.0, 4.0, 0.0)] * 4)  # in its first round
    table.print_table([record(), at_once], interrupted, 0.01)
    printed = capsys.readouterr().out
    assert "through 0.0 when no rank is slow: - of full speed" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("│ at once")]
    assert [cell.strip() for cell in row.split("│")[2:7]] == ["not reached", "-", "-", "-", "-"]


def test_names_of_runs_are_whole_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a log or a pipe there is no width to fit into, and cut names tell runs apart no more.
    monkeypatch.delenv("COLUMNS", raising=False)
    names = ["uncoded_with_replication_two", "uncoded_with_replication_three", "uncoded_with[red]_brackets"]
    table.print_table([record(name) for name in names], None, 0.01)
    text = capsys.readouterr().out
    for name in names:
        assert name.replace("_", " ") in text


def test_a_simulation_is_refused_wherever_it_stands() -> None:
    simulated = record("in_silico", wall_s=[0.0] * 4)
    simulated.run["result"]["wall_s"] = None
    for runs, reference in (([simulated], None), ([record(), simulated], None), ([record()], simulated)):
        with pytest.raises(InputError, match=r"in_silico.*simulation"):
            table.print_table(runs, reference, 0.01)


@pytest.mark.parametrize("known", [True, False])
def test_a_picture_with_and_without_a_known_optimum(tmp_path: Path, known: bool) -> None:
    pytest.importorskip("matplotlib")
    second = record("second", suboptimality=None if known else [NAN] * 4)
    path = tmp_path / "new" / "loss.png"
    table.draw([record(), second], 0.01, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--png"):
        table.draw([record()], 0.01, tmp_path / "file" / "loss.png")


def test_without_matplotlib_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"goco-mpi\[report\]"):
        table.draw([record()], 0.01, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
