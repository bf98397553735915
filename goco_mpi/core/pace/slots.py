"""One slot per neighbour: who owns which buffer while a message is under way.

Free of MPI on purpose: a slot is handed a function that starts a transfer and returns a request,
so that its states can be driven by a test. A message is a float64 vector: header (round, flags,
seconds of work, step of the sender), where there is one the bulletin, and the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import HEADER

Array = NDArray[np.float64]

GOODBYE, FAILED, STOPPED = 1, 2, 4
"""Flags: the sender's last message; its parameters grow without bound; it has decided that the run is over."""
LOST = 8
"""How many workers the sender has lost counts in the flags as multiples of this."""
WORD = 16
"""Bits of the flags. The number's higher bits are the *word*, a whole number that means what the exchange says."""


class Message:
    """An outgoing vector shared by the slots that send it; free again when none uses it.

    Attributes
    ----------
    buffer : ndarray of shape (HEADER + n_bulletin + n_params,)
    bulletin, params : ndarray
        Views of what it carries, to be filled before it is offered.
    users : int
        Slots that send it or mean to.
    """

    __slots__ = ("buffer", "bulletin", "params", "users")

    def __init__(self, n_params: int, n_bulletin: int = 0) -> None:
        self.buffer = np.zeros(HEADER + n_bulletin + n_params)
        self.bulletin = self.buffer[HEADER : HEADER + n_bulletin]
        self.params = self.buffer[HEADER + n_bulletin :]
        self.users = 0

    def write_header(self, round_: int, flags: int, busy_s: float, step: int) -> None:
        """Say what the message is; one number at a time is quicker than a slice."""
        buffer = self.buffer
        buffer[0] = round_
        buffer[1] = flags
        buffer[2] = busy_s
        buffer[3] = step


class Outbox:
    """A pool of messages: at most one per send under way and one to fill."""

    def __init__(self, n_params: int, n_bulletin: int = 0) -> None:
        self._sizes = n_params, n_bulletin
        self._messages: list[Message] = []

    def blank(self) -> Message:
        """Return a message that nobody is sending."""
        for message in self._messages:
            if message.users == 0:
                return message
        self._messages.append(Message(*self._sizes))
        return self._messages[-1]


class SendSlot:
    """One send in flight and at most one message waiting behind it: the newest.

    A slow receiver therefore costs bounded memory and never blocks the sender.

    Parameters
    ----------
    start : callable (Message) -> request
        Starts sending.
    """

    def __init__(self, start: Callable[[Message], Any]) -> None:
        self._start = start
        self._in_flight: Message | None = None
        self._waiting: Message | None = None
        self.request: Any = None
        self.buried = False
        self.n_sent = 0
        self.n_superseded = 0

    @property
    def crowded(self) -> bool:
        """Whether the next offer would supersede a message that was never sent."""
        return self._waiting is not None

    def offer(self, message: Message) -> None:
        """Send ``message`` now, or as soon as the send in flight is done unless a newer one comes."""
        message.users += 1
        if self._in_flight is None:
            self._send(message)
            return
        if self._waiting is not None:
            self._waiting.users -= 1
            self.n_superseded += 1
        self._waiting = message

    def complete(self) -> None:
        """Take note that the send in flight is done; its buffer is free, the waiting one leaves."""
        assert self._in_flight is not None
        self._in_flight.users -= 1
        self._in_flight = None
        self.request = None
        if self._waiting is not None:
            message, self._waiting = self._waiting, None
            self._send(message)

    def bury(self) -> None:
        """Send nothing more: the receiver is dead. What is under way keeps its buffer, which MPI may still read."""
        if self._waiting is not None:
            self._waiting.users -= 1
        self._waiting = self._in_flight = self.request = None
        self.buried = True

    def _send(self, message: Message) -> None:
        self._in_flight = message
        self.request = self._start(message)
        self.n_sent += 1


