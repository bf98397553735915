"""One neighbour of a simulated worker: the engine's slots over a link that takes time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from goco_mpi.core.gossip import HEADER
from goco_mpi.core.pace.slots import Message, ReceiveSlot, SendSlot
from goco_mpi.core.pace.suspicion import Suspicion


class Link:
    """What a worker keeps of one neighbour.

    Parameters
    ----------
    neighbor : int
    message_size : int
        Numbers in a message.
    transmit : callable (Link, Message) -> None
        Starts to send a message over this link.
    arrives : callable round -> bool, optional
        Scripted loss of messages from there.

    Attributes
    ----------
    send : SendSlot
    receive : ReceiveSlot
    suspicion : Suspicion
    pending : deque of Message
        What has arrived and was not taken in yet: the worker was busy, or must not hear it before the next round.
    """

    __slots__ = ("_arrives", "_buffers", "neighbor", "pending", "receive", "send", "suspicion")

    def __init__(
        self,
        neighbor: int,
        message_size: int,
        transmit: Callable[[Link, Message], None],
        arrives: Callable[[int], bool] | None,
    ) -> None:
        self.neighbor = neighbor
        self.pending: deque[Message] = deque()
        self.suspicion = Suspicion()
        self._arrives = arrives
        self._buffers = np.zeros((2, HEADER + message_size))

        def start(message: Message) -> Message:
            transmit(self, message)
            return message

        self.send = SendSlot(start)
        self.receive = ReceiveSlot(self._buffers, lambda index: (index,))

    def take_in(self) -> None:
        """Receive the message that has waited longest."""
        (index,) = self.receive.request
        np.copyto(self._buffers[index], self.pending.popleft().buffer)
        self.receive.complete(self._arrives)
