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
    """One method on stacked arrays; ``x`` has the shape (n_workers, n_params).

    Attributes
    ----------
    all_weights : ndarray of shape (n_workers, n_shards) or None
        (N/M) a_ik at first, where somebody says.
    steps : bool
        Whether the step sizes play a part.
    """

    x: Array
    all_weights: Array | None = None
    steps: bool = True

    def needs_gradient(self, t: int) -> bool:
        """Tell whether gradients are taken in a round."""
        return True

    def weights(self, worker: int, t: int) -> Array | None:
        """Return what (N/M) a_ik a worker's gradient of this round is taken with; None: its share's own."""
        return None

    def lose(self, who: Finished) -> None:
        """Let those ``who`` have just heard of deaths begin anew, where the method needs that."""
        return

    def work(self, done: Array, t: int) -> None:
        """Hear what share of its gradient each worker finished in this round, shape (n_workers,)."""
        return

    @abstractmethod
    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round.

        Parameters
        ----------
        g : ndarray of shape (n_workers, n_params)
            Coded gradients. Of who has not finished one: zero, or with ``late = 'memory'`` the last that was finished.
        finished : ndarray of bool, shape (n_workers,)
        eta : float
            Step size.
        t : int
            The round, from 0.
        """


class Links:
    """The messages of all edges: which arrived, and what each worker last had of each neighbour.

    Parameters
    ----------
    mixing_matrix : csr_array of shape (n_workers, n_workers)
    stragglers : StragglerModel
        Says which messages are lost.
    rule : str
        One of `goco_mpi.core.gossip.RULES`.
    max_age : int
        In rounds; counts under ``stale`` alone.

    Attributes
    ----------
    dest, source, weight : ndarray of shape (n_edges,)
        Each edge's receiver, sender and w_ij; those of one receiver follow each other.
    last : ndarray of shape (n_edges, anything) or None
        What each receiver last had; None before the first round.
    last_round : ndarray of shape (n_edges,)
        When that was sent; far below 0 where nothing has ever come.
    perfect : bool
        Whether no message is ever lost: `mix` then needs no `deliver`.
    """

    def __init__(self, mixing_matrix: sp.csr_array, stragglers: StragglerModel, rule: str, max_age: int) -> None:
        self.matrix = mixing_matrix
        self.stragglers = stragglers
        self.max_age = max_age if rule == "stale" else 0
        entries = mixing_matrix.tocsr().sorted_indices().tocoo()
        off = (entries.row != entries.col) & (entries.data != 0.0)
        self.dest, self.source, self.weight = entries.row[off], entries.col[off], entries.data[off]
        # Row i of a matrix on the edges has worker i's entries.
        self._begins = np.searchsorted(self.dest, np.arange(mixing_matrix.shape[0] + 1))
        self._ones = self._on_edges(np.ones(len(self.dest)))
        self.last_round = np.full(len(self.dest), -(2**62), dtype=np.int64)
        self.last: Array | None = None
        self.perfect = not stragglers.lossy

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
        arrived = self.stragglers.arriving(self.source, self.dest, t)
        self.last[arrived] = messages[self.source[arrived]]
        self.last_round[arrived] = t

    def mix(self, v: Array, t: int) -> Array:
        """Return each worker's own v averaged with what it has of its neighbours (their first columns)."""
        if self.perfect:
            return np.asarray(self.matrix @ v)
        assert self.last is not None
        usable = self._on_edges(np.where(t - self.last_round <= self.max_age, self.weight, 0.0))
        kept = 1.0 - usable.sum(axis=1)
        return np.asarray(kept[:, None] * v + usable @ self.last[:, : v.shape[1]])

    def collect(self, values: Array) -> Array:
        """Return for each worker the sum of its edges' ``values``, shape (n_edges, anything)."""
        return np.asarray(self._ones @ values)

    def _on_edges(self, entries: Array) -> sp.csr_array:
        """Return the matrix of shape (n_workers, n_edges) with an entry of each edge in its receiver's row."""
        n_edges = len(entries)
        return sp.csr_array((entries, np.arange(n_edges), self._begins), shape=(len(self._begins) - 1, n_edges))

    def newest(self) -> tuple[NDArray[np.bool_], Array]:
        """Return for each edge whether anything has ever come, and what."""
        assert self.last is not None
        return self.last_round >= 0, self.last
