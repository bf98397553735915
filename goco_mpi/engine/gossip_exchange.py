"""Gossip over a graph communicator: slots, deadlines and suspects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core.bulletin import Bulletin
from goco_mpi.core.gossip import HEADER, Received
from goco_mpi.core.pace.counts import ExchangeCounts
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.patience import Patience
from goco_mpi.core.pace.slots import FAILED, GOODBYE, LOST, STOPPED, WORD, Message, Outbox, ReceiveSlot, SendSlot
from goco_mpi.core.pace.suspicion import Suspicion
from goco_mpi.engine.deadline import overdue, waitsome_until
from goco_mpi.engine.exchange import Exchange

Array = NDArray[np.float64]

MOST_DRAINED = 10_000
"""Messages taken in at a time from one neighbour: more than MPI keeps, less than for ever."""

TAG = 1


@dataclass(slots=True)
class Edge:
    """One neighbour and what this rank keeps of it."""

    neighbor: int
    send: SendSlot
    receive: ReceiveSlot
    suspicion: Suspicion
    arrives: Callable[[int], bool] | None
    arrived_s: float = math.nan

    @property
    def open(self) -> bool:
        """Whether anything is under way: the neighbour's goodbye has not come, or it has not taken in this rank's."""
        return self.send.request is not None or self.receive.request is not None


class GossipExchange(Exchange):
    """Slots to every graph neighbour; waits for those who are not suspects. Collective.

    Parameters
    ----------
    comm : MPI.Intracomm
        Private communicator of all workers.
    neighbors : sequence of int
        Sorted, without this rank.
    n_params : int
        Numbers in a message.
    deadline : Deadline
        How long to wait in a round. An infinite one makes the exchange synchronous: every
        round's vectors are waited for and mixed exactly, as in the simulator.
    poll_s : float
        Sleep between two looks, in seconds.
    arrives : callable (source, round) -> bool, optional
        Scripted loss of messages.
    bulletin : Bulletin, optional
        Numbers for all ranks that travel with the vectors, where somebody wants them.
    diameter : int, optional
        Rounds in which a word reaches all ranks, where a synchronous run that is stopped must end in one round
        (`Method.in_step`). Otherwise every rank stops as soon as it hears of it.

    Notes
    -----
    Every message carries a *word*. It is the number of the sender's newest checkpoint: who hears of a newer one makes
    it before mixing that message, so that no rank's state has something of another that came after the other's. With
    a ``diameter`` nobody needs telling, as all make them in the same rounds; there the word is the round before which
    all ranks stop, once one has decided to.

    References
    ----------
    Lai & Yang, "On distributed snapshots", Information Processing Letters 25, 1987.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        neighbors: Sequence[int],
        n_params: int,
        deadline: Deadline,
        poll_s: float,
        arrives: Callable[[int, int], bool] | None = None,
        bulletin: Bulletin | None = None,
        diameter: int | None = None,
    ) -> None:
        self._graph = self._communicator(comm, list(neighbors))
        self._graph.Set_name("goco_mpi.graph")
        self._poll_s = poll_s
        self._arrives = arrives
        self._bulletin = bulletin
        self._n_bulletin = 0 if bulletin is None else bulletin.entries.size
        self._rank = comm.Get_rank()
        self._n_lost = 0  # ranks, and nobody loses any here: see `goco_mpi.engine.surviving_exchange`
        self.degree = len(neighbors)
        self._outbox = Outbox(n_params, self._n_bulletin)
        self._message = self._outbox.blank()
        self._message.users += 1
        self._persistent: list[MPI.Prequest] = []
        self._edges = [self._edge(neighbor, n_params) for neighbor in neighbors]
        # What is tested together: a receive and a send for each edge, null where nothing is under way.
        self._requests: list[MPI.Request] = [edge.receive.request for edge in self._edges]
        self._requests += [MPI.REQUEST_NULL for _ in neighbors]
        self._message_bytes = (HEADER + self._n_bulletin + n_params) * 8
        self._round = self._next_round = 0
        self._deadline = deadline
        self._patience = Patience(self._edges, deadline, time.perf_counter())
        self._synchronous = self._patience.synchronous
        self._diameter = diameter
        self._end_round = 0  # none
        self._before = ExchangeCounts()

    def _communicator(self, comm: MPI.Intracomm, neighbors: list[int]) -> MPI.Intracomm:
        return comm.Create_dist_graph_adjacent(neighbors, neighbors, reorder=False)

    def _edge(self, neighbor: int, n_params: int) -> Edge:
        """Set up one edge on persistent requests, one a buffer: cheaper to start than new ones."""
        buffers = np.zeros((2, HEADER + self._n_bulletin + n_params))
        receives = [self._graph.Recv_init(buffer, neighbor, TAG) for buffer in buffers]
        sends: dict[tuple[Message, bool], MPI.Prequest] = {}
        suspicion = Suspicion()
        self._persistent += receives

        def receive(index: int) -> MPI.Request:
            return self._start(receives[index])

        def send(message: Message) -> MPI.Request:
            key = message, suspicion.suspect
            if key not in sends:
                sends[key] = self._prepare_send(*key, neighbor)
                self._persistent.append(sends[key])
            return self._start(sends[key])

        slot = ReceiveSlot(buffers, receive, self._n_bulletin)
        arrives = None if self._arrives is None else partial(self._arrives, neighbor)
        return Edge(neighbor, SendSlot(send), slot, suspicion, arrives)

    def _start(self, request: MPI.Prequest) -> MPI.Request:
        request.Start()
        return request

    def _prepare_send(self, message: Message, suspect: bool, neighbor: int) -> MPI.Prequest:
        if suspect:
            # Done only when received: MPI would keep a frozen rank's short messages until it has no room left for
            # anybody's (MPICH: 64 of a sender on its node), and this rank would be silent to all.
            return cast("MPI.Prequest", self._graph.Ssend_init(message.buffer, neighbor, TAG))
        return self._graph.Send_init(message.buffer, neighbor, TAG)

    @property
    def overtaken(self) -> bool:
        """Whether all neighbours are done: a gradient still under way would hold up nothing but the end."""
        return self.degree > 0 and all(edge.receive.goodbye for edge in self._edges)

    def blank(self) -> Array:
        """Return the vector to fill, in the very message that will carry it."""
        self._message.users -= 1
        self._message = self._outbox.blank()
        self._message.users += 1  # ours, beside the slots'
        return self._message.params

    def drain(self) -> None:
        """Take in all that has arrived and start sends that were waiting.

        All: while a rank was frozen, MPI may have kept hundreds of short messages of each neighbour,
        of which only the last is of use.
        """
        for _ in range(MOST_DRAINED):
            if not self._progress(deadline=0.0):
                break

    def _progress(self, deadline: float) -> bool:
        """Complete whatever is complete; wait for the first such until ``deadline``.

        Returns
        -------
        bool
            Whether a message arrived.
        """
        requests, degree, arrived = self._requests, self.degree, False
        for index in self._completed(deadline):
            if index < degree:
                self._take_in(self._edges[index])
                self._listen(index)
                arrived = True
            else:
                slot = self._edges[index - degree].send
                slot.complete()
                requests[index] = slot.request or MPI.REQUEST_NULL
        return arrived

    def _completed(self, deadline: float) -> list[int]:
        """Return which requests are complete; wait for the first such until ``deadline``."""
        return waitsome_until(self._requests, deadline, self._poll_s)

    def _take_in(self, edge: Edge) -> None:
        slot = edge.receive
        if self._bulletin is not None and slot.lost == self._n_lost:
            self._bulletin.merge(slot.bulletin)
        slot.complete(edge.arrives)
        edge.arrived_s = time.perf_counter()
        if slot.heard_round > self.newest_round:
            self.newest_round = slot.heard_round
        if slot.word:
            self._hear(slot.word)
            if slot.goodbye and self._diameter is None:
                self.last_checkpoint = slot.word
        if slot.flags:
            self.failed |= bool(slot.flags & FAILED)
            self.stopped |= bool(slot.flags & STOPPED)

    def _hear(self, word: int) -> None:
        if self._diameter is not None:
            self._end_round = min(self._end_round or word, word)
        elif word > self.heard_checkpoint:
            self.heard_checkpoint = word

    def _listen(self, index: int) -> None:
        """Test an edge's posted receive from now on, unless it must not be heard yet."""
        slot = self._edges[index].receive
        deaf = slot.request is None or (self._synchronous and self._patience.deaf(slot, self._round))
        self._requests[index] = MPI.REQUEST_NULL if deaf else slot.request

    def begin(self, round_: int, step: int, params: Array) -> None:
        """Take note of the round whose message is the next to leave."""
        if step == 0:
            self._patience.set_out(time.perf_counter())
        self._next_round = round_

    def offer(self, round_: int, step: int) -> None:
        """Hand the message to every slot."""
        self._round, self._next_round = round_, round_ + 1
        if self._synchronous:
            for index in range(self.degree):
                self._listen(index)
        self._send(round_, step, 0)

    def _send(self, round_: int, step: int, flags: int) -> None:
        if self._synchronous:
            self._let_leave(math.inf)
        flags += LOST * self._n_lost
        flags += (self.checkpoint if self._diameter is None else self._end_round) << WORD
        self._message.write_header(round_, flags, self._patience.offer(time.perf_counter()), step)
        if self._bulletin is not None:
            self._message.bulletin[:] = self._bulletin.entries.ravel()
        for index, edge in enumerate(self._edges, self.degree):
            if not edge.send.buried:
                edge.send.offer(self._message)
                self._requests[index] = edge.send.request

    def _let_leave(self, end: float) -> None:
        """Let waiting messages leave, lest the next supersedes them: synchronous neighbours need every round's."""
        for edge in self._edges:
            while edge.send.crowded and time.perf_counter() < end:
                self._progress(end)

    def wait(self, round_: int) -> None:
        """Wait until every trusted neighbour has delivered this round, or the deadline."""
        patience, start = self._patience, time.perf_counter()
        deadline = patience.begin(round_, start)
        self._progress(deadline if patience.awaits() else start)
        while not self.failed and patience.awaits() and (now := time.perf_counter()) < (deadline := patience.due(now)):
            self._progress(deadline)
        patience.end(time.perf_counter())

    def inbox(self, round_: int) -> tuple[Array, list[Received]]:
        """Return the message offered and each neighbour's newest."""
        slots = [edge.receive for edge in self._edges]
        self.stopped |= self._end_round > 0 and round_ + 1 >= self._end_round
        return self._message.params, [Received(slot.value, round_ - slot.value_round) for slot in slots]

    def pace(self) -> float:
        """Return how many rounds the slowest neighbour is known to have offered a vector of."""
        return 1 + min((edge.receive.reached for edge in self._edges), default=math.inf)

    def steps(self) -> list[int]:
        """Return the neighbours' steps that the inbox holds, -1 where nothing came yet."""
        return [edge.receive.value_step for edge in self._edges]

    def tell(self, round_: int, value: float) -> None:
        """Post a number to the bulletin."""
        if self._bulletin is not None:
            self._bulletin.post(self._rank, round_, value)

    def told(self) -> float:
        """Return the sum over the bulletin."""
        return math.nan if self._bulletin is None else self._bulletin.total()

    def stop(self) -> None:
        """Stop here at once, and the goodbye tells the neighbours; or in the round that all can know of in time."""
        if self._diameter is not None:
            self._hear(self._next_round + self._diameter)
        else:
            self.stopped = True

    def suspects(self) -> list[int]:
        """Return the neighbours that are not waited for."""
        return [edge.neighbor for edge in self._edges if edge.suspicion.suspect]

    def arrivals(self) -> tuple[list[float], list[bool]]:
        """Return when each neighbour's newest vector arrived, and whether it is a suspect."""
        return [edge.arrived_s for edge in self._edges], [edge.suspicion.suspect for edge in self._edges]

    def close(self, round_: int, step: int, failed: bool, time_limit_s: float) -> None:
        """Say goodbye on every edge, take in every neighbour's, and wait for all ranks.

        Also neighbours who said goodbye first get one: they wait for it. To be called once; after an
        error the exchange is of no more use.

        Raises
        ------
        RunError
            If after ``time_limit_s`` a neighbour has not said goodbye, or not taken in this rank's; or some rank is
            not there.
        """
        end = time.perf_counter() + time_limit_s
        if self._synchronous:
            self._let_leave(end)
        self._synchronous = False  # nothing is mixed any more: listen to everyone
        for index in range(len(self._edges)):
            self._listen(index)
        # Also who stops because a neighbour did says so, for those who do not know that one.
        flags = (FAILED if failed or self.failed else 0) | (STOPPED if self.stopped else 0)
        self._send(round_, step, GOODBYE | flags)
        while silent := [edge.neighbor for edge in self._edges if edge.open]:
            if time.perf_counter() >= end:
                raise overdue(f"ranks {silent} did not end", time_limit_s)
            self._progress(end)
        self._dissolve(end, time_limit_s)

    def _dissolve(self, end: float, time_limit_s: float) -> None:
        """Wait for all ranks, and free what MPI keeps."""
        if not waitsome_until([self._graph.Ibarrier()], end, max(self._poll_s, 1e-4)):
            raise overdue("not all ranks ended", time_limit_s)
        for request in self._persistent:
            request.Free()
        self._graph.Free()

    def counts(self) -> ExchangeCounts:
        """Return the counts so far."""
        sent = sum(edge.send.n_sent for edge in self._edges)
        since = ExchangeCounts(
            messages_sent=sent,
            bytes_sent=sent * self._message_bytes,
            messages_received=sum(edge.receive.n_received for edge in self._edges),
            superseded=sum(edge.send.n_superseded for edge in self._edges),
            missed=self._patience.missed,
            suspected=self._patience.suspected,
        )
        return self._before + since

    def kept(self) -> dict[str, Any]:
        """Return each neighbour's newest vector and what is thought of it, without what came after the checkpoint."""
        below = self.checkpoint if self._diameter is None else math.inf
        slots = [edge.receive.kept(below) for edge in self._edges]
        late_news = any(edge.receive.word >= below for edge in self._edges)
        return {
            "slots": slots,
            "suspicions": [edge.suspicion for edge in self._edges],
            "deadline": self._deadline,
            "bulletin": None if self._bulletin is None or late_news else self._bulletin.entries,
            "counts": self.counts(),
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Put everything back, as if it had just arrived."""
        for edge, slot, suspicion in zip(self._edges, kept["slots"], kept["suspicions"], strict=True):
            vars(edge.suspicion).update(vars(suspicion))
            if slot is not None:
                edge.receive.restore(slot)
                self.newest_round = max(self.newest_round, edge.receive.heard_round)
        vars(self._deadline).update(vars(kept["deadline"]))
        if self._bulletin is not None and kept["bulletin"] is not None:
            self._bulletin.merge(kept["bulletin"].ravel())
        self._before = kept["counts"]
