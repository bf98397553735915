"""Records of earlier versions, as they were written then, are read and replayed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goco_mpi import record_schema
from goco_mpi.cli import main
from goco_mpi.record import HISTORY, read_run

RECORDS = Path(__file__).parent / "records"
OLD = sorted(path.name for path in RECORDS.iterdir())


@pytest.mark.parametrize("name", OLD)
def test_an_old_record_is_read(name: str) -> None:
    run = read_run(RECORDS / name)
    assert run.run["result"]["stopped_by"] == "rounds"
    assert {"momentum", "resumed_from", "events_sha256"} <= set(run.run["result"])
    assert set(HISTORY) <= set(run.history)
    assert [row["rank"] for row in run.ranks] == [0.0, 1.0]


def test_old_records_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *(str(RECORDS / name) for name in OLD)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in OLD)
    assert main(["report", *(str(RECORDS / name) for name in OLD), "--targets", "0.5,0.3"]) == 0


def test_an_old_record_is_replayed_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(RECORDS / "1-with-events")]) == 0
    assert "within 1e-12" in capsys.readouterr().out


def test_a_record_from_before_events_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(RECORDS / "1-first")]) == 2
    assert "has no events" in capsys.readouterr().err


def test_there_is_a_record_of_each_earlier_version() -> None:
    written = {json.loads((RECORDS / name / "run.json").read_text())["schema_version"] for name in OLD}
    assert written == set(range(1, record_schema.VERSION))
    assert set(record_schema.UPGRADES) == written


def test_a_record_of_today_needs_no_upgrade() -> None:
    document = {"schema_version": record_schema.VERSION, "config": {}, "environment": {}, "result": {"loss": 1.0}}
    assert record_schema.upgraded(document, "run") == document
