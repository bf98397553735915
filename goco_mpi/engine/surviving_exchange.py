"""Gossip that goes on when ranks die."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core.gossip import Received
from goco_mpi.engine.deadline import waitsome_until
from goco_mpi.engine.failures import Failures, is_death
from goco_mpi.engine.gossip_exchange import GossipExchange

Array = NDArray[np.float64]

LOOK_S = 0.05
"""Seconds between two looks for the dead while waiting."""


class SurvivingExchange(GossipExchange):
    """Slots to every neighbour that lives. Collective, but for the dead.

    A death is seen at once on its edges: nothing is waited for or mixed any more. The round loop takes note of it
    between two steps (`lost`), and from then on every message says how many ranks its sender has lost. Deaths are
    known to all in the end, so that those who have lost equally many have lost the same ones, or are about to lose
    more.

    Parameters
    ----------
    comm, neighbors, n_params, deadline, poll_s, arrives, bulletin
        As of `GossipExchange`.
    restarts : bool
        Whether to mix only vectors of those who have lost as many ranks as this one.
    """

    def __init__(self, comm: MPI.Intracomm, *given: Any, restarts: bool, **named: Any) -> None:
        self._failures = Failures(comm)
        self._restarts = restarts
        self._lost: set[int] = set()
        super().__init__(comm, *given, **named)

    def _communicator(self, comm: MPI.Intracomm, neighbors: list[int]) -> MPI.Intracomm:
        return comm.Dup()  # Open MPI warns that its graphs are not tested for what comes after a failure

    def _start(self, request: MPI.Prequest) -> MPI.Request:
        try:
            return super()._start(request)
        except MPI.Exception as error:
            if not is_death(error):
                raise
            return MPI.REQUEST_NULL  # until the neighbour is buried

    def _completed(self, deadline: float) -> list[int]:
        self._bury()
        try:
            # Not all at once: who is waited for may die.
            return waitsome_until(self._requests, min(deadline, time.perf_counter() + LOOK_S), self._poll_s)
        except MPI.Exception:
            if not self._bury():
                raise
        # What the failed test completed it did not say: such requests are inactive now, and an inactive one tests as
        # complete. Those of the dead are no longer among them.
        return [index for index in range(len(self._requests)) if self._is_complete(index)]

    def _is_complete(self, index: int) -> bool:
        try:
            return bool(self._requests[index]) and self._requests[index].Test()
        except MPI.Exception as error:
            if not is_death(error):
                raise
            return False  # the next look buries it

    def _bury(self) -> bool:
        """Drop the edges to those who have died; return whether anybody has since the last time."""
        news = self._failures.look()
        for index, edge in enumerate(self._edges):
            if edge.neighbor in news:
                edge.send.bury()
                edge.receive.bury()
                self._requests[index] = self._requests[self.degree + index] = MPI.REQUEST_NULL
        return bool(news)

    def lost(self) -> list[int]:
        """Return who has died since the last call; vectors that are offered from now on say so."""
        self._bury()
        news = sorted(self._failures.dead - self._lost)
        if news:
            self._lost.update(news)
            self._n_lost = len(self._lost)
            if self._bulletin is not None:
                self._bulletin.restart(self._lost)
            # Who is done does not begin anew, and without its part the others would go astray.
            self.stopped |= self._restarts and any(edge.receive.goodbye for edge in self._edges)
        return news

    def inbox(self, round_: int) -> tuple[Array, list[Received]]:
        """Return the message offered and each neighbour's newest, where that may be mixed."""
        own, inbox = super().inbox(round_)
        usable = [step >= 0 for step in self.steps()]
        return own, [got if use else Received(None, got.age) for got, use in zip(inbox, usable, strict=True)]

    def steps(self) -> list[int]:
        """Return the neighbours' steps that the inbox holds, -1 where there is none."""
        slots = [edge.receive for edge in self._edges]
        return [slot.value_step if not self._restarts or slot.value_lost == self._n_lost else -1 for slot in slots]

    def _dissolve(self, end: float, time_limit_s: float) -> None:
        """Leave the rest to `goco_mpi.engine.regrouping.regroup`: of the dead there is no end to wait for."""
