"""One slot per neighbour: who owns which buffer while a message is under way.

Free of MPI on purpose: a slot is handed a function that starts a transfer and returns a request,
so that its states can be driven by a test. A message is a float64 vector: header (round, flags,
seconds of work) and the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HEADER = 3
GOODBYE = 1
FAILED = 2


class Message:
    """An outgoing vector shared by the slots that send it; free again when none uses it.

    Attributes
    ----------
    buffer : ndarray of shape (HEADER + n_params,)
    users : int
        Slots that send it or mean to.
    """

    __slots__ = ("buffer", "users")

    def __init__(self, n_params: int) -> None:
        self.buffer = np.zeros(HEADER + n_params)
        self.users = 0

    @property
    def params(self) -> Array:
        """The vector it carries, to be filled before it is offered."""
        return self.buffer[HEADER:]


class Outbox:
    """A pool of messages: at most one per send under way and one to fill."""

    def __init__(self, n_params: int) -> None:
        self._n_params = n_params
        self._messages: list[Message] = []

    def blank(self) -> Message:
        """Return a message that nobody is sending."""
        for message in self._messages:
            if message.users == 0:
                return message
        self._messages.append(Message(self._n_params))
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

    def _send(self, message: Message) -> None:
        self._in_flight = message
        self.request = self._start(message)
        self.n_sent += 1


class ReceiveSlot:
    """Two buffers and one receive always posted, into the one that does not hold the newest value.

    Parameters
    ----------
    buffers : ndarray of shape (2, HEADER + n_params)
    start : callable (int) -> request
        Starts receiving into the buffer of that index.

    Attributes
    ----------
    heard_round : int
        Newest round that arrived, -1 before the first.
    value_round : int or None
        Round of the newest value kept; older than ``heard_round`` when messages are lost by script.
    busy_s : float
        Seconds the neighbour worked, rather than waited, for the message heard last.
    goodbye, failed : bool
        What the neighbour said last; after a goodbye nothing more comes and nothing is posted.
    """

    def __init__(self, buffers: Array, start: Callable[[int], Any]) -> None:
        self._buffers = buffers
        self._start = start
        self._posted = 0
        self.heard_round = -1
        self.value_round: int | None = None
        self.busy_s = 0.0
        self.goodbye = False
        self.failed = False
        self.n_received = 0
        self.request: Any = start(0)

    @property
    def value(self) -> Array | None:
        """The newest vector, valid until the next `complete`; None before the first."""
        return None if self.value_round is None else self._buffers[1 - self._posted, HEADER:]

    def complete(self, arrives: Callable[[int], bool]) -> None:
        """Take in the message that arrived and post the next receive at once.

        Parameters
        ----------
        arrives : callable round -> bool
            False for a message that a straggler script loses: it is heard but not kept.
        """
        round_, flags = map(int, self._buffers[self._posted, :2])
        self.busy_s = float(self._buffers[self._posted, 2])
        self.n_received += 1
        self.goodbye = bool(flags & GOODBYE)
        self.failed = bool(flags & FAILED)
        self.heard_round = max(self.heard_round, round_)
        # A goodbye carries the final parameters, and is mixed like any vector where rounds go on.
        if arrives(round_) and (self.value_round is None or round_ >= self.value_round):
            self.value_round = round_
            self._posted = 1 - self._posted
        self.request = None if self.goodbye else self._start(self._posted)
