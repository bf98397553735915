"""How ranks set up together and fail together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from goco_mpi.config import parse_config
from goco_mpi.engine import session as session_module
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.errors import GocoError, InputError, RunError

SMALL = {
    "rounds": 10,
    "data": {"source": "synthetic", "n_samples": 200, "n_features": 5, "shards": 8},
    "objective": {"kind": "least_squares"},
    "topology": {"kind": "ring"},
    "placement": {"replication": 1},
    "record": {"every": 5},
}


@pytest.mark.mpi(min_size=1)
def test_the_communicator_is_a_private_named_duplicate(session: Session) -> None:
    assert session.comm.Get_name() == "goco_mpi"
    assert MPI.Comm.Compare(session.comm, MPI.COMM_WORLD) == MPI.CONGRUENT  # same ranks, own context
    assert (session.rank, session.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert 1 <= session.ranks_on_node <= session.size
    assert session.prefix == f"[rank {session.rank}/{session.size} on {session.host}]"


@pytest.mark.mpi(min_size=1)
def test_closing_twice_is_safe() -> None:
    session = Session()
    session.close()
    session.close()
    assert session.comm == MPI.COMM_NULL
    with Session() as other:
        other.close()  # and the context manager closes once more


@pytest.mark.mpi(min_size=1)
def test_agree_returns_every_rank_its_own_result(session: Session) -> None:
    assert session.agree(lambda: session.rank * 10) == session.rank * 10


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("kind", [InputError, RunError])
@pytest.mark.parametrize("culprit", ["first", "last", "all"])
def test_one_failure_fails_all_with_the_first_ones_error(session: Session, kind: type[GocoError], culprit: str) -> None:
    failing = {"first": [0], "last": [session.size - 1], "all": range(session.size)}[culprit]

    def action() -> None:
        if session.rank in failing:
            raise kind(f"no luck on rank {session.rank}")

    with pytest.raises(kind, match=f"^no luck on rank {failing[0]}$") as caught:
        session.agree(action)
    assert caught.value.agreed
    assert session.agree(lambda: "again") == "again"  # the session is still of use


@pytest.mark.mpi(min_size=1)
def test_an_agreed_error_closes_the_session_and_passes_through() -> None:
    with pytest.raises(InputError, match="bad"), Session() as session:
        session.share(lambda: (_ for _ in ()).throw(InputError("bad")))
    assert session.comm == MPI.COMM_NULL


@pytest.mark.mpi(min_size=1)
def test_share_runs_on_rank_zero_only_and_gives_all_its_result(session: Session) -> None:
    ran = []
    result = session.share(lambda: ran.append(1) or {"from": session.rank})
    assert result == {"from": 0}
    assert len(ran) == (session.rank == 0)


@pytest.mark.mpi(min_size=2)
def test_agree_on_accepts_equal_and_refuses_different_fingerprints(session: Session) -> None:
    session.agree_on("the layout", 7)
    last = session.size - 1
    with pytest.raises(RunError, match=rf"\[rank {last}/{session.size} on .*the layout differs") as caught:
        session.agree_on("the layout", 7 + (session.rank == last))
    assert caught.value.agreed


@pytest.mark.mpi(min_size=1)
def test_another_number_of_ranks_than_asked_for_is_refused() -> None:
    size = MPI.COMM_WORLD.size
    with Session(expected_ranks=size) as session:
        assert session.size == size
    for expected in (size + 1, 10 * size):
        with pytest.raises(InputError, match=rf"--ranks\b.*\b{expected} ranks.*\b{size}\b"):
            Session(expected_ranks=expected)


@pytest.mark.mpi(min_size=1)
def test_environment_has_one_entry_a_rank(session: Session) -> None:
    environment = session.environment()
    assert environment["n_ranks"] == session.size
    for name in ("hosts", "ranks_on_node", "cores", "threads"):
        assert len(environment[name]) == session.size
    assert environment["hosts"][session.rank] == session.host
    assert all(session.comm.allgather(environment == session.comm.bcast(environment)))


@pytest.mark.mpi(min_size=1)
def test_the_polite_barrier_waits_for_all(session: Session) -> None:
    entered = np.zeros(1)
    window = MPI.Win.Create(entered if session.rank == 0 else None, comm=session.comm)
    try:
        window.Lock(0)
        window.Accumulate(np.ones(1), 0, op=MPI.SUM)
        window.Unlock(0)
        session.barrier()
        seen = np.zeros(1)
        window.Lock(0)
        window.Get(seen, 0)
        window.Unlock(0)
        assert seen[0] == session.size  # nobody is past it before everybody is at it
        session.barrier()
    finally:
        window.Free()


@pytest.mark.mpi(min_size=1)
def test_the_clock_offset_is_how_far_a_clock_is_ahead_of_rank_zeros(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clocks that differ by much more than any answer takes, ahead and behind.
    ahead = 1e6 * session.rank * (-1) ** session.rank
    shifted = SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead, sleep=time.sleep)
    monkeypatch.setattr(session_module, "time", shifted)
    monkeypatch.setattr(session, "host", f"node{session.rank}")
    start = time.perf_counter()
    offset = session.clock_offset()
    lasted = time.perf_counter() - start
    # The truth lies between asking and the answer, so the error is at most half of what that took.
    assert offset == pytest.approx(ahead, abs=lasted + 1e-6)
    assert session.comm.bcast(offset) == 0.0


@pytest.mark.mpi(min_size=2)
def test_the_quickest_answer_tells_the_clock_offset(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # Asked and answered at these times, and rank 0 answers at 100 always: only the second was quick.
    asked_and_answered = [(0.0, 90.0), (30.0, 31.0), (40.0, 43.0)]
    times = iter([moment for trial in asked_and_answered for moment in trial])
    clock = (lambda: 100.0) if session.rank == 0 else (lambda: next(times))
    monkeypatch.setattr(session_module, "time", SimpleNamespace(perf_counter=clock, sleep=time.sleep))
    monkeypatch.setattr(session, "host", f"node{session.rank}")
    monkeypatch.setattr(session_module, "CLOCK_TRIALS", len(asked_and_answered))
    offset = session.clock_offset()
    assert offset == (0.0 if session.rank == 0 else 30.5 - 100.0)
    assert session.rank == 0 or next(times, None) is None


@pytest.mark.mpi(min_size=1)
def test_ranks_on_rank_zeros_node_have_its_clock(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # No measurement says so as well as that.
    away = session.size > 2 and session.rank == session.size - 1
    monkeypatch.setattr(session, "host", "another" if away else "node")
    if away:  # one's own clock may by chance seem to be the same
        shifted = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 1e3, sleep=time.sleep)
        monkeypatch.setattr(session_module, "time", shifted)
    assert (session.clock_offset() == 0.0) != away


@pytest.mark.mpi(min_size=2)
def test_a_run_on_some_ranks_leaves_the_others_alone() -> None:
    # Anything on COMM_WORLD would hang here, as half of its ranks take no part, or would match
    # the wildcard receive that waits on every rank of it.
    world = MPI.COMM_WORLD
    buffer = np.zeros(1)
    foreign = world.Irecv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG)
    part = world.Split(world.rank % 2, world.rank)
    if world.rank % 2 == 0:
        with Session(part) as session:
            assert session.size == (world.size + 1) // 2
            outcome = train(parse_config(SMALL), session)
            assert (outcome is not None) == (session.rank == 0)
            assert part != MPI.COMM_NULL
        assert part != MPI.COMM_NULL  # the user's communicator is the user's to free
        part.Barrier()
    part.Free()
    assert not foreign.Test()
    world.Barrier()  # all have looked: now something may come
    world.Send(np.array([world.rank + 1.0]), (world.rank + 1) % world.size)
    foreign.Wait()
    assert buffer[0] == (world.rank - 1) % world.size + 1.0


def launch(mpiexec: list[str], n_ranks: int, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*mpiexec, "-n", str(n_ranks), sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,  # a rank that hung would take for ever
    )


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("raise ValueError('some bug')", "unexpected error; please report it"),
        ("raise RunError('this rank alone')", "this rank alone"),
    ],
    ids=["a bug", "an error of one rank"],
)
def test_an_error_on_one_rank_ends_all(mpiexec: list[str], statement: str, said: str) -> None:
    program = (
        "from goco_mpi.engine.session import Session\n"
        "from goco_mpi.errors import RunError\n"
        "with Session() as session:\n"
        f"    if session.rank == 1: {statement}\n"
        "    session.comm.Barrier()\n"  # rank 0 would wait here for ever
    )
    start = time.monotonic()
    ended = launch(mpiexec, 2, program)
    assert ended.returncode != 0
    assert "[rank 1/2 on " in ended.stderr
    assert said in ended.stderr
    assert time.monotonic() - start < 30


def test_an_error_of_a_session_of_one_rank_is_said_by_who_catches_it(mpiexec: list[str]) -> None:
    program = (
        "from goco_mpi.engine.session import Session\n"
        "from goco_mpi.errors import RunError\n"
        "try:\n"
        "    with Session() as session: raise RunError('this rank alone')\n"
        "except RunError as error: print(error)\n"
    )
    ended = launch(mpiexec, 1, program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "this rank alone\n", "")


def test_sys_exit_passes_through(mpiexec: list[str]) -> None:
    program = "import sys\nfrom goco_mpi.engine.session import Session\nwith Session() as session:\n    sys.exit(3)\n"
    ended = launch(mpiexec, 1, program)
    assert (ended.returncode, ended.stderr) == (3, "")
