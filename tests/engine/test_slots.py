"""The slots against a model network: no newest value is lost, no buffer is touched while in use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goco_mpi.engine.slots import FAILED, GOODBYE, HEADER, Message, Outbox, ReceiveSlot, SendSlot

N_PARAMS = 3


class FakeLink:
    """Stands for MPI: keeps every buffer that a transfer was started on, and what it held then."""

    def __init__(self) -> None:
        self.memory = np.zeros((2, HEADER + N_PARAMS))
        self.buffers: list[np.ndarray] = []
        self.contents: list[np.ndarray] = []

    def send(self, message: Message) -> object:
        return self._start(message.buffer)

    def receive(self, index: int) -> object:
        return self._start(self.memory[index])

    def _start(self, buffer: np.ndarray) -> object:
        self.buffers.append(buffer)
        self.contents.append(buffer.copy())
        return object()

    @property
    def rounds(self) -> list[int]:
        return [int(content[0]) for content in self.contents]


def write(outbox: Outbox, round_: int, flags: int = 0) -> Message:
    """Return a message whose every number tells its round."""
    message = outbox.blank()
    message.buffer[:2] = round_, flags
    message.params[:] = round_
    return message


class SendingRank(RuleBasedStateMachine):
    """One rank that offers vectors to several neighbours, whose sends complete in any order."""

    @initialize(degree=st.integers(1, 4))
    def start(self, degree: int) -> None:
        self.outbox = Outbox(N_PARAMS)
        self.links = [FakeLink() for _ in range(degree)]
        self.slots = [SendSlot(link.send) for link in self.links]
        self.completed = [0] * degree
        self.messages: list[object] = []  # every Message ever handed out, once each
        self.newest = -1

    @rule(flags=st.sampled_from([0, GOODBYE, FAILED]))
    def offer(self, flags: int) -> None:
        self.newest += 1
        message = write(self.outbox, self.newest, flags)
        if not any(message is known for known in self.messages):
            self.messages.append(message)
        for slot in self.slots:
            slot.offer(message)

    @precondition(lambda self: any(slot.request is not None for slot in self.slots))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from([i for i, slot in enumerate(self.slots) if slot.request is not None]))
        self.completed[place] += 1
        self.slots[place].complete()

    @invariant()
    def at_most_one_send_is_in_flight(self) -> None:
        for slot, link, completed in zip(self.slots, self.links, self.completed, strict=True):
            in_flight = len(link.buffers) - completed
            assert in_flight in (0, 1)
            assert (in_flight == 0) == (slot.request is None)
            assert slot.n_sent == len(link.buffers)

    @invariant()
    def a_buffer_in_flight_holds_what_was_linked(self) -> None:
        for slot, link in zip(self.slots, self.links, strict=True):
            if slot.request is not None:
                np.testing.assert_array_equal(link.buffers[-1], link.contents[-1])

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
        for slot, link in zip(self.slots, self.links, strict=True):
            while slot.request is not None:
                np.testing.assert_array_equal(link.buffers[-1], link.contents[-1])
                slot.complete()
            assert link.rounds == sorted(set(link.rounds))
            assert link.rounds[-1:] == ([self.newest] if self.newest >= 0 else [])
            assert all((content[HEADER:] == content[0]).all() for content in link.contents)
        assert all(message.users == 0 for message in self.messages)


class ReceivingRank(RuleBasedStateMachine):
    """One neighbour's messages arrive in a slot; some are lost by script."""

    def __init__(self) -> None:
        super().__init__()
        self.link = FakeLink()
        self.slot = ReceiveSlot(self.link.memory, self.link.receive)
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

        # What the network does: it writes into the linked buffer, at a time of its own.
        self.link.buffers[-1][:] = [self.round, flags, 0.0, self.heard, *[self._payload(self.heard)] * N_PARAMS]
        self.check_value()  # before the slot hears of it, what it holds is untouched
        if not lost:
            self.kept, self.kept_round = self.heard, self.round
        self.slot.complete(arrives)
        assert asked == [self.round]
        assert self.slot.flags == flags
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
            assert (self.slot.value_round, self.slot.value_step) == (-1, -1)
        else:
            assert self.slot.value is not None
            assert self.slot.value.tolist() == [self._payload(self.kept)] * N_PARAMS
            assert (self.slot.value_round, self.slot.value_step) == (self.kept_round, self.kept)

    @invariant()
    def counts_what_came(self) -> None:
        assert self.slot.n_received == self.heard
        assert self.slot.heard_round == (self.round if self.heard else -1)

    @invariant()
    def the_linked_buffer_is_not_the_value(self) -> None:
        if self.slot.value is not None and self.slot.request is not None:
            assert not np.shares_memory(self.link.buffers[-1], self.slot.value)

    @invariant()
    def one_receive_is_linked_until_the_goodbye(self) -> None:
        assert len(self.link.buffers) == self.heard + (not self.ended)
        assert (self.slot.request is None) == self.ended


STEPS = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSendingRank = SendingRank.TestCase
TestSendingRank.settings = STEPS
TestReceivingRank = ReceivingRank.TestCase
TestReceivingRank.settings = STEPS


def test_a_slow_receiver_gets_the_first_and_the_last() -> None:
    outbox, link = Outbox(N_PARAMS), FakeLink()
    slot = SendSlot(link.send)
    for round_ in range(100):
        slot.offer(write(outbox, round_))
        assert slot.crowded == (round_ > 0)
    slot.complete()
    slot.complete()
    assert link.rounds == [0, 99]
    assert (slot.n_sent, slot.n_superseded, slot.request) == (2, 98, None)


def test_completing_an_idle_slot_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        SendSlot(FakeLink().send).complete()


def test_the_newest_message_is_kept_when_an_older_one_follows() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    for round_ in (5, 3):
        link.buffers[-1][:] = [round_, 0, 0.0, round_, *[round_] * N_PARAMS]
        slot.complete(lambda _: True)
    assert (slot.value_round, slot.heard_round) == (5, 5)
    assert slot.value is not None and slot.value.tolist() == [5.0] * N_PARAMS


def test_losing_the_goodbye_by_script_keeps_the_older_value_and_ends_all_the_same() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    for round_, flags in ((1, 0), (2, GOODBYE | FAILED)):
        link.buffers[-1][:] = [round_, flags, 0.0, round_, *[round_] * N_PARAMS]
        slot.complete(lambda round_: round_ == 1)
    assert (slot.value_round, slot.heard_round, slot.goodbye, slot.flags) == (1, 2, True, GOODBYE | FAILED)
    assert len(link.buffers) == 2  # the first, and the one after round 1; none after the goodbye
