"""The slots against a model network: no newest value is lost, no buffer is touched while in use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goco_mpi.engine.slots import FAILED, GOODBYE, HEADER, Outbox, ReceiveSlot, SendSlot

N_PARAMS = 3


class FakePost:
    """Stands for Isend or Irecv: keeps every posted buffer and what it held at that moment."""

    def __init__(self) -> None:
        self.buffers: list[np.ndarray] = []
        self.contents: list[np.ndarray] = []

    def __call__(self, buffer: np.ndarray) -> object:
        self.buffers.append(buffer)
        self.contents.append(buffer.copy())
        return object()

    @property
    def rounds(self) -> list[int]:
        return [int(content[0]) for content in self.contents]


class SendingRank(RuleBasedStateMachine):
    """One rank that offers vectors to several neighbours, whose sends complete in any order."""

    @initialize(degree=st.integers(1, 4))
    def start(self, degree: int) -> None:
        self.outbox = Outbox(N_PARAMS)
        self.posts = [FakePost() for _ in range(degree)]
        self.slots = [SendSlot(post) for post in self.posts]
        self.completed = [0] * degree
        self.messages: list[object] = []  # every Message ever handed out, once each
        self.newest = -1

    @rule(flags=st.sampled_from([0, GOODBYE, FAILED]))
    def offer(self, flags: int) -> None:
        self.newest += 1
        message = self.outbox.write(self.newest, flags, np.full(N_PARAMS, float(self.newest)))
        assert message.buffer.tolist() == [self.newest, flags, *[self.newest] * N_PARAMS]
        if not any(message is known for known in self.messages):
            self.messages.append(message)
        for slot in self.slots:
            slot.offer(message)

    @precondition(lambda self: any(not slot.idle for slot in self.slots))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from([i for i, slot in enumerate(self.slots) if not slot.idle]))
        self.completed[place] += 1
        self.slots[place].complete()

    @invariant()
    def at_most_one_send_is_in_flight(self) -> None:
        for slot, post, completed in zip(self.slots, self.posts, self.completed, strict=True):
            in_flight = len(post.buffers) - completed
            assert in_flight in (0, 1)
            assert slot.idle == (in_flight == 0) == (slot.request is None)
            assert slot.n_sent == len(post.buffers)

    @invariant()
    def a_buffer_in_flight_holds_what_was_posted(self) -> None:
        for slot, post in zip(self.slots, self.posts, strict=True):
            if not slot.idle:
                np.testing.assert_array_equal(post.buffers[-1], post.contents[-1])

    @invariant()
    def every_offer_was_sent_or_superseded_or_waits(self) -> None:
        for slot in self.slots:
            assert slot.n_sent + slot.n_superseded + slot.crowded == self.newest + 1

    @invariant()
    def memory_is_bounded(self) -> None:
        # One message in flight for every neighbour, the newest that waits, and one to fill.
        assert len(self.messages) <= len(self.slots) + 2

    def teardown(self) -> None:
        """Let every send complete: the last offer must be the last sent, and rounds must rise."""
        if not hasattr(self, "slots"):
            return
        for slot, post in zip(self.slots, self.posts, strict=True):
            while not slot.idle:
                np.testing.assert_array_equal(post.buffers[-1], post.contents[-1])
                slot.complete()
            assert post.rounds == sorted(set(post.rounds))
            assert post.rounds[-1:] == ([self.newest] if self.newest >= 0 else [])
            assert all((content[HEADER:] == content[0]).all() for content in post.contents)
        assert all(message.users == 0 for message in self.messages)


class ReceivingRank(RuleBasedStateMachine):
    """One neighbour's messages arrive in a slot; some are lost by script."""

    def __init__(self) -> None:
        super().__init__()
        self.post = FakePost()
        self.slot = ReceiveSlot(N_PARAMS, self.post)
        self.round = 0
        self.heard = 0
        self.kept: int | None = None
        self.ended = False

    @precondition(lambda self: not self.ended)
    @rule(step=st.integers(0, 3), lost=st.booleans(), flags=st.sampled_from([0, 0, 0, FAILED, GOODBYE]))
    def arrive(self, step: int, lost: bool, flags: int) -> None:
        self.round += step
        self.heard += 1
        self.ended = flags == GOODBYE
        asked: list[int] = []

        def arrives(round_: int) -> bool:
            asked.append(round_)
            return not lost

        # What the network does: it writes into the posted buffer, at a time of its own.
        self.post.buffers[-1][:] = [self.round, flags, *[self._payload(self.heard)] * N_PARAMS]
        self.check_value()  # before the slot hears of it, what it holds is untouched
        if not lost:
            self.kept, self.kept_round = self.heard, self.round
        self.slot.complete(arrives)
        assert asked == [self.round]
        assert self.slot.failed == (flags == FAILED)
        assert self.slot.goodbye == self.ended

    @precondition(lambda self: self.ended)
    @rule()
    def stay_silent(self) -> None:
        """After the goodbye nothing comes; the invariants still hold."""

    @staticmethod
    def _payload(serial: int) -> float:
        return serial + 0.5

    @invariant()
    def check_value(self) -> None:
        if self.kept is None:
            assert self.slot.value is None
            assert self.slot.value_round is None
        else:
            assert self.slot.value is not None
            assert self.slot.value.tolist() == [self._payload(self.kept)] * N_PARAMS
            assert self.slot.value_round == self.kept_round

    @invariant()
    def counts_what_came(self) -> None:
        assert self.slot.n_received == self.heard
        assert self.slot.heard_round == (self.round if self.heard else -1)

    @invariant()
    def the_posted_buffer_is_not_the_value(self) -> None:
        if self.slot.value is not None and self.slot.request is not None:
            assert not np.shares_memory(self.post.buffers[-1], self.slot.value)

    @invariant()
    def one_receive_is_posted_until_the_goodbye(self) -> None:
        assert len(self.post.buffers) == self.heard + (not self.ended)
        assert (self.slot.request is None) == self.ended


