"""The slots against a model network: no newest value is lost, no buffer is touched while in use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.slots import FAILED, GOODBYE, HEADER, LOST, STOPPED, Message, Outbox, ReceiveSlot, SendSlot
from goco_mpi.engine.gossip_exchange import GossipExchange
from goco_mpi.engine.session import Session

N_PARAMS = 3
N_BULLETIN = 2


class FakeLink:
    """Stands for MPI: keeps every buffer that a transfer was started on, and what it held then."""

    def __init__(self, n_bulletin: int = 0) -> None:
        self.memory = np.zeros((2, HEADER + n_bulletin + N_PARAMS))
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
    message.write_header(round_, flags, 0.0, round_)
    message.bulletin[:] = round_
    message.params[:] = round_
    return message


class SendingRank(RuleBasedStateMachine):
    """One rank that offers vectors to several neighbours, whose sends complete in any order."""

    @initialize(degree=st.integers(1, 4), n_bulletin=st.sampled_from([0, N_BULLETIN]))
    def start(self, degree: int, n_bulletin: int) -> None:
        self.outbox = Outbox(N_PARAMS, n_bulletin)
        self.held: Message | None = None  # the rank's own: it mixes with what it sent last
        self.links = [FakeLink() for _ in range(degree)]
        self.slots = [SendSlot(link.send) for link in self.links]
        self.completed = [0] * degree
        self.messages: list[object] = []  # every Message ever handed out, once each
        self.newest = -1

    def buffers_in_flight(self) -> list[np.ndarray]:
        pairs = zip(self.slots, self.links, strict=True)
        return [link.buffers[-1] for slot, link in pairs if slot.request is not None]

    @rule(flags=st.sampled_from([0, GOODBYE, FAILED, STOPPED]))
    def offer(self, flags: int) -> None:
        self.newest += 1
        if self.held is not None:
            self.held.users -= 1
        before = [buffer.copy() for buffer in self.buffers_in_flight()]
        message = write(self.outbox, self.newest, flags)
        for buffer, content in zip(self.buffers_in_flight(), before, strict=True):
            assert not np.shares_memory(buffer, message.buffer)
            np.testing.assert_array_equal(buffer, content)
        self.held = message
        message.users += 1
        if not any(message is known for known in self.messages):
            self.messages.append(message)
        for slot in self.slots:
            slot.offer(message)

    @precondition(lambda self: self.held is not None)
    @rule()
    def look_for_a_blank(self) -> None:
        """What is handed out is neither in flight, nor waiting, nor the rank's own."""
        blank = self.outbox.blank()
        assert blank is not self.held
        assert not any(np.shares_memory(buffer, blank.buffer) for buffer in self.buffers_in_flight())
        blank.buffer[:] = -1.0  # nobody minds: were it waiting in a slot, it would be sent like this
        if not any(blank is known for known in self.messages):
            self.messages.append(blank)

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
        if self.held is not None:
            assert (self.held.params == self.newest).all()
            self.held.users -= 1
        assert all(message.users == 0 for message in self.messages)


class ReceivingRank(RuleBasedStateMachine):
    """One neighbour's messages arrive in a slot; some are lost by script."""

    @initialize(n_bulletin=st.sampled_from([0, N_BULLETIN]))
    def start(self, n_bulletin: int) -> None:
        self.link = FakeLink(n_bulletin)
        self.slot = ReceiveSlot(self.link.memory, self.link.receive, n_bulletin)
        self.n_bulletin = n_bulletin
        self.round = 0
        self.heard = 0
        self.kept: int | None = None
        self.ended = False

    @precondition(lambda self: not self.ended)
    @rule(
        step=st.integers(0, 3), lost=st.booleans(), flags=st.sampled_from([0, 0, 0, FAILED, GOODBYE, GOODBYE | STOPPED])
    )
    def arrive(self, step: int, lost: bool, flags: int) -> None:
        self.round += step
        self.heard += 1
        self.ended = bool(flags & GOODBYE)
        asked: list[int] = []

        def arrives(round_: int) -> bool:
            asked.append(round_)
            return not lost

        # What the network does: it writes into the linked buffer, at a time of its own.
        bulletin = [-float(self.heard)] * self.n_bulletin
        payload = [self._payload(self.heard)] * N_PARAMS
        self.link.buffers[-1][:] = [self.round, flags, 0.25 * self.heard, self.heard, *bulletin, *payload]
        self.check_value()  # before the slot hears of it, what it holds is untouched
        # Also of a message that a script loses: the script is about vectors.
        assert self.slot.bulletin.tolist() == bulletin
        if not lost:
            self.kept, self.kept_round = self.heard, self.round
        self.slot.complete(arrives)
        assert asked == [self.round]
        assert self.slot.flags == flags
        assert self.slot.goodbye == self.ended
        assert self.slot.busy_s == 0.25 * self.heard

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
    def whoever_is_gone_has_reached_everything(self) -> None:
        assert self.slot.reached == (math.inf if self.ended else self.slot.heard_round)

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


