"""How vectors travel: gossip over a graph communicator, or an allreduce."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core import gossip
from goco_mpi.core.gossip import Received
from goco_mpi.engine.deadline import Deadline, waitany_until, waitsome_until
from goco_mpi.engine.slots import FAILED, GOODBYE, HEADER, Outbox, ReceiveSlot, SendSlot
from goco_mpi.engine.suspicion import Suspicion
from goco_mpi.errors import RunError

Array = NDArray[np.float64]

WAIT_WEIGHT = 12.0
"""How much more a second of waiting counts than a second of work when the deadline is learned.

With ``deadline.gossip_factor = 0.25`` the deadline is a quarter of the work of a round plus three
times the usual wait: short where messages are quick, and never below what the network needs."""

_TAG = 1


@dataclass
class ExchangeCounts:
    """What an exchange did, for the record.

    Attributes
    ----------
    messages_sent, messages_received : int
    bytes_sent : int
    superseded : int
        Messages never sent because a newer one took their place.
    missed : int
        Neighbour-rounds in which a neighbour's message was not there when mixing.
    suspected : int
        Times a neighbour became a suspect.
    """

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    superseded: int = 0
    missed: int = 0
    suspected: int = 0


class Exchange(ABC):
    """What the round loop needs of a way to exchange vectors."""

    newest_round: int = -1
    """Newest round that any neighbour is known to have reached."""
    failed: bool = False
    """Whether a neighbour said that the run has failed."""

    @abstractmethod
    def drain(self) -> None:
        """Take in what has arrived, without waiting."""

    @abstractmethod
    def offer(self, round_: int, params: Array) -> None:
        """Send a copy of ``params`` as this round's vector."""

    @abstractmethod
    def wait(self, round_: int) -> None:
        """Wait for this round's vectors, at most until the deadline."""

    @abstractmethod
    def result(self, round_: int, own: Array, out: Array) -> None:
        """Write the mixed vector (gossip) or the mean (allreduce) into ``out``."""

    @abstractmethod
    def close(self, round_: int, params: Array, failed: bool, time_limit_s: float) -> None:
        """Say goodbye and leave no message under way. Collective."""

    @abstractmethod
    def counts(self) -> ExchangeCounts:
        """Return the counts so far."""


@dataclass(frozen=True)
class _Edge:
    """One neighbour and what this rank keeps of it."""

    neighbor: int
    send: SendSlot
    receive: ReceiveSlot
    suspicion: Suspicion


