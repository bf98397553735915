"""What a method is on stacked arrays, and the messages between the workers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from goco_mpi.core.stragglers import StragglerModel

Array = NDArray[np.float64]
Finished = NDArray[np.bool_]


class Step(ABC):
    """One method on stacked arrays; ``x`` has the shape (n_workers, n_params)."""

    x: Array
    needs_gradient: bool = True
    """Whether the next round has a use for gradients."""

    def weights(self, worker: int, t: int) -> Array | None:
        """Return what (N/M) a_ik a worker's gradient of this round is taken with; None: its share's own."""
        return None

    @abstractmethod
    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round: gradients ``g``, of which only some were finished."""


class Links:
    """The messages of all edges: which arrived, and what each worker last had of each neighbour.

    Parameters
    ----------
    mixing_matrix : csr_array of shape (n_workers, n_workers)
    stragglers : StragglerModel
        Says which messages are lost.
    rule : str
    max_age : int
    """

    def __init__(self, mixing_matrix: sp.csr_array, stragglers: StragglerModel, rule: str, max_age: int) -> None:
        self.matrix = mixing_matrix
        self.stragglers = stragglers
        self.max_age = max_age if rule == "stale" else 0
        entries = mixing_matrix.tocoo()
        off = (entries.row != entries.col) & (entries.data != 0.0)
        self.dest, self.source, self.weight = entries.row[off], entries.col[off], entries.data[off]
        self.last_round = np.full(len(self.dest), -(2**62), dtype=np.int64)
        self.last: Array | None = None
        self.perfect = stragglers.link_p == 0.0

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Neighbours of each worker."""
        return np.bincount(self.dest, minlength=self.matrix.shape[0])

    def deliver(self, messages: Array, t: int) -> None:
        """Let this round's messages, shape (n_workers, anything), arrive or be lost."""
        if self.perfect:
            self.last = messages[self.source]
            self.last_round[:] = t
            return
        if self.last is None:
            self.last = np.zeros((len(self.dest), messages.shape[1]))
        pairs = zip(self.dest.tolist(), self.source.tolist(), strict=True)
        arrived = np.array([self.stragglers.arrives(j, i, t) for i, j in pairs], dtype=bool)
        self.last[arrived] = messages[self.source[arrived]]
        self.last_round[arrived] = t

    def mix(self, v: Array, t: int) -> Array:
        """Return each worker's own v averaged with what it has of its neighbours (their first columns)."""
        if self.perfect:
            return np.asarray(self.matrix @ v)
        assert self.last is not None
        usable = t - self.last_round <= self.max_age
        dest, weight = self.dest[usable], self.weight[usable]
        x = v.copy()
        np.add.at(x, dest, weight[:, None] * (self.last[usable, : v.shape[1]] - v[dest]))
        return x

    def newest(self) -> tuple[NDArray[np.bool_], Array]:
        """Return for each edge whether anything has ever come, and what."""
        assert self.last is not None
        return self.last_round >= 0, self.last
