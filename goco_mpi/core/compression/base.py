"""What a compressed message is, and what its receivers keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream

Array = NDArray[np.float64]


@dataclass
class Copy:
    """What a worker's neighbours know of its vector; its own neighbour may know less than the worker thinks.

    Attributes
    ----------
    value : ndarray of shape (n_params,)
    known : ndarray of shape (n_params,), bool
        Where the value is not too old to be mixed.
    number : int
        The message heard last; -1 before the first.
    """

    value: Array
    known: NDArray[np.bool_]
    number: int = -1


class Codec(ABC):
    """Turns vectors of one length into messages, and messages into copies.

    Attributes
    ----------
    size : int
        Numbers of float64 in a message.
    contraction : float
        delta in (0, 1] with E ||C(x) - x||^2 <= (1 - delta) ||x||^2 for the differences x that are compressed.
    lag : float
        Bound on sqrt(sum_t ||v_t - copy_t||^2 / sum_t ||v_t+1 - v_t||^2), by which copies trail vectors that move.
    """

    size: int
    contraction: float
    lag: float

    def __init__(self, n_params: int, seed: int) -> None:
        self.n_params = n_params
        self.seed = seed

    def copy(self, params: Array) -> Copy:
        """Return the copy of a worker of which only the first parameters are known: they are the same everywhere."""
        return Copy(params.copy(), np.ones(params.size, dtype=bool))

    @abstractmethod
    def encode(self, vector: Array, copy: Copy, worker: int, out: Array) -> None:
        """Write a worker's next message into ``out``, shape (size,), and bring its public ``copy`` up to it."""

    def decode(self, message: Array, copy: Copy, worker: int, max_age: int) -> None:
        """Bring the copy of ``worker`` up to a message of it; one that was heard before changes nothing."""
        number = int(message[0])
        if number <= copy.number:
            return
        if number - copy.number - 1 > max_age:
            copy.known[:] = False
        self._take_in(message, copy, worker, number)
        copy.number = number

    @abstractmethod
    def _take_in(self, message: Array, copy: Copy, worker: int, number: int) -> None:
        """Take in a message that is newer than the copy."""

    def _stream(self, worker: int, number: int) -> np.random.Generator:
        return stream(self.seed, Purpose.COMPRESSION, worker, number)