def arrive(link: FakeLink, slot: ReceiveSlot, round_: int, step: int, flags: int = 0, lost: bool = False) -> None:
    """Let a message come whose vector tells its step."""
    link.buffers[-1][:] = [round_, flags, 0.0, step, *[step] * N_PARAMS]
    slot.complete(lambda _: not lost)


def kept(slot: ReceiveSlot) -> tuple[int, int]:
    """Return round and step of the vector kept, which must be that step's."""
    assert slot.value is not None
    assert slot.value.tolist() == [slot.value_step] * N_PARAMS
    return slot.value_round, slot.value_step


def test_the_newest_message_is_kept_when_an_older_one_follows() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    for step, (round_, expected) in enumerate([(5, (5, 0)), (3, (5, 0)), (4, (5, 0)), (6, (6, 3)), (5, (6, 3))]):
        arrive(link, slot, round_, step)
        assert kept(slot) == expected
        assert slot.heard_round == slot.reached == expected[0]
    assert slot.n_received == 5


def test_of_two_messages_of_one_round_the_later_is_kept() -> None:
    # A rank that gossips in the middle of its gradient sends more than one vector in a round.
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    for step, (round_, expected) in enumerate(
        [(2, (2, 0)), (2, (2, 1)), (2, (2, 2)), (1, (2, 2)), (3, (3, 4)), (3, (3, 5))]
    ):
        arrive(link, slot, round_, step)
        assert kept(slot) == expected
    assert slot.heard_round == 3


def test_the_later_of_one_round_may_be_lost_by_script() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    arrive(link, slot, 2, 0)
    arrive(link, slot, 2, 1, lost=True)
    assert kept(slot) == (2, 0)
    arrive(link, slot, 7, 2, lost=True)
    assert kept(slot) == (2, 0)
    assert slot.reached == slot.heard_round == 7  # it is not waited for: it was there
    arrive(link, slot, 6, 3)
    assert kept(slot) == (6, 3)  # newer than what is kept, though older than what was heard
    assert slot.heard_round == 7


def test_after_the_goodbye_nothing_is_owed() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    assert slot.reached == -1.0
    arrive(link, slot, 4, 0)
    assert slot.reached == 4.0
    arrive(link, slot, 5, 1, flags=GOODBYE | STOPPED)
    assert slot.reached == math.inf
    assert (slot.heard_round, kept(slot)) == (5, (5, 1))
    assert slot.request is None


def test_the_parts_of_a_message_do_not_overlap() -> None:
    message = Message(N_PARAMS, N_BULLETIN)
    message.write_header(1, 2, 3.0, 4)
    message.bulletin[:] = [5.0, 6.0]
    message.params[:] = [7.0, 8.0, 9.0]
    assert message.buffer.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert Message(N_PARAMS).bulletin.size == 0
    # What is sent is what is received.
    link = FakeLink(N_BULLETIN)
    slot = ReceiveSlot(link.memory, link.receive, N_BULLETIN)
    link.buffers[-1][:] = message.buffer
    assert slot.bulletin.tolist() == [5.0, 6.0]
    slot.complete()
    assert (slot.heard_round, slot.flags, slot.busy_s, slot.value_step) == (1, 2, 3.0, 4)
    assert slot.value is not None
    assert slot.value.tolist() == [7.0, 8.0, 9.0]


