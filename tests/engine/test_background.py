"""The progress thread: at work while a block is computed, and never beside the main thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.engine.background import Background
from goco_mpi.engine.gossip_exchange import GossipExchange
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


def test_it_drains_in_blocks_only() -> None:
    drained: list[str] = []
    where = "before the first block"
    background = Background(lambda: drained.append(where))  # its thread is not started: the test takes its looks

    def look_in(place: str) -> None:
        nonlocal where
        where = place
        background._look()

    look_in("before the first block")
    for k, _ in enumerate(background.around(opaque(3, lambda: look_in("a block")))):
        look_in(f"the main thread's turn {k}")
    look_in("after the last block")
    assert drained == ["a block"] * 3


class RecordingLock:
    """A lock that knows its owner, and tells when the main thread asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.owner: str | None = None
        self.asked_by_main = threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.asked_by_main.set()
        self._lock.acquire()
        self.owner = threading.current_thread().name

    def __exit__(self, *_: object) -> None:
        self.owner = None
        self._lock.release()


def test_the_main_thread_waits_for_a_look_under_way() -> None:
    order: list[str] = []
    owners: list[str | None] = []
    turn = RecordingLock()
    looking = threading.Event()

    def drain() -> None:  # lasts until the block is over and the main thread wants its turn
        owners.append(turn.owner)
        looking.set()
        assert turn.asked_by_main.wait(GUARD_S)
        owners.append(turn.owner)
        order.append("the look ends")

    background = Background(drain)
    background._turn = turn  # type: ignore[assignment]
    with background:
        for _ in background.around(opaque(1, lambda: assert_set(looking))):
            order.append("the main thread's turn")
    assert order == ["the look ends", "the main thread's turn"]
    assert owners == ["goco_mpi.background"] * 2


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
        background._look()
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
            for _ in background.around(opaque(1, background._look)):
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
