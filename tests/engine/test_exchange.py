"""The exchanges in isolation: what is mixed, who is waited for, how it ends."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.slots import GOODBYE, HEADER
from goco_mpi.engine.allreduce_exchange import AllreduceExchange
from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.gossip_exchange import GossipExchange
from goco_mpi.engine.session import Session
from goco_mpi.errors import RunError

INF = math.inf
POLL_S = 5e-5
LIMIT_S = 20.0
"""Bound on anything that would hang if it were wrong."""


def ring(session: Session) -> list[int]:
    near = {(session.rank - 1) % session.size, (session.rank + 1) % session.size}
    return sorted(near - {session.rank})


def star(session: Session) -> list[int]:
    return list(range(1, session.size)) if session.rank == 0 else [0]


def line(session: Session) -> list[int]:
    return [j for j in (session.rank - 1, session.rank + 1) if 0 <= j < session.size]


def gossip(
    session: Session,
    neighbors: Sequence[int],
    deadline_s: float,
    n_params: int = 3,
    arrives: Callable[[int, int], bool] = lambda source, round_: True,
) -> GossipExchange:
    return GossipExchange(session.comm, neighbors, n_params, Deadline(deadline_s, 1.0), POLL_S, arrives)


def say_goodbye(exchange: Exchange, round_: int, params: np.ndarray, failed: bool = False) -> None:
    exchange.blank()[:] = params
    exchange.close(round_, round_, failed, LIMIT_S)


def heard(exchange: Exchange, round_: int) -> list[np.ndarray]:
    """Return what has come of the neighbours who have sent anything."""
    _, inbox = exchange.inbox(round_)
    return [received.value for received in inbox if received.value is not None]


def offer(exchange: Exchange, round_: int, params: np.ndarray) -> None:
    exchange.blank()[:] = params
    exchange.offer(round_, round_)


def vector(rank: int, round_: int, n_params: int) -> np.ndarray:
    """Return what a rank sends in a round: different for every rank, round and place."""
    return 1000.0 * rank + round_ + np.arange(n_params) / n_params


def work(rank: int, round_: int) -> None:
    """Keep a rank busy for a scripted, very uneven time."""
    matrix = np.ones((40, 40))
    for _ in range(int(np.random.default_rng((rank, round_)).pareto(1.0) * 10) % 300):
        matrix = matrix @ matrix / 40.0


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("n_params", [3, 20_000], ids=["eager", "rendezvous"])
@pytest.mark.parametrize("neighbors", [ring, star, line])
def test_without_a_deadline_every_round_has_exactly_its_own_vectors(
    session: Session, neighbors: Callable[[Session], list[int]], n_params: int
) -> None:
    n_rounds = 25
    near = neighbors(session)
    exchange = gossip(session, near, INF, n_params)
    for t in range(n_rounds):
        work(session.rank, t)
        exchange.drain()
        own = vector(session.rank, t, n_params)
        offer(exchange, t, own)
        exchange.wait(t)
        sent, inbox = exchange.inbox(t)
        np.testing.assert_array_equal(sent, own)
        for j, received in zip(near, inbox, strict=True):
            assert received.age == 0
            assert received.value is not None
            np.testing.assert_array_equal(received.value, vector(j, t, n_params))
        assert exchange.steps() == [t] * len(near)
    say_goodbye(exchange, n_rounds, own)
    counts = exchange.counts()
    assert (counts.missed, counts.superseded, counts.suspected) == (0, 0, 0)
    assert counts.messages_sent == counts.messages_received == (n_rounds + 1) * len(near)
    assert counts.bytes_sent == counts.messages_sent * (HEADER + n_params) * 8
    assert not exchange.failed


@pytest.mark.mpi(min_size=2)
def test_scripted_loss_keeps_the_older_vector_and_says_how_old_it_is(session: Session) -> None:
    near = ring(session)
    # Of the rounds 0 to 5 only 1 and 3 arrive.
    exchange = gossip(session, near, INF, arrives=lambda source, round_: round_ in (1, 3))
    for t, newest in enumerate([None, 1, 1, 3, 3, 3]):
        offer(exchange, t, vector(session.rank, t, 3))
        exchange.wait(t)
        _, inbox = exchange.inbox(t)
        for j, received in zip(near, inbox, strict=True):
            if newest is None:
                assert received.value is None
            else:
                assert received.value is not None
                assert received.age == t - newest
                np.testing.assert_array_equal(received.value, vector(j, newest, 3))
        assert exchange.steps() == [-1 if newest is None else newest] * len(near)
    say_goodbye(exchange, 6, np.zeros(3))
    # A message lost by script was heard all the same: nobody was late.
    assert exchange.counts().missed == 0


@pytest.mark.mpi(min_size=2)
def test_with_no_time_to_wait_nobody_waits_and_the_last_message_still_arrives(session: Session) -> None:
    n_rounds = 40
    near = ring(session)
    exchange = gossip(session, near, 0.0)
    for t in range(n_rounds):
        work(session.rank, t)
        own = vector(session.rank, t, 3)
        offer(exchange, t, own)
        exchange.wait(t)
        _, inbox = exchange.inbox(t)
        for j, received, step in zip(near, inbox, exchange.steps(), strict=True):
            assert (received.value is None) == (step < 0)
            if received.value is not None:
                # Whichever of its rounds: whole, and as old as it is said to be.
                assert received.age == t - step
                np.testing.assert_array_equal(received.value, vector(j, step, 3))
    say_goodbye(exchange, n_rounds, vector(session.rank, n_rounds, 3))
    counts = exchange.counts()
    # Every offer was sent or replaced by a newer one, and all that was sent arrived.
    assert counts.messages_sent + counts.superseded == (n_rounds + 1) * len(near)
    totals = session.comm.allgather((counts.messages_sent, counts.messages_received))
    assert sum(sent for sent, _ in totals) == sum(received for _, received in totals)
    # The goodbye is the newest message of all, so it was not lost: everyone has heard its round.
    assert exchange.newest_round == n_rounds


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("deadline_s", [INF, 0.05, 0.0])
def test_neighbours_who_have_gone_get_a_goodbye_and_are_not_waited_for(session: Session, deadline_s: float) -> None:
    near = star(session)
    # Rank 0, the neighbour of all, leaves at once; the others go on for very different times.
    n_rounds = 0 if session.rank == 0 else 10 * session.rank
    exchange = gossip(session, near, deadline_s)
    for t in range(n_rounds):
        offer(exchange, t, np.ones(3))
        exchange.wait(t)
        for values in heard(exchange, t):
            np.testing.assert_array_equal(values, np.ones(3))
    say_goodbye(exchange, n_rounds, np.ones(3))
    counts = exchange.counts()
    if session.rank > 0:
        assert counts.messages_received == 1  # the goodbye
        if deadline_s == INF:
            assert counts.missed == 0  # nothing is owed by one who has said goodbye


@pytest.mark.mpi(min_size=2)
def test_a_failure_spreads_to_neighbours_of_neighbours(session: Session) -> None:
    exchange = gossip(session, line(session), 0.01)
    if session.rank == 0:
        say_goodbye(exchange, 0, np.ones(3), failed=True)
        return
    end = time.monotonic() + 2.0
    t = 0
    while not exchange.failed and time.monotonic() < end:
        offer(exchange, t, np.ones(3))
        exchange.wait(t)
        t += 1
    # Whoever stops on hearing of it did not fail itself, and passes it on nevertheless.
    failed = exchange.failed
    say_goodbye(exchange, t, np.ones(3))
    assert failed


@pytest.mark.mpi(min_size=2)
def test_thirty_exchanges_one_after_another_leave_nothing_behind(session: Session) -> None:
    near = ring(session)
    for cycle in range(30):
        exchange = gossip(session, near, INF if cycle % 2 else 0.0)
        for t in range(3):
            offer(exchange, t, np.full(3, float(cycle)))
            exchange.wait(t)
            # A message of an earlier exchange would show as another cycle's number.
            for values in heard(exchange, t):
                np.testing.assert_array_equal(values, cycle)
        say_goodbye(exchange, 3, np.full(3, float(cycle)))
    session.comm.Barrier()
    assert not session.comm.Iprobe()


@pytest.mark.mpi(min_size=2)
def test_a_silent_neighbour_is_waited_for_once_and_trusted_again_when_it_keeps_pace(session: Session) -> None:
    deadline_s = 0.03
    free, lockstep = 30, 12
    # A star, so that the counts of every other rank are about rank 0 alone.
    exchange = gossip(session, star(session), deadline_s)
    silent = session.rank == 0
    long_waits = 0

    def go_through(rounds: range) -> None:
        nonlocal long_waits
        if silent:  # it listens, and offers nothing
            end = time.monotonic() + LIMIT_S
            while exchange.newest_round < rounds[-1] and time.monotonic() < end:
                exchange.drain()
        else:
            for t in rounds:
                offer(exchange, t, np.ones(3))
                start = time.perf_counter()
                exchange.wait(t)
                long_waits += time.perf_counter() - start >= deadline_s
        request = session.comm.Ibarrier()
        while not request.Test():  # the last message may still wait behind the one before it
            exchange.drain()

    go_through(range(free))
    if not silent:
        counts = exchange.counts()
        assert (counts.missed, counts.suspected) == (free, 1)
        # Once by the protocol; the rest is for a machine that holds this process up.
        assert 1 <= long_waits <= free // 3

    for t in range(free, free + lockstep):
        offer(exchange, t, np.ones(3))
        session.comm.Barrier()  # rank 0 has sent this round before anybody looks for it
        exchange.wait(t)
    before = exchange.counts()
    session.comm.Barrier()
    if not silent:
        assert before.missed - free <= lockstep // 2

    go_through(range(free + lockstep, free + lockstep + 5))
    if not silent:
        # It could become a suspect once more only because it was trusted in between.
        assert exchange.counts().suspected >= 2
    say_goodbye(exchange, 100, np.ones(3))


@pytest.mark.mpi(min_size=1)
def test_a_rank_without_neighbours_goes_on_alone(session: Session) -> None:
    exchange = gossip(session, [], INF) if session.size == 1 else None
    if exchange is None:
        return  # graphs of more ranks are connected
    for t in range(3):
        offer(exchange, t, np.ones(3))
        exchange.wait(t)
        own, inbox = exchange.inbox(t)
        assert (own == 1.0).all()
        assert not inbox
    say_goodbye(exchange, 3, np.ones(3))
    assert exchange.counts().messages_sent == 0


@pytest.mark.mpi(min_size=1)
def test_allreduce_gives_the_mean_at_any_pace(session: Session) -> None:
    exchange = AllreduceExchange(session.comm, 4, POLL_S)
    for t in range(20):
        work(session.rank, t)
        exchange.drain()
        own = vector(session.rank, t, 4)
        offer(exchange, t, own)
        exchange.wait(t)
        sent, (mean,) = exchange.inbox(t)
        np.testing.assert_array_equal(sent, own)
        assert mean.value is not None
        assert mean.age == 0
        expected = np.mean([vector(j, t, 4) for j in range(session.size)], axis=0)
        np.testing.assert_allclose(mean.value, expected, rtol=1e-13)
    say_goodbye(exchange, 20, own)
    counts = exchange.counts()
    assert (counts.messages_sent, counts.messages_received) == (20, 20)
    assert counts.bytes_sent == 20 * (4 + 2) * 8
    assert not exchange.failed


@pytest.mark.mpi(min_size=3)
def test_a_rank_that_takes_nothing_in_does_not_silence_the_others(session: Session) -> None:
    # MPI has room for so many short messages of a rank, whomever they are for: those to a frozen rank must not fill it.
    near = [rank for rank in range(session.size) if rank != session.rank]
    exchange = gossip(session, near, 1e-3, n_params=100)
    directory = Path(session.comm.bcast(tempfile.mkdtemp() if session.rank == 0 else None))
    guard = time.monotonic() + LIMIT_S
    round_ = 0
    session.barrier()
    if session.rank == 0:
        while len(list(directory.iterdir())) < session.size - 1 and time.monotonic() < guard:
            time.sleep(0.01)
    else:
        edges = [edge for edge in exchange._edges if edge.neighbor > 0]
        # Far more messages than any MPI keeps, and then some more until all the others' have come.
        while round_ <= 20000 or any(edge.receive.heard_round < 20000 for edge in edges):
            assert time.monotonic() < guard, [edge.receive.heard_round for edge in edges]
            exchange.blank()[:] = round_
            exchange.offer(round_, round_)
            exchange.wait(round_)
            round_ += 1
        (directory / str(session.rank)).touch()
        while len(list(directory.iterdir())) < session.size - 1 and time.monotonic() < guard:
            exchange.drain()  # the others may still have to hear of this one
    say_goodbye(exchange, round_, np.zeros(100))
    if session.rank == 0:
        shutil.rmtree(directory)


@pytest.mark.mpi(min_size=2)
def test_a_neighbour_that_stands_still_after_its_goodbye_is_named(session: Session) -> None:
    exchange = gossip(session, {0: [1], 1: [0]}.get(session.rank, []), 0.0)
    if session.rank == 0:
        exchange._send(0, 0, GOODBYE)  # and from here on it takes nothing in
    elif session.rank == 1:
        (edge,) = exchange._edges
        edge.suspicion.suspect = True  # what goes to it is sent when it is received, and not before
        offer(exchange, 0, np.ones(3))  # into the receive that it has posted
        with pytest.raises(RunError, match=r"ranks \[0\] did not end"):
            exchange.close(0, 0, failed=False, time_limit_s=0.3)
    session.barrier()
    guard = time.monotonic() + LIMIT_S
    while any(edge.open for edge in exchange._edges):
        assert time.monotonic() < guard
        exchange.drain()
    exchange._dissolve(time.perf_counter() + LIMIT_S, LIMIT_S)
