"""The exchanges in isolation: what is mixed, who is waited for, how it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from goco_mpi.engine.deadline import Deadline
from goco_mpi.engine.exchange import AllreduceExchange, GossipExchange
from goco_mpi.engine.session import Session

INF = math.inf
POLL_S = 5e-5
LIMIT_S = 20.0
"""Bound on anything that would hang if it were wrong."""


@contextmanager
def ranks() -> Iterator[Session]:
    with Session() as session:
        yield session


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
    age_limit: int = 20,
    arrives: Callable[[int, int], bool] = lambda source, round_: True,
) -> GossipExchange:
    weights = np.array([0.5 / len(neighbors) / (1 + place) for place in range(len(neighbors))])
    return GossipExchange(
        session.comm, neighbors, weights, n_params, age_limit, Deadline(deadline_s, 1.0), POLL_S, arrives
    )


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
def test_without_a_deadline_every_round_mixes_exactly_its_own_vectors(
    neighbors: Callable[[Session], list[int]], n_params: int
) -> None:
    n_rounds = 25
    with ranks() as session:
        near = neighbors(session)
        exchange = gossip(session, near, INF, n_params)
        weights = [0.5 / len(near) / (1 + place) for place in range(len(near))]
        out = np.empty(n_params)
        for t in range(n_rounds):
            work(session.rank, t)
            exchange.drain()
            own = vector(session.rank, t, n_params)
            exchange.offer(t, own)
            exchange.wait(t)
            exchange.result(t, own, out)
            expected = own * (1.0 - sum(weights))
            for weight, j in zip(weights, near, strict=True):
                expected += weight * vector(j, t, n_params)
            np.testing.assert_allclose(out, expected, rtol=1e-13)
        exchange.close(n_rounds, own, False, LIMIT_S)
        counts = exchange.counts()
        assert (counts.missed, counts.superseded, counts.suspected) == (0, 0, 0)
        assert counts.messages_sent == counts.messages_received == (n_rounds + 1) * len(near)
        assert counts.bytes_sent == counts.messages_sent * (2 + n_params) * 8
        assert not exchange.failed


@pytest.mark.mpi(min_size=2)
def test_the_vector_offered_may_be_overwritten_at_once() -> None:
    with ranks() as session:
        near = ring(session)
        exchange = gossip(session, near, INF, n_params=20_000)
        own, out = np.empty(20_000), np.empty(20_000)
        for t in range(5):
            own[:] = t + 1.0
            exchange.offer(t, own)
            own[:] = np.nan  # a message too large to be on its way already must not see this
            exchange.wait(t)
            exchange.result(t, np.full(20_000, t + 1.0), out)
            np.testing.assert_allclose(out, t + 1.0)
        exchange.close(5, np.zeros(20_000), False, LIMIT_S)


@pytest.mark.mpi(min_size=2)
def test_scripted_loss_keeps_the_older_vector_up_to_the_age_limit() -> None:
    with ranks() as session:
        near = ring(session)
        # Only round 0 arrives; it may be mixed in the rounds 0 to 3.
        exchange = gossip(session, near, INF, age_limit=3, arrives=lambda source, round_: round_ == 0)
        out = np.empty(3)
        for t in range(6):
            exchange.offer(t, np.full(3, 1.0))
            exchange.wait(t)
            exchange.result(t, np.zeros(3), out)
            assert (out > 0.0).all() == (t <= 3)
        exchange.close(6, np.zeros(3), False, LIMIT_S)
        # A message lost by script was heard all the same: nobody was late.
        assert exchange.counts().missed == 0


@pytest.mark.mpi(min_size=2)
def test_with_no_time_to_wait_nobody_waits_and_the_last_message_still_arrives() -> None:
    n_rounds = 40
    with ranks() as session:
        near = ring(session)
        exchange = gossip(session, near, 0.0)
        out = np.empty(3)
        for t in range(n_rounds):
            work(session.rank, t)
            own = vector(session.rank, t, 3)
            exchange.offer(t, own)
            exchange.wait(t)
            exchange.result(t, own, out)
            assert np.isfinite(out).all()
        exchange.close(n_rounds, vector(session.rank, n_rounds, 3), False, LIMIT_S)
        counts = exchange.counts()
        # Every offer was sent or replaced by a newer one, and all that was sent arrived.
        assert counts.messages_sent + counts.superseded == (n_rounds + 1) * len(near)
        totals = session.comm.allgather((counts.messages_sent, counts.messages_received))
        assert sum(sent for sent, _ in totals) == sum(received for _, received in totals)
        # The goodbye is the newest message of all, so it was not lost: everyone has heard its round.
        assert exchange.newest_round == n_rounds


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("deadline_s", [INF, 0.05, 0.0])
def test_neighbours_who_have_gone_get_a_goodbye_and_are_not_waited_for(deadline_s: float) -> None:
    with ranks() as session:
        near = star(session)
        # Rank 0, the neighbour of all, leaves at once; the others go on for very different times.
        n_rounds = 0 if session.rank == 0 else 10 * session.rank
        exchange = gossip(session, near, deadline_s)
        out = np.empty(3)
        for t in range(n_rounds):
            exchange.offer(t, np.ones(3))
            exchange.wait(t)
            exchange.result(t, np.ones(3), out)
        exchange.close(n_rounds, np.ones(3), False, LIMIT_S)
        counts = exchange.counts()
        if session.rank > 0:
            assert counts.messages_received == 1  # the goodbye
            if deadline_s == INF:
                assert counts.missed == 0  # nothing is owed by one who has said goodbye


@pytest.mark.mpi(min_size=2)
def test_a_failure_spreads_to_neighbours_of_neighbours() -> None:
    with ranks() as session:
        exchange = gossip(session, line(session), 0.01)
        out = np.empty(3)
        if session.rank == 0:
            exchange.close(0, np.ones(3), True, LIMIT_S)
            return
        end = time.monotonic() + 2.0
        t = 0
        while not exchange.failed and time.monotonic() < end:
            exchange.offer(t, np.ones(3))
            exchange.wait(t)
            exchange.result(t, np.ones(3), out)
            t += 1
        # Whoever stops on hearing of it did not fail itself, and passes it on nevertheless.
        heard = exchange.failed
        exchange.close(t, np.ones(3), False, LIMIT_S)
        assert heard


@pytest.mark.mpi(min_size=2)
def test_thirty_exchanges_one_after_another_leave_nothing_behind() -> None:
    with ranks() as session:
        near = ring(session)
        for cycle in range(30):
            exchange = gossip(session, near, INF if cycle % 2 else 0.0)
            out = np.empty(3)
            for t in range(3):
                exchange.offer(t, np.full(3, float(cycle)))
                exchange.wait(t)
                exchange.result(t, np.full(3, float(cycle)), out)
                # A message of an earlier exchange would show as another cycle's number.
                np.testing.assert_allclose(out, cycle)
            exchange.close(3, np.full(3, float(cycle)), False, LIMIT_S)
        session.comm.Barrier()
        assert not session.comm.Iprobe()


@pytest.mark.mpi(min_size=2)
def test_a_silent_neighbour_is_waited_for_once_and_trusted_again_when_it_keeps_pace() -> None:
    deadline_s = 0.03
    free, lockstep = 30, 12
    with ranks() as session:
        # A star, so that the counts of every other rank are about rank 0 alone.
        exchange = gossip(session, star(session), deadline_s)
        silent = session.rank == 0
        out = np.empty(3)
        long_waits = 0

        def go_through(rounds: range) -> None:
            nonlocal long_waits
            if silent:  # it listens, and offers nothing
                end = time.monotonic() + LIMIT_S
                while exchange.newest_round < rounds[-1] and time.monotonic() < end:
                    exchange.drain()
            else:
                for t in rounds:
                    exchange.offer(t, np.ones(3))
                    start = time.perf_counter()
                    exchange.wait(t)
                    long_waits += time.perf_counter() - start >= deadline_s
                    exchange.result(t, np.ones(3), out)
            session.comm.Barrier()

        go_through(range(free))
        if not silent:
            counts = exchange.counts()
            assert (counts.missed, counts.suspected) == (free, 1)
            # Once by the protocol; the rest is for a machine that holds this process up.
            assert 1 <= long_waits <= free // 3

        for t in range(free, free + lockstep):
            exchange.offer(t, np.ones(3))
            session.comm.Barrier()  # rank 0 has sent this round before anybody looks for it
            exchange.wait(t)
            exchange.result(t, np.ones(3), out)
        before = exchange.counts()
        session.comm.Barrier()
        if not silent:
            assert before.missed - free <= lockstep // 2

        go_through(range(free + lockstep, free + lockstep + 5))
        if not silent:
            # It could become a suspect once more only because it was trusted in between.
            assert exchange.counts().suspected >= 2
        exchange.close(100, np.ones(3), False, LIMIT_S)


@pytest.mark.mpi(min_size=2)
def test_a_neighbour_that_never_ends_is_an_error_that_names_it() -> None:
    with ranks() as session:
        exchange = gossip(session, ring(session), 0.0)
        if session.rank == 0:
            with pytest.raises(Exception, match=r"deadline\.shutdown_s = 0\.05") as caught:
                exchange.close(0, np.ones(3), False, 0.05)
            named = str(caught.value)
            # The others, rank 1 among them, hold their goodbye back until rank 0 has given up.
            assert "ranks [1" in named
        session.comm.Barrier()
        if session.rank > 0:
            exchange.close(0, np.ones(3), False, LIMIT_S)
        else:
            exchange.close(0, np.ones(3), False, LIMIT_S)  # rank 0 had said goodbye: this ends the rest


@pytest.mark.mpi(min_size=1)
def test_a_rank_without_neighbours_goes_on_alone() -> None:
    with ranks() as session:
        exchange = gossip(session, [], INF) if session.size == 1 else None
        if exchange is None:
            return  # graphs of more ranks are connected
        out = np.empty(3)
        for t in range(3):
            exchange.offer(t, np.ones(3))
            exchange.wait(t)
            exchange.result(t, np.full(3, 5.0), out)
            assert (out == 5.0).all()
        exchange.close(3, np.ones(3), False, LIMIT_S)
        assert exchange.counts().messages_sent == 0


@pytest.mark.mpi(min_size=1)
def test_allreduce_gives_the_mean_at_any_pace() -> None:
    with ranks() as session:
        exchange = AllreduceExchange(session.comm, 4, POLL_S)
        out = np.empty(4)
        for t in range(20):
            work(session.rank, t)
            exchange.drain()
            own = vector(session.rank, t, 4)
            exchange.offer(t, own)
            own[:] = np.nan  # a copy was offered
            exchange.wait(t)
            exchange.result(t, own, out)
            expected = np.mean([vector(j, t, 4) for j in range(session.size)], axis=0)
            np.testing.assert_allclose(out, expected, rtol=1e-13)
        exchange.close(20, own, False, LIMIT_S)
        counts = exchange.counts()
        assert (counts.messages_sent, counts.messages_received) == (20, 20)
        assert counts.bytes_sent == 20 * 4 * 8
        assert not exchange.failed
