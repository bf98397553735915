"""How vectors travel: what the round loop needs of gossip or an allreduce."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Received
from goco_mpi.core.pace.counts import ExchangeCounts

Array = NDArray[np.float64]


class Exchange(ABC):
    """What the round loop needs of a way to exchange vectors."""

    newest_round: int = -1
    """Newest round that any neighbour is known to have reached."""
    failed: bool = False
    """Whether a neighbour said that the run has failed."""
    stopped: bool = False
    """Whether this rank or a neighbour decided to stop the run."""
    abandoned: bool = False
    """Whether what `wait` waited for never came to be, as a rank left the run instead."""
    degree: int = 0
    """Neighbours whose vectors are mixed."""
    checkpoint: int = 0
    """Number of the newest checkpoint that this rank has done its part of, or began with."""
    heard_checkpoint: int = 0
    """Of the newest that it has heard of: its part is due before it mixes what came with that."""
    last_checkpoint: int = 0
    """Of one that is the last of a neighbour who is done."""

    @property
    def overtaken(self) -> bool:
        """Whether the gradient under way is of no more use to anybody."""
        return False

    def lost(self) -> list[int]:
        """Return who has died since the last call; vectors that are offered from now on say so."""
        return []

    def begin(self, round_: int, step: int, params: Array) -> None:
        """Take note that a round begins, with a gradient at ``params``; ``step`` is how many went before it."""
        return

    def pace(self) -> float:
        """Return how many rounds all neighbours are known to have offered a vector of; infinite where nobody lags."""
        return math.inf

    @abstractmethod
    def drain(self) -> None:
        """Take in what has arrived, without waiting."""

    @abstractmethod
    def blank(self) -> Array:
        """Return the vector to fill and then offer, shape (n_params,); leave it alone once offered."""

    @abstractmethod
    def offer(self, round_: int, step: int) -> None:
        """Send the vector that `blank` returned as this round's; ``step`` is how many went before it."""

    @abstractmethod
    def wait(self, round_: int) -> None:
        """Wait for this round's vectors, at most until the deadline."""

    @abstractmethod
    def inbox(self, round_: int) -> tuple[Array, list[Received]]:
        """Return the message offered and what has come: each neighbour's newest, or the mean alone.

        Valid until the next call of any other method.
        """

    def steps(self) -> list[int]:
        """Return the neighbours' steps that the inbox holds, -1 where nothing came yet."""
        return []

    @abstractmethod
    def tell(self, round_: int, value: float) -> None:
        """Let all ranks know a number of this rank, with the vectors to come."""

    @abstractmethod
    def told(self) -> float:
        """Return the sum of the numbers that all ranks told; NaN as long as some are not known."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the run: here as soon as ``stopped`` says so, elsewhere as the word spreads."""

    def leave(self) -> None:
        """Let those who wait for this round's vector know that there will be none; the run ends here before its end."""
        return

    @abstractmethod
    def close(self, round_: int, step: int, failed: bool, time_limit_s: float) -> None:
        """Say goodbye with the vector that `blank` returned, and leave no message under way. Collective."""

    def ask_for_checkpoint(self) -> bool:
        """Have all ranks make a checkpoint; return whether this one begins at once, before its next round."""
        return True

    def kept(self) -> dict[str, Any]:
        """Return what ``checkpoint``, which is due, holds of the exchange; see `goco_mpi.core.flatten`."""
        return {}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned, before the first round."""
        return

    @abstractmethod
    def counts(self) -> ExchangeCounts:
        """Return the counts so far."""

    def suspects(self) -> list[int]:
        """Return the neighbours that are not waited for."""
        return []

    def arrivals(self) -> tuple[list[float], list[bool]]:
        """Return when each neighbour's newest vector arrived, and whether it is a suspect.

        Times are those of `time.perf_counter`, NaN before the first.
        """
        return [], []
