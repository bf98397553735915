"""The mean of all gradients, and one step for everybody."""

from __future__ import annotations

from collections.abc import Sequence

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedAllreduce(Step):
    """x <- x - eta mean G."""

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        self.x = x

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        self.x = self.x - eta * g.mean(axis=0)
