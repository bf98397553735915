"""One slot per neighbour: who owns which buffer while a message is under way.

Free of MPI on purpose: a slot is handed a function that posts a buffer and returns a request,
so that its states can be driven by a test. A message is a float64 vector: header (round, flags)
and the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Post = Callable[[Array], Any]

HEADER = 2
GOODBYE = 1
FAILED = 2


class Message:
    """An outgoing vector shared by the slots that send it; free again when none uses it."""

    __slots__ = ("buffer", "users")

    def __init__(self, n_params: int) -> None:
        self.buffer = np.zeros(HEADER + n_params)
        self.users = 0


class Outbox:
    """A pool of messages: at most one per send under way and one to fill."""

    def __init__(self, n_params: int) -> None:
        self._n_params = n_params
        self._messages: list[Message] = []

    def write(self, round_: int, flags: int, params: Array) -> Message:
        """Return a message that nobody is sending, filled with a copy of ``params``."""
        message = next((m for m in self._messages if m.users == 0), None)
        if message is None:
            message = Message(self._n_params)
            self._messages.append(message)
        message.buffer[0] = round_
        message.buffer[1] = flags
        message.buffer[HEADER:] = params
        return message


class SendSlot:
    """One send in flight and at most one message waiting behind it: the newest.

    A slow receiver therefore costs bounded memory and never blocks the sender.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._in_flight: Message | None = None
        self._waiting: Message | None = None
        self.request: Any = None
        self.n_sent = 0
        self.n_superseded = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._in_flight is None

    @property
    def crowded(self) -> bool:
        """Whether the next offer would supersede a message that was never sent."""
        return self._waiting is not None

    def offer(self, message: Message) -> None:
        """Send ``message`` now, or as soon as the send in flight is done unless a newer one comes."""
        message.users += 1
        if self._in_flight is None:
            self._start(message)
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
            self._start(message)

    def _start(self, message: Message) -> None:
        self._in_flight = message
        self.request = self._post(message.buffer)
        self.n_sent += 1


class ReceiveSlot:
    """Two buffers and one receive always posted, into the one that does not hold the newest value.

    Attributes
    ----------
    heard_round : int
        Newest round that arrived, -1 before the first.
    value_round : int or None
        Round of the newest value kept; older than ``heard_round`` when messages are lost by script.
    goodbye, failed : bool
        What the neighbour said last; after a goodbye nothing more comes and nothing is posted.
    """

    def __init__(self, n_params: int, post: Post) -> None:
        self._post = post
        self._buffers = np.zeros((2, HEADER + n_params))
        self._posted = 0
        self.heard_round = -1
        self.value_round: int | None = None
        self.goodbye = False
        self.failed = False
        self.n_received = 0
        self.request: Any = post(self._buffers[0])

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
        buffer = self._buffers[self._posted]
        round_, flags = int(buffer[0]), int(buffer[1])
        self.n_received += 1
        self.goodbye = bool(flags & GOODBYE)
        self.failed = bool(flags & FAILED)
        self.heard_round = max(self.heard_round, round_)
        # A goodbye repeats a vector already sent; a script that lost that one loses it still.
        if arrives(round_) and (self.value_round is None or round_ >= self.value_round):
            self.value_round = round_
            self._posted = 1 - self._posted
        self.request = None if self.goodbye else self._post(self._buffers[self._posted])
