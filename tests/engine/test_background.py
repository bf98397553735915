"""The progress thread: at work while a block is computed, and never beside the main thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.engine.background import PERIOD_S, Background
from goco_mpi.engine.deadline import Deadline
from goco_mpi.engine.exchange import GossipExchange
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train

GUARD_S = 30.0
"""Bound on anything that would hang if it were wrong."""
LARGE = 1_000_000
"""Numbers in a message that no MPI moves without being called."""


def opaque(n_blocks: int, computing: Callable[[], None]) -> Iterator[None]:
    """Yield after each of some calls into a library that looks at no messages."""
    for _ in range(n_blocks):
        computing()
        yield


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "goco_mpi.background"]


def test_it_drains_while_every_block_is_computed() -> None:
    drained = threading.Event()
    before = names()
    with Background(drained.set) as background:
        assert len(names()) == len(before) + 1

        def computing() -> None:
            drained.clear()
            assert drained.wait(GUARD_S)  # releases Python's lock, as a library does

        assert sum(1 for _ in background.around(opaque(20, computing))) == 20
    assert names() == before


def test_it_never_drains_while_the_main_thread_has_its_turn() -> None:
    mains_turn = True
    trespasses: list[str] = []
    threads: set[str] = set()
    drained = threading.Event()

    def drain() -> None:
        threads.add(threading.current_thread().name)
        drained.set()  # the block ends now, and this look lasts longer: the main thread has to wait for it
        for when in ("at first", "at last"):
            if mains_turn:
                trespasses.append(when)
            time.sleep(PERIOD_S)

    def blocks() -> Iterator[None]:
        for _ in range(30):
            drained.clear()
            assert drained.wait(GUARD_S)
            yield

    with Background(drain) as background:
        time.sleep(10 * PERIOD_S)
        running = background.around(blocks())
        while True:
            mains_turn = False
            if next(running, "over") == "over":
                break
            mains_turn = True
            time.sleep(10 * PERIOD_S)  # room for a thread that does not keep to the rule
        mains_turn = True
        time.sleep(10 * PERIOD_S)
    time.sleep(10 * PERIOD_S)
    assert trespasses == []
    assert threads == {"goco_mpi.background"}


def test_it_passes_on_what_the_blocks_yield_and_no_more() -> None:
    with Background(lambda: None) as background:
        for n_blocks in (0, 1, 5):
            computed: list[int] = []
            blocks = opaque(n_blocks, partial(computed.append, 1))
            assert sum(1 for _ in background.around(blocks)) == len(computed) == n_blocks


def test_a_gradient_that_is_left_in_the_middle_leaves_the_thread_idle() -> None:
    calls = 0
    looked = threading.Event()

    def drain() -> None:
        nonlocal calls
        calls += 1
        looked.set()

    with Background(drain) as background:
        for _ in background.around(opaque(5, lambda: assert_set(looked))):
            break
        calls_then = calls
        time.sleep(20 * PERIOD_S)
        assert calls == calls_then


def assert_set(event: threading.Event) -> None:
    assert event.wait(GUARD_S)


def test_an_error_in_drain_is_raised_in_the_main_thread_and_ends_the_looking() -> None:
    calls = 0
    called = threading.Event()

    def drain() -> None:
        nonlocal calls
        calls += 1
        called.set()
        raise ValueError("the network is gone")

    before = names()
    with Background(drain) as background:
        with pytest.raises(ValueError, match="the network is gone"):
            for _ in background.around(opaque(1, lambda: assert_set(called))):
                raise AssertionError("the block's end is where the error shows")
        # And it stays an error: no later block hides it.
        with pytest.raises(ValueError, match="the network is gone"):
            for _ in background.around(opaque(1, lambda: time.sleep(10 * PERIOD_S))):
                raise AssertionError("not an error any more")
    assert calls == 1
    assert names() == before


def test_an_error_in_a_block_passes_through_and_the_thread_ends() -> None:
    def blocks() -> Iterator[None]:
        yield
        raise ArithmeticError("no gradient")

    before = names()
    with pytest.raises(ArithmeticError, match="no gradient"), Background(lambda: None) as background:
        for _ in background.around(blocks()):
            pass
    assert names() == before


def test_it_ends_even_if_nothing_was_ever_computed() -> None:
    before = names()
    with Background(lambda: None):
        pass
    assert names() == before


@pytest.mark.mpi(min_size=2)
def test_a_large_message_arrives_before_an_opaque_block_ends(session: Session) -> None:
    # The even ranks are in one long call that looks at no messages, and that ends only once their neighbours'
    # vectors are in. Without the thread nobody would take them in, and the guard would end it.
    near = sorted({(session.rank - 1) % session.size, (session.rank + 1) % session.size} - {session.rank})
    exchange = GossipExchange(session.comm, near, LARGE, Deadline(GUARD_S, 1.0), 5e-5)
    own = np.full(LARGE, 1.0 + session.rank)
    in_library = session.rank % 2 == 0
    order: list[str] = []

    def computing() -> None:
        matrix = np.eye(100)
        end = time.monotonic() + GUARD_S
        while time.monotonic() < end and not heard_all():
            matrix = matrix @ matrix  # releases Python's lock
        order.append("the messages are there" if heard_all() else "still nothing")

    def heard_all() -> bool:
        return not np.isnan(exchange.arrivals()[0]).any()

    exchange.blank()[:] = own
    exchange.offer(0, 0)
    if in_library:
        with Background(exchange.drain) as background:
            for _ in background.around(opaque(1, computing)):
                order.append("the block ended")
        assert order == ["the messages are there", "the block ended"]
    exchange.wait(0)
    sent, inbox = exchange.inbox(0)
    np.testing.assert_array_equal(sent, own)
    assert exchange.steps() == [0] * len(near)
    for j, received in zip(near, inbox, strict=True):
        assert received.age == 0
        assert received.value is not None
        np.testing.assert_array_equal(received.value, np.full(LARGE, 1.0 + j))
    session.barrier()  # nobody says goodbye before all have looked
    exchange.blank()[:] = own
    exchange.close(1, 1, False, GUARD_S)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
def test_a_whole_run_with_it_ends_in_the_same_parameters(session: Session, late: str) -> None:
    def parameters(progress_thread: bool) -> np.ndarray | None:
        raw = {
            "rounds": 20,
            "data": {"source": "breast_cancer", "partition": "by_label", "shards": 8, "standardize": True},
            "objective": {"kind": "logistic", "l2": 1e-2},
            "topology": {"kind": "ring"},
            "placement": {"replication": min(2, session.size)},
            "method": {"late": late},
            # Gradients that last, so that the thread has something to do.
            "stragglers": {"kind": "bernoulli", "p": 0.3, "link_p": 0.2, "work_s": 2e-3},
            "deadline": {"compute_s": "inf", "gossip_s": "inf", "progress_thread": progress_thread},
            "record": {"every": 10},
        }
        outcome = train(parse_config(raw), session)
        return None if outcome is None else outcome.stacked_params

    without, with_thread = parameters(False), parameters(True)
    if without is not None:
        assert np.abs(without).max() > 1e-3
        np.testing.assert_array_equal(with_thread, without)
