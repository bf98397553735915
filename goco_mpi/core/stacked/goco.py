"""X <- W (X - eta G): `goco_mpi.core.methods.goco` and `dgd` on stacked arrays."""

from __future__ import annotations

from collections.abc import Sequence

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedDescent(Step):
    """X <- W (X - eta G)."""

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        self.x = x
        self.links = links

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round."""
        v = self.x - eta * g
        if not self.links.perfect:
            self.links.deliver(v, t)
        self.x = self.links.mix(v, t)
