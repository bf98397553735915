"""The synchronous allreduce, tested for rather than waited in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core.gossip import TRAILER, Received
from goco_mpi.core.pace.counts import ExchangeCounts
from goco_mpi.engine.deadline import waitsome_until
from goco_mpi.engine.exchange import Exchange

Array = NDArray[np.float64]

ASKS = 2.0**-24
"""One rank's wish for a checkpoint: those of all ranks together are less than 1."""


class AllreduceExchange(Exchange):
    """The mean over all ranks, tested for rather than waited in.

    Behind the parameters two more numbers are summed: what the ranks tell, and how many left the run instead of taking
    part, so that nobody may use the sum; the fraction of that says how many ask for a checkpoint.

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
        self._sendbuf = np.zeros(n_params + TRAILER)
        self._sendbuf[-2] = math.nan
        self._recvbuf = np.zeros(n_params + TRAILER)
        self._recvbuf[-2] = math.nan
        self._request = MPI.REQUEST_NULL
        self._counts = ExchangeCounts()

    def drain(self) -> None:
        """Do nothing: between two rounds an allreduce has nothing under way."""

    def blank(self) -> Array:
        """Return the vector to fill: nothing is under way between two rounds."""
        return self._sendbuf[:-TRAILER]

    def offer(self, round_: int, step: int) -> None:
        """Start the reduction."""
        self._request = self._comm.Iallreduce(self._sendbuf, self._recvbuf, MPI.SUM)
        self._counts.messages_sent += 1
        self._counts.bytes_sent += self._sendbuf.nbytes

    def wait(self, round_: int) -> None:
        """Wait for everyone."""
        waitsome_until([self._request], math.inf, self._poll_s)
        self._counts.messages_received += 1
        self.abandoned = bool(self._recvbuf[-1] >= 1.0)
        self.stopped |= self.abandoned

    def inbox(self, round_: int) -> tuple[Array, list[Received]]:
        """Return the gradient offered and the mean over all ranks."""
        mean = self._recvbuf[:-TRAILER] / self._comm.Get_size()
        self._sendbuf[-2] = math.nan
        if self._recvbuf[-1] > 0.0:
            self.heard_checkpoint = self.checkpoint + 1
            self._sendbuf[-1] = 0.0
        return self._sendbuf[:-TRAILER], [Received(mean, 0)]

    def tell(self, round_: int, value: float) -> None:
        """Add a number to the next reduction."""
        self._sendbuf[-2] = value

    def told(self) -> float:
        """Return the sum in the last reduction; NaN if not all ranks told one for it."""
        return float(self._recvbuf[-2])

    def stop(self) -> None:
        """Stop here at once."""
        self.stopped = True

    def leave(self) -> None:
        """Take part in the reduction that the others are in, or will be, so that they leave as well; wait for them."""
        if not self.abandoned:
            self._sendbuf[:] = 0.0
            self._sendbuf[-1] = 1.0
            self.offer(-1, -1)
            self.wait(-1)

    def ask_for_checkpoint(self) -> bool:
        """Have all ranks make one after the next reduction, so that they make it in the same round."""
        self._sendbuf[-1] = ASKS
        return False

    def kept(self) -> dict[str, Any]:
        """Return what has been told, and the counts."""
        return {"told": [float(self._sendbuf[-2]), float(self._recvbuf[-2])], "counts": self._counts}

    def restore(self, kept: dict[str, Any]) -> None:
        """Put that back."""
        self._sendbuf[-2], self._recvbuf[-2] = kept["told"]
        self._counts = kept["counts"]

    def close(self, round_: int, step: int, failed: bool, time_limit_s: float) -> None:
        """Do nothing: all ranks end in the same round."""

    def counts(self) -> ExchangeCounts:
        """Return the counts so far."""
        return self._counts