def test_losing_the_goodbye_by_script_keeps_the_older_value_and_ends_all_the_same() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    for round_, flags in ((1, 0), (2, GOODBYE | FAILED)):
        link.buffers[-1][:] = [round_, flags, 0.0, round_, *[round_] * N_PARAMS]
        slot.complete(lambda round_: round_ == 1)
    assert (slot.value_round, slot.heard_round, slot.goodbye, slot.flags) == (1, 2, True, GOODBYE | FAILED)
    assert len(link.buffers) == 2  # the first, and the one after round 1; none after the goodbye


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("deadline_s", [0.0, math.inf])
def test_a_whole_exchange_uses_no_more_messages_than_that(session: Session, deadline_s: float) -> None:
    near = sorted({(session.rank - 1) % session.size, (session.rank + 1) % session.size} - {session.rank})
    exchange = GossipExchange(session.comm, near, N_PARAMS, Deadline(deadline_s, 1.0), 5e-5)
    addresses = set()
    for round_ in range(200):
        vector = exchange.blank()
        addresses.add(vector.ctypes.data)
        vector[:] = 1.0
        exchange.offer(round_, round_)
        exchange.wait(round_)
        own, inbox = exchange.inbox(round_)
        assert own is vector
        for values in (own, *(received.value for received in inbox if received.value is not None)):
            assert (values == 1.0).all()
    exchange.blank()[:] = 1.0
    exchange.close(200, 200, False, 20.0)
    # In flight to every neighbour, the newest that waits, and one to fill.
    assert len(addresses) <= len(near) + 2


def test_what_came_with_a_checkpoint_or_after_it_is_not_of_it() -> None:
    class Posted:
        buffers = np.zeros((2, 6))

    slot = ReceiveSlot(Posted.buffers, lambda index: index)

    def arrives(round_: int, word: int, step: int) -> None:
        Posted.buffers[slot.request] = round_, word << 16, 0.5, step, 1.0, 2.0
        slot.complete()

    assert slot.kept(below=4) is not None
    arrives(round_=7, word=3, step=6)
    kept = slot.kept(below=4)
    assert kept is not None
    assert (kept["heard_round"], kept["round"], kept["step"]) == (7, 7, 6)
    other = ReceiveSlot(np.zeros((2, 6)), lambda index: index)
    other.restore(kept)
    assert other.value is not None
    assert other.value.tolist() == [1.0, 2.0]
    assert (other.heard_round, other.value_round, other.value_step, other.reached) == (7, 7, 6, 7.0)
    arrives(round_=8, word=4, step=7)
    assert slot.kept(below=4) is None
    assert slot.kept(below=5) is not None
    assert not slot.goodbye


def test_a_message_says_how_many_ranks_its_sender_has_lost() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    link.buffers[-1][:] = [3.0, STOPPED + 2 * LOST, 0.0, 3.0, *[1.0] * N_PARAMS]
    assert slot.lost == 2
    slot.complete()
    assert (slot.value_lost, slot.flags) == (2, STOPPED)


def test_nothing_more_is_sent_to_the_dead_and_what_is_under_way_keeps_its_buffer() -> None:
    link, outbox = FakeLink(), Outbox(N_PARAMS)
    slot = SendSlot(link.send)
    first = write(outbox, 0)
    slot.offer(first)
    second = write(outbox, 1)
    slot.offer(second)
    slot.bury()
    assert (slot.request, slot.crowded, slot.buried) == (None, False, True)
    assert (first.users, second.users) == (1, 0)
    assert outbox.blank() is second


def test_nothing_more_is_expected_of_the_dead_and_their_last_vector_is_forgotten() -> None:
    link = FakeLink()
    slot = ReceiveSlot(link.memory, link.receive)
    link.buffers[-1][:] = [3.0, 0.0, 0.0, 3.0, *[1.0] * N_PARAMS]
    slot.complete()
    assert slot.value is not None
    slot.bury()
    assert (slot.value, slot.request, slot.reached) == (None, None, math.inf)
