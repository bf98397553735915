"""What decided each vector of a run: enough to compute it again.

A *step* is one local step and mixing of one worker; a worker's steps count from 0, and more than
one of them may belong to one round. A worker's events are a table of whole numbers, one row a step:

    round | point | used_1 ... used_degree | finished shards, as bits (partial gradients only)

``point`` is the step before which the parameters were those that the gradient was taken at, ``used_j``
the step whose message of the j-th neighbour was the newest that had arrived; -1 stands for none. Whether
it is mixed is up to the rule, which its age decides. A last row says in which
round the worker said goodbye; its vector is the final parameters. The weights and step sizes follow from the
config and the round.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NONE = -1
_BITS = 31
"""Shards in one word: the sign stays free."""


class EventLog:
    """Takes down one worker's steps in its round loop: a few numbers appended in memory.

    Parameters
    ----------
    degree : int
        Neighbours.
    n_shards : int
        Shards whose gradients may count one by one; 0 where only whole gradients do.

    Examples
    --------
    >>> log = EventLog(degree=2, n_shards=3)
    >>> log.append(0, 0, [0, NONE], [0, 2])
    >>> events = log.events()
    >>> events.used.tolist(), events.finished_shards(0)
    ([[0, -1]], [0, 2])
    >>> log.bytes_a_step
    20
    """

    def __init__(self, degree: int, n_shards: int = 0) -> None:
        self._degree = degree
        self._n_words = -(-n_shards // _BITS)
        self._numbers = array("i")

    @property
    def bytes_a_step(self) -> int:
        """Size of a row: 8 bytes, 4 for each neighbour, and 4 for every 31 shards."""
        return 4 * (2 + self._degree + self._n_words)

    def append(self, round_: int, point: int, used: Sequence[int], shards: Sequence[int] = ()) -> None:
        """Take down one step: its round, its gradient's point, the neighbours' steps used."""
        row = [round_, point, *used]
        if self._n_words:
            words = [0] * self._n_words
            for shard in shards:
                words[shard // _BITS] |= 1 << (shard % _BITS)
            row += words
        self._numbers.extend(row)

    def events(self) -> Events:
        """Return what was taken down."""
        columns = 2 + self._degree + self._n_words
        return Events(np.array(self._numbers, dtype=np.int32).reshape(-1, columns), self._degree)


@dataclass(frozen=True, eq=False)
class Events:
    """One worker's table.

    Attributes
    ----------
    table : ndarray of int32, shape (n_steps, 2 + degree + words)
    degree : int
    """

    table: NDArray[np.int32]
    degree: int

    @property
    def rounds(self) -> NDArray[np.int32]:
        """Round of each step, shape (n_steps,)."""
        return self.table[:, 0]

    @property
    def points(self) -> NDArray[np.int32]:
        """Step at whose parameters each step's gradient was taken, shape (n_steps,)."""
        return self.table[:, 1]

    @property
    def used(self) -> NDArray[np.int32]:
        """Steps of the neighbours' newest messages, shape (n_steps, degree)."""
        return self.table[:, 2 : 2 + self.degree]

    def finished_shards(self, step: int) -> list[int] | None:
        """Return the places of the shards that a step's gradient is of; None: all of them."""
        words = self.table[step, 2 + self.degree :]
        if not words.size:
            return None
        return [_BITS * place + bit for place, word in enumerate(words) for bit in range(_BITS) if word >> bit & 1]