class ReceiveSlot:
    """Two buffers and one receive always posted, into the one that does not hold the newest value.

    Parameters
    ----------
    buffers : ndarray of shape (2, HEADER + n_bulletin + n_params)
    start : callable (int) -> request
        Starts receiving into the buffer of that index.
    n_bulletin : int

    Attributes
    ----------
    heard_round : int
        Newest round that arrived, -1 before the first.
    value_round : int
        Round of the newest value kept; older than ``heard_round`` when messages are lost by script.
    value_step : int
        Step of the neighbour that value is of, -1 before the first.
    value_lost : int
        How many workers the neighbour had lost when it sent that value.
    busy_s : float
        Seconds the neighbour worked, rather than waited, for the message heard last.
    flags : int
        What the neighbour said last; after a goodbye nothing more comes and nothing is posted.
    word, value_word : int
        The word heard last, and the one that came with the newest value.
    reached : float
        ``heard_round``; infinite after the goodbye, as nothing more is owed then.
    """

    def __init__(self, buffers: Array, start: Callable[[int], Any], n_bulletin: int = 0) -> None:
        self._heads = [buffer[:HEADER] for buffer in buffers]
        self._bulletins: list[Array] = [buffer[HEADER : HEADER + n_bulletin] for buffer in buffers]
        self._values = [buffer[HEADER + n_bulletin :] for buffer in buffers]
        self._start = start
        self._posted = 0
        self.heard_round = -1
        self.value_round = -1
        self.value_step = -1
        self.value_lost = 0
        self.busy_s = 0.0
        self.flags = 0
        self.word = self.value_word = 0
        self.reached = -1.0
        self.n_received = 0
        self.request: Any = start(0)

    @property
    def goodbye(self) -> bool:
        """Whether the neighbour is done."""
        return bool(self.flags & GOODBYE)

    @property
    def value(self) -> Array | None:
        """The newest vector, valid until the next `complete`; None before the first."""
        return None if self.value_step < 0 else self._values[1 - self._posted]

    @property
    def lost(self) -> int:
        """How many workers the sender of the message that arrived had lost, to be read before the next `complete`."""
        return int(self._heads[self._posted][1]) % (1 << WORD) // LOST

    @property
    def bulletin(self) -> Array:
        """The bulletin that arrived, to be read before the next `complete`."""
        return self._bulletins[self._posted]

    def bury(self) -> None:
        """Expect nothing more and forget the value: the neighbour is dead."""
        self.request = None
        self.reached = math.inf
        self.value_round = self.value_step = -1

    def complete(self, arrives: Callable[[int], bool] | None = None) -> None:
        """Take in the message that arrived and post the next receive at once.

        Parameters
        ----------
        arrives : callable round -> bool, optional
            False for a message that a straggler script loses: it is heard but not kept.
        """
        round_, flags, self.busy_s, step = self._heads[self._posted].tolist()
        round_ = int(round_)
        self.n_received += 1
        self.word, low = divmod(int(flags), 1 << WORD)
        lost, self.flags = divmod(low, LOST)
        if round_ > self.heard_round:
            self.heard_round = round_
        self.reached = math.inf if self.flags & GOODBYE else self.heard_round
        # A goodbye carries the final parameters, and is mixed like any vector where rounds go on.
        if (arrives is None or arrives(round_)) and round_ >= self.value_round:
            self.value_round, self.value_step, self.value_lost = round_, int(step), lost
            self.value_word = self.word
            self._posted = 1 - self._posted
        self.request = None if self.flags & GOODBYE else self._start(self._posted)

    def kept(self, below: float) -> dict[str, Any] | None:
        """Return what a checkpoint holds of the slot, of messages whose word is less than ``below``.

        None where the value kept came with a later word, and what was there before is gone.
        """
        if self.value_word >= below:
            return None
        heard_round = self.heard_round if self.word < below else self.value_round
        return {
            "heard_round": heard_round,
            "round": self.value_round,
            "step": self.value_step,
            "busy_s": self.busy_s,
            "lost": self.value_lost,
            "value": self.value,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned, before anything has arrived."""
        self.heard_round, self.reached, self.busy_s = kept["heard_round"], float(kept["heard_round"]), kept["busy_s"]
        self.value_round, self.value_step, self.value_lost = kept["round"], kept["step"], kept["lost"]
        if kept["value"] is not None:
            self._values[1 - self._posted][:] = kept["value"]
