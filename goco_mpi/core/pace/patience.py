"""For whom of its neighbours a rank waits in a round, until when, and what it learns from that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.slots import ReceiveSlot
from goco_mpi.core.pace.suspicion import Suspicion

NETWORK_WEIGHT = 30.0
"""How much more a second in the network counts than a second of work when the deadline is learned.

With ``deadline.gossip_factor = 0.1`` the deadline is a tenth of the work of a round plus three
times what the network usually takes: short where messages are quick, and never below what they
need. A wait that a neighbour's longer work explains is not the network's, or the deadline would
learn to wait for a slow neighbour."""
SKEW_S = 0.02
"""What ranks may be apart when they begin."""


class Edge(Protocol):
    """One neighbour: what came from it, and whether it is worth waiting for."""

    @property
    def receive(self) -> ReceiveSlot:
        """What came."""

    @property
    def suspicion(self) -> Suspicion:
        """Whether it is worth waiting for."""


class Patience:
    """A rank's waiting, round by round; a *time* is any number of seconds that only grows.

    Parameters
    ----------
    edges : sequence of Edge
    deadline : Deadline
        How long to wait in a round. An infinite one makes the exchange synchronous: every round's
        vectors are waited for and mixed exactly, as in the simulator.
    now : float
        Time at which the first round's work begins.

    Attributes
    ----------
    synchronous : bool
    missed : int
        Neighbour-rounds in which a neighbour's message was not there when mixing.
    suspected : int
        Times a neighbour became a suspect.
    """

    def __init__(self, edges: Sequence[Edge], deadline: Deadline, now: float) -> None:
        self._edges = edges
        self._deadline = deadline
        self._busy_since = now
        self._busy_s = 0.0
        self._round = 0
        self._began = self._due = now
        self._prompt_s: float | None = None
        self._trusted: list[ReceiveSlot] = []
        self._awaited: list[ReceiveSlot] = []
        self.synchronous = math.isinf(deadline.seconds)
        self.missed = self.suspected = 0

    def deaf(self, slot: ReceiveSlot, round_: int) -> bool:
        """Tell whether nothing more may be heard of a neighbour before ``round_`` is mixed.

        Synchronous means mixing exactly this round's vectors: a neighbour who is already here
        is not listened to again before that, or its next one would win.
        """
        return self.synchronous and slot.heard_round >= round_

    def set_out(self, now: float) -> None:
        """Begin the work of the first round: what was set up before is none of it."""
        self._busy_since = now

    def offer(self, now: float) -> float:
        """Return the seconds that the rank has worked, rather than waited, for what it offers now."""
        self._busy_s = now - self._busy_since
        return self._busy_s

    def begin(self, round_: int, now: float) -> float:
        """Begin to wait for this round's vectors; return the time of the deadline."""
        self._round, self._began, self._prompt_s = round_, now, None
        self._trusted = [edge.receive for edge in self._edges if not edge.suspicion.suspect]
        self._awaited = self._trusted
        wait_s = self._deadline.seconds
        if self._deadline.guesses:
            # Whoever takes more than twice as long is slow: waiting for it at once would cost rounds.
            wait_s = min(wait_s, max(self._busy_s, SKEW_S))
        self._due = now + wait_s
        return self._due

    def due(self, now: float) -> float:
        """Return the time of the deadline, which comes nearer in the course of the first wait.

        Once half of those trusted are there, the others get what would be learned from these: a slow one must not cost
        the first rounds, of which some methods need few.
        """
        if self._prompt_s is None and self._deadline.guesses and 2 * len(self._awaited) <= len(self._trusted):
            self._prompt_s = self._network_s(now)
            self._due = min(self._due, now + self._deadline.after(self._busy_s + NETWORK_WEIGHT * self._prompt_s))
        return self._due

    def _network_s(self, now: float) -> float:
        """Return how long the rank has waited for the network, and not for those that work longer than it does."""
        explained = max(max(slot.busy_s for slot in self._trusted) - self._busy_s, 0.0)
        return max(now - self._began - explained, 0.0)

    def awaits(self) -> bool:
        """Tell whether a trusted neighbour has not delivered this round yet."""
        self._awaited = [slot for slot in self._awaited if slot.reached < self._round]
        return bool(self._awaited)

    def end(self, now: float) -> None:
        """Stop waiting: learn what was usual, and judge the neighbours."""
        self._busy_since = now
        if self._trusted and self._deadline.learns:
            # What the first wait took beyond the prompt half was for somebody slow, if it was in vain.
            prompt_s = self._prompt_s if any(slot.reached < self._round for slot in self._trusted) else None
            network_s = self._network_s(now) if prompt_s is None else prompt_s
            self._deadline.observe(self._busy_s + NETWORK_WEIGHT * network_s)
        round_ = self._round
        for edge in self._edges:
            late = edge.receive.reached < round_
            if late or not edge.suspicion.settled:
                self._judge(edge, late)

    def _judge(self, edge: Edge, late: bool) -> None:
        suspicion = edge.suspicion
        was_suspect = suspicion.suspect
        self.missed += late
        suspicion.judge(edge.receive.heard_round, late, missed=late and not was_suspect)
        self.suspected += suspicion.suspect and not was_suspect
