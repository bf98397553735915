"""``goco bench``: figures, their bounds, and one measured for real."""

from __future__ import annotations

import json

import pytest

from goco_mpi import bench
from goco_mpi.bench import Member, figure
from goco_mpi.cli import main
from goco_mpi.errors import InputError, RunError

KEYS = {"name", "case", "value", "unit", "bound", "ok", "median", "min", "max", "repeats"}


def test_a_figure_is_the_median_and_its_spread() -> None:
    found = figure(Member("exchange", "ring 10"), [3.0, 1.0, 2.0])
    assert (found.median, found.min, found.max, found.repeats) == (2.0, 1.0, 3.0, 3)
    assert found.value == found.median
    assert found.ok is None


@pytest.mark.parametrize(
    ("at_most", "median", "ok"), [(True, 1.0, True), (True, 1.1, False), (False, 1.0, True), (False, 0.9, False)]
)
def test_a_bound_holds_from_its_side(at_most: bool, median: float, ok: bool) -> None:
    assert figure(Member("isolation", "x", 1.0, at_most), [median]).ok is ok


def test_a_name_that_is_no_member_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"'speed'. Known: exchange, isolation"):
        bench.run(["speed"], ["mpiexec"], as_json=True)


def test_a_launcher_that_is_missing_or_fails_is_one_message() -> None:
    with pytest.raises(InputError, match="no_such_launcher"):
        bench.measure(bench.MEMBERS[0], ["no_such_launcher"])
    with pytest.raises(RunError, match=r"exchange \(ring 1000\) failed with exit code 1"):
        bench.measure(bench.MEMBERS[0], ["false"])


def test_exchange_is_measured_under_mpiexec_and_printed_as_json(
    mpiexec: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two ranks and a small vector: what is tested is the way of a figure, not the figure.
    monkeypatch.setattr(bench, "N_RANKS", 2)
    impossible = Member("exchange", "ring 100", bound=0.0)
    monkeypatch.setattr(bench, "MEMBERS", (impossible,))
    command = ["bench", "exchange", "--json", "--mpiexec", " ".join(mpiexec)]
    assert main(command) == 0  # bounds are for people
    measured = json.loads(capsys.readouterr().out)
    assert set(measured) == KEYS
    assert measured["repeats"] >= 5
    assert 0.0 < measured["min"] <= measured["median"] <= measured["max"]
    assert measured["ok"] is False
    assert main([*command, "--strict"]) == 1


def test_a_table_shows_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "measure", lambda member, mpiexec: figure(member, [0.5]))
    assert not bench.run([], ["mpiexec"], as_json=False)  # isolation of 0.5 misses its bound
    printed = capsys.readouterr().out
    for member in bench.MEMBERS:
        assert member.name in printed
    assert "missed" in printed
