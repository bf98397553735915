"""The small files in which ranks say where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from goco_mpi import status

SAID = {"host": "node7", "state": "running", "round": 12, "suspects": list(range(10**6, 10**6 + status.MOST_SUSPECTS))}


def test_what_is_damaged_or_not_all_there_is_left_out() -> None:
    line = status.encode(SAID)
    assert status.decode(line) == SAID
    for bad in (
        b"",
        line[:-1],
        line[:100],
        line.replace(b"12", b"13"),
        b"zz" + line[2:],
        line + b" ",
        bytes(status.SIZE),
    ):
        assert status.decode(bad) is None
    # Half of an older one: the file is written over and over.
    older = status.encode({**SAID, "round": 11, "suspects": []})
    assert status.decode(line[:80] + older[80:]) is None


def test_what_does_not_fit_is_an_error_and_not_cut() -> None:
    with pytest.raises(ValueError, match="bytes"):
        status.encode({"host": "x" * status.SIZE})


def test_all_ranks_together_write_no_more_than_a_file_system_bears() -> None:
    for n_ranks in (1, 8, 100, 1000, 10_000):
        assert status.period_s(n_ranks) >= status.PERIOD_S
        assert n_ranks / status.period_s(n_ranks) <= status.WRITES_PER_S


def test_a_job_is_what_its_ranks_have_said(tmp_path: Path) -> None:
    directory = status.directory_of(tmp_path / "new" / "run")
    assert status.read(directory) is None
    status.begin(directory, {"n_ranks": 3, "rounds": 50})
    for rank in (0, 2):
        status.write(directory, rank, status.encode({**SAID, "round": rank}))
    status.write(directory, 2, status.encode({**SAID, "round": 40}))
    (directory / "rank1").write_text("half")
    found = status.read(directory)
    assert found is not None
    assert (found.job["n_ranks"], found.job["rounds"]) == (3, 50)
    assert {rank: one.said["round"] for rank, one in found.ranks.items()} == {0: 0, 2: 40}
    os.utime(directory / "rank0", (1000.0, 1000.0))
    found = status.read(directory)
    assert found is not None
    assert found.ranks[0].time_s == 1000.0


def test_a_new_job_finds_nothing_of_the_last_and_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "run.status"
    status.begin(directory, {"n_ranks": 3})
    status.write(directory, 1, status.encode(SAID))
    status.begin(directory, {"n_ranks": 2})
    found = status.read(directory)
    assert found is not None
    assert found.ranks == {}
    status.end(directory)
    status.end(directory)
    assert list(tmp_path.iterdir()) == []
    assert status.read(directory) is None


def test_a_directory_of_somebody_else_is_spared(tmp_path: Path) -> None:
    directory = tmp_path / "run.status"
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    status.begin(directory, {"n_ranks": 2})
    status.write(directory, 1, status.encode(SAID))
    status.end(directory)
    assert [path.name for path in directory.iterdir()] == ["thesis.tex"]


def test_what_was_made_for_it_goes_with_it_unless_something_else_is_there(tmp_path: Path) -> None:
    directory = status.directory_of(tmp_path / "runs" / "deep" / "mine")
    around = status.begin(directory, {"n_ranks": 1})
    (tmp_path / "runs" / "other").mkdir()
    status.end(directory, around)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "other"]
    (tmp_path / "runs" / "other").rmdir()
    around = status.begin(directory, {"n_ranks": 1})  # the directory runs was there, and stays
    status.end(directory, around)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_node_that_does_not_see_the_directory_makes_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        status.write(tmp_path / "run.status", 0, status.encode(SAID))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status.begin(tmp_path / "file" / "run.status", {"n_ranks": 2})
    status.end(tmp_path / "file" / "run.status")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 99, "n_ranks": 1}', '{"schema_version": 1}'])
def test_a_job_file_of_another_kind_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "job").write_text(text)
    assert status.read(tmp_path) is None
