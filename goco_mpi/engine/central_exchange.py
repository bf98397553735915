"""A master and its workers: gradients in, parameters out, and nobody slow is waited for.

The messages are those of `goco_mpi.core.methods.central`; they travel through the slots of the gossip, on a star.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core.bulletin import Bulletin
from goco_mpi.core.gossip import Received
from goco_mpi.core.methods.central import MASTER, has_gradient, write_message
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.slots import STOPPED, Message
from goco_mpi.engine.gossip_exchange import Edge, GossipExchange

Array = NDArray[np.float64]


class CentralExchange(GossipExchange):
    """Rank 0 is the master, and computes gradients like the others. Collective.

    The master ends a round as soon as the gradients at its parameters are enough, everybody has answered, or
    the deadline has passed; its own is left unfinished then. A worker leaves its gradient unfinished when newer
    parameters have come, and takes over the newest; it waits for them as long as it takes.

    Parameters
    ----------
    comm : MPI.Intracomm
        Private communicator of all workers.
    message_size : int
    enough : callable (ndarray of bool, shape (n_workers,)) -> bool
        Whether the gradients of these workers are all that is needed; true of all workers.
    deadline : Deadline
        How long the master waits for gradients, from sending the parameters; an automatic one learns from how
        long half of the workers take.
    poll_s : float
        Sleep between two looks, in seconds.
    bulletin : Bulletin, optional
        Numbers for all ranks that travel with the vectors, where somebody wants them.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        message_size: int,
        enough: Callable[[NDArray[np.bool_]], bool],
        deadline: Deadline,
        poll_s: float,
        bulletin: Bulletin | None = None,
    ) -> None:
        self._master = comm.Get_rank() == MASTER
        others = range(1, comm.Get_size())
        neighbors = list(others) if self._master else [MASTER]
        # Always listening: of the gossip's own deadline nothing is used.
        super().__init__(comm, neighbors, message_size, Deadline(0.0, 1.0), poll_s, None, bulletin)
        self._enough = enough
        self._answer_deadline = deadline
        self._own_finished = False
        self._begun_s = time.perf_counter()
        self._news = True
        self._suffices = False
        self._asks_to_stop = 0

    def _prepare_send(self, message: Message, suspect: bool, neighbor: int) -> MPI.Prequest:
        return super()._prepare_send(message, True, neighbor)  # nobody is suspected here: anybody may be frozen

    def begin(self, round_: int, step: int, params: Array) -> None:
        """Send the parameters, as the master; all have the first ones."""
        self._round = round_
        self._own_finished, self._news = False, True
        self._begun_s = time.perf_counter()
        if self._master and step > 0:
            write_message(params, False, self.blank())
            self._send(round_, step, 0)

    def _take_in(self, edge: Edge) -> None:
        stopped = self.stopped
        super()._take_in(edge)
        self._news = True
        if self._master:
            self.newest_round = -1  # no worker is ahead
        else:
            self.stopped = stopped  # not before the last parameters are taken over

    @property
    def overtaken(self) -> bool:
        """Whether the master has enough, or can wait no longer; for a worker, whether it has newer parameters."""
        if self._master:
            return self._settled() or time.perf_counter() >= self._due_s
        slot = self._edges[0].receive
        return slot.heard_round > self._round or slot.goodbye

    @property
    def _due_s(self) -> float:
        return self._begun_s + self._answer_deadline.seconds

    def _settled(self) -> bool:
        """Return whether the gradients that have come suffice."""
        if self._news:
            self._news = False
            self._suffices = self._enough(self._finished())
        return self._suffices

    def _finished(self) -> NDArray[np.bool_]:
        """Return whose gradients at the present parameters are there, shape (n_workers,)."""
        return np.array([self._own_finished, *(self._has_finished(edge) for edge in self._edges)])

    def _has_finished(self, edge: Edge) -> bool:
        slot = edge.receive
        return slot.value is not None and slot.value_round == self._round and has_gradient(slot.value)

    def offer(self, round_: int, step: int) -> None:
        """Send a worker's gradient, or that there will be none; the master keeps its own."""
        if self._master:
            self._news = True
            self._own_finished = has_gradient(self._message.params)
        elif not self.overtaken or self._asks_to_stop or self._bulletin is not None:
            self._send(round_, step, self._asks_to_stop)

    def wait(self, round_: int) -> None:
        """Wait for gradients as the master, for newer parameters as a worker."""
        if self._master:
            self._wait_for_gradients(round_)
        else:
            while not (self.overtaken or self.failed):
                self._progress(math.inf)

    def pace(self) -> float:
        """Return infinity: nobody waits for workers that lag."""
        return math.inf

    def _wait_for_gradients(self, round_: int) -> None:
        own_s = time.perf_counter()
        self._progress(0.0)
        while not (self.failed or self._settled()):
            answered = all(edge.receive.reached >= round_ for edge in self._edges)
            if answered or time.perf_counter() >= self._due_s:
                break
            self._progress(self._due_s)
        now = time.perf_counter()
        arrivals = [edge.arrived_s if self._has_finished(edge) else now for edge in self._edges]
        arrivals.append(own_s if self._own_finished else now)
        self._answer_deadline.observe(statistics.median_low(arrivals) - self._begun_s)
        self._patience.missed += len(arrivals) - int(self._finished().sum())

    def inbox(self, round_: int) -> tuple[Array, list[Received]]:
        """Return the message offered, and each worker's newest or the newest parameters."""
        if not self._master:
            self.stopped |= self._edges[0].receive.goodbye
        return super().inbox(round_)

    def kept(self) -> dict[str, Any]:
        """Return also how long the master has learned to wait."""
        return {**super().kept(), "answer_deadline": self._answer_deadline}

    def restore(self, kept: dict[str, Any]) -> None:
        """Put everything back."""
        super().restore(kept)
        vars(self._answer_deadline).update(vars(kept["answer_deadline"]))
        if self._master:
            self.newest_round = -1

    def stop(self) -> None:
        """Stop here as the master; as a worker, ask for it with the next message."""
        if self._master:
            self.stopped = True
        else:
            self._asks_to_stop = STOPPED