class GossipExchange(Exchange):
    """Slots to every graph neighbour; waits for those who are not suspects. Collective.

    Parameters
    ----------
    comm : MPI.Intracomm
        Private communicator of all workers.
    neighbors : sequence of int
        Sorted, without this rank.
    weights : ndarray of shape (degree,)
        Mixing weights of the neighbours.
    n_params : int
    age_limit : int
        Largest age in rounds at which a vector is mixed.
    deadline : Deadline
        How long to wait in a round. An infinite one makes the exchange synchronous: every
        round's vectors are waited for and mixed exactly, as in the simulator.
    poll_s : float
        Sleep between two looks, in seconds.
    arrives : callable (source, round) -> bool
        Scripted loss of messages.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        neighbors: Sequence[int],
        weights: Array,
        n_params: int,
        age_limit: int,
        deadline: Deadline,
        poll_s: float,
        arrives: Callable[[int, int], bool],
    ) -> None:
        self._graph = comm.Create_dist_graph_adjacent(list(neighbors), list(neighbors), reorder=False)
        self._graph.Set_name("goco_mpi.graph")
        self._weights = weights
        self._age_limit = age_limit
        self._deadline = deadline
        self._synchronous = math.isinf(deadline.seconds)
        self._poll_s = poll_s
        self._arrives = arrives
        self._outbox = Outbox(n_params)
        self._edges = [
            _Edge(j, SendSlot(self._isend_to(j)), ReceiveSlot(n_params, self._irecv_from(j)), Suspicion())
            for j in neighbors
        ]
        self._message_bytes = (HEADER + n_params) * 8
        self._round = 0
        self._last_wait_end = time.perf_counter()
        self._counts = ExchangeCounts()

    def _isend_to(self, dest: int) -> Callable[[Array], MPI.Request]:
        return lambda buffer: self._graph.Isend(buffer, dest, _TAG)

    def _irecv_from(self, source: int) -> Callable[[Array], MPI.Request]:
        return lambda buffer: self._graph.Irecv(buffer, source, _TAG)

    def drain(self) -> None:
        """Take in what has arrived and start sends that were waiting."""
        self._progress(deadline=0.0)

    def _progress(self, deadline: float) -> None:
        """Complete whatever is complete; wait for the first such until ``deadline``."""
        # Synchronous means mixing exactly this round's vectors: a neighbour who is already here
        # is not listened to again before that, or its next one would win.
        receiving = [
            edge
            for edge in self._edges
            if edge.receive.request is not None and not (self._synchronous and edge.receive.heard_round >= self._round)
        ]
        sending = [edge for edge in self._edges if edge.send.request is not None]
        requests = [edge.receive.request for edge in receiving] + [edge.send.request for edge in sending]
        if not requests:
            return
        for index in waitsome_until(requests, deadline, self._poll_s):
            if index < len(receiving):
                self._take_in(receiving[index])
            else:
                sending[index - len(receiving)].send.complete()

    def _take_in(self, edge: _Edge) -> None:
        edge.receive.complete(lambda round_: self._arrives(edge.neighbor, round_))
        self.newest_round = max(self.newest_round, edge.receive.heard_round)
        self.failed |= edge.receive.failed

    def offer(self, round_: int, params: Array) -> None:
        """Hand a copy of ``params`` to every slot."""
        self._round = round_
        self._send(round_, 0, params)

    def _send(self, round_: int, flags: int, params: Array) -> None:
        while self._synchronous and any(edge.send.crowded for edge in self._edges):
            self._progress(math.inf)  # the neighbours need every round's vector
        message = self._outbox.write(round_, flags, params)
        for edge in self._edges:
            edge.send.offer(message)

    def wait(self, round_: int) -> None:
        """Wait until every trusted neighbour has delivered this round, or the deadline."""
        start = time.perf_counter()
        deadline = start + self._deadline.seconds
        self.drain()
        trusted = [edge for edge in self._edges if not edge.suspicion.suspect]
        while not self.failed and any(_lags(edge, round_) for edge in trusted):
            if time.perf_counter() >= deadline:
                break
            self._progress(deadline)
        end = time.perf_counter()
        if trusted:
            busy = start - self._last_wait_end
            self._deadline.observe(busy + WAIT_WEIGHT * (end - start))
        self._last_wait_end = end
        for edge in self._edges:
            late, was_suspect = _lags(edge, round_), edge.suspicion.suspect
            self._counts.missed += late
            edge.suspicion.judge(edge.receive.heard_round, missed=late and not was_suspect)
            self._counts.suspected += edge.suspicion.suspect and not was_suspect

    def result(self, round_: int, own: Array, out: Array) -> None:
        """Mix ``own`` with the neighbours' newest vectors by the rule that the age limit stands for."""
        inbox = [
            Received(
                edge.receive.value,
                0 if edge.receive.value_round is None else round_ - edge.receive.value_round,
            )
            for edge in self._edges
        ]
        gossip.mix(own, self._weights, inbox, self._age_limit, out)

    def close(self, round_: int, params: Array, failed: bool, time_limit_s: float) -> None:
        """Say goodbye on every edge, take in every neighbour's, and wait for all ranks.

        Also neighbours who said goodbye first get one: they wait for it.

        Raises
        ------
        RunError
            If a neighbour stays silent for ``time_limit_s``.
        """
        end = time.perf_counter() + time_limit_s
        self._synchronous = False  # nothing is mixed any more: listen to everyone
        self._send(round_, GOODBYE | (FAILED if failed else 0), params)
        while any(edge.send.request is not None or edge.receive.request is not None for edge in self._edges):
            self._progress(end)
            if time.perf_counter() >= end:
                silent = [edge.neighbor for edge in self._edges if not edge.receive.goodbye]
                raise RunError(f"ranks {silent} did not end. {_shutdown_advice(time_limit_s)}")
        request = self._graph.Ibarrier()
        if waitany_until([request], end, max(self._poll_s, 1e-4)) is None:
            raise RunError(f"not all ranks ended. {_shutdown_advice(time_limit_s)}")
        self._graph.Free()

    def counts(self) -> ExchangeCounts:
        """Return the counts so far."""
        sent = sum(edge.send.n_sent for edge in self._edges)
        return replace(
            self._counts,
            messages_sent=sent,
            bytes_sent=sent * self._message_bytes,
            messages_received=sum(edge.receive.n_received for edge in self._edges),
            superseded=sum(edge.send.n_superseded for edge in self._edges),
        )


def _lags(edge: _Edge, round_: int) -> bool:
    return not edge.receive.goodbye and edge.receive.heard_round < round_


def _shutdown_advice(time_limit_s: float) -> str:
    return (
        f"deadline.shutdown_s = {time_limit_s:g} s have passed since this rank was done. Some rank is frozen, "
        "or much slower than the others; raise deadline.shutdown_s if that is expected."
    )


class AllreduceExchange(Exchange):
    """The mean over all ranks, tested for rather than waited in.

    Parameters
    ----------
    comm : MPI.Intracomm
        Private communicator of all workers.
    n_params : int
    poll_s : float
        Sleep between two looks, in seconds.
    """

    def __init__(self, comm: MPI.Intracomm, n_params: int, poll_s: float) -> None:
        self._comm = comm
        self._poll_s = poll_s
        self._sendbuf = np.zeros(n_params)
        self._recvbuf = np.zeros(n_params)
        self._request = MPI.REQUEST_NULL
        self._counts = ExchangeCounts()

    def drain(self) -> None:
        """Do nothing: between two rounds an allreduce has nothing under way."""

    def offer(self, round_: int, params: Array) -> None:
        """Start the reduction."""
        np.copyto(self._sendbuf, params)
        self._request = self._comm.Iallreduce(self._sendbuf, self._recvbuf, MPI.SUM)
        self._counts.messages_sent += 1
        self._counts.bytes_sent += self._sendbuf.nbytes

    def wait(self, round_: int) -> None:
        """Wait for everyone."""
        waitsome_until([self._request], math.inf, self._poll_s)
        self._counts.messages_received += 1

    def result(self, round_: int, own: Array, out: Array) -> None:
        """Write the mean over all ranks."""
        np.divide(self._recvbuf, self._comm.Get_size(), out=out)

    def close(self, round_: int, params: Array, failed: bool, time_limit_s: float) -> None:
        """Do nothing: all ranks end in the same round."""

    def counts(self) -> ExchangeCounts:
        """Return the counts so far."""
        return self._counts
