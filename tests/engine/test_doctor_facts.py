"""The facts that the ranks of a job find together."""

from __future__ import annotations

from pathlib import Path

import pytest

from goco_mpi.engine import doctor as doctor_module
from goco_mpi.engine.session import Session
from goco_mpi.errors import RunError

doctor_sees = doctor_module._sees


@pytest.fixture
def place(session: Session, tmp_path: Path) -> Path:
    """A directory that all ranks share: rank 0's."""
    shared: Path = session.comm.bcast(tmp_path)
    return shared


@pytest.mark.mpi(min_size=1)
def test_every_edge_of_the_ring_is_measured_once(session: Session, place: Path) -> None:
    facts = doctor_module.examine(session, place / "out", session.size, margin_s=120.0)
    assert (facts is not None) == (session.rank == 0)
    if facts is None:
        return
    size = session.size
    edges = {(i, (i + 1) % size) for i in range(size)} if size > 2 else {(0, 1)} if size == 2 else set()
    assert sorted(link.ranks for link in facts.links) == sorted(edges)
    for link in facts.links:
        assert 0.0 < link.latency_s < 10.0
        assert 1e3 < link.bytes_per_s < 1e12
    assert [rank.host for rank in facts.ranks] == [session.host] * size
    assert all(0.0 < rank.tick_s < 1e-3 and rank.wall_offset_s == 0.0 for rank in facts.ranks)
    assert (facts.place, facts.refusal, facts.blind) == (str(place), "", [])
    assert list(place.iterdir()) == []


@pytest.mark.mpi(min_size=2)
def test_a_node_that_does_not_see_the_run_directory_is_named(
    session: Session, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last rank stands for a node of its own, which looks at another file system.
    monkeypatch.setattr(doctor_module, "SEEING_S", 0.1)
    last = session.size - 1
    if session.rank == last:
        monkeypatch.setattr(session, "host", "faraway")
        monkeypatch.setattr(doctor_module, "_sees", lambda mark, token: doctor_sees(mark.with_name("nowhere"), token))
    facts = doctor_module.examine(session, place / "out", None, margin_s=120.0)
    if facts is not None:
        assert facts.blind == ["faraway"]
        assert list(place.iterdir()) == []


@pytest.mark.mpi(min_size=1)
def test_a_place_that_cannot_be_written_to_is_a_fact_and_no_error(session: Session) -> None:
    facts = doctor_module.examine(session, Path("/proc/self/nowhere/out"), None, margin_s=120.0)
    if facts is not None:
        assert facts.refusal
        assert facts.blind == []


@pytest.mark.mpi(min_size=1)
def test_a_neighbour_that_does_not_answer_is_named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "PAIR_LIMIT_S", 0.05)
    silent = session.comm.Irecv(bytearray(8), session.rank, doctor_module.TAG)
    with pytest.raises(RunError, match=r"rank 7 did not answer within 0\.05 s"):
        doctor_module._finish(session, silent, 7)
    session.comm.Send(bytes(8), session.rank, doctor_module.TAG)
    silent.Wait()