STEPS = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSendingRank = SendingRank.TestCase
TestSendingRank.settings = STEPS
TestReceivingRank = ReceivingRank.TestCase
TestReceivingRank.settings = STEPS


def test_a_slow_receiver_gets_the_first_and_the_last() -> None:
    outbox, post = Outbox(N_PARAMS), FakePost()
    slot = SendSlot(post)
    for round_ in range(100):
        slot.offer(outbox.write(round_, 0, np.zeros(N_PARAMS)))
        assert slot.crowded == (round_ > 0)
    slot.complete()
    slot.complete()
    assert post.rounds == [0, 99]
    assert (slot.n_sent, slot.n_superseded, slot.idle) == (2, 98, True)


def test_completing_an_idle_slot_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        SendSlot(FakePost()).complete()


def test_a_message_is_copied_from_the_parameters() -> None:
    params = np.ones(N_PARAMS)
    message = Outbox(N_PARAMS).write(0, 0, params)
    params[:] = 7.0
    assert message.buffer[HEADER:].tolist() == [1.0] * N_PARAMS


def test_the_newest_message_is_kept_when_an_older_one_follows() -> None:
    post = FakePost()
    slot = ReceiveSlot(N_PARAMS, post)
    for round_ in (5, 3):
        post.buffers[-1][:] = [round_, 0, *[round_] * N_PARAMS]
        slot.complete(lambda _: True)
    assert (slot.value_round, slot.heard_round) == (5, 5)
    assert slot.value is not None and slot.value.tolist() == [5.0] * N_PARAMS


def test_losing_the_goodbye_by_script_keeps_the_older_value_and_ends_all_the_same() -> None:
    post = FakePost()
    slot = ReceiveSlot(N_PARAMS, post)
    for round_, flags in ((1, 0), (2, GOODBYE | FAILED)):
        post.buffers[-1][:] = [round_, flags, *[round_] * N_PARAMS]
        slot.complete(lambda round_: round_ == 1)
    assert (slot.value_round, slot.heard_round, slot.goodbye, slot.failed) == (1, 2, True, True)
    assert len(post.buffers) == 2  # the first, and the one after round 1; none after the goodbye
