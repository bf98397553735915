"""What one rank did in a run, as ``ranks.csv`` has it."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import NamedTuple


class Spent(NamedTuple):
    """What a rank has spent so far, or the mean over all."""

    bytes_sent: float
    shard_gradients: float


@dataclass
class RunCounts:
    """What a rank's round loop did.

    Attributes
    ----------
    rounds : int
        Rounds gone through, those without a gradient of its own included.
    gradients : int
        Gradients finished, and used unless the run ended.
    late_gradients : int
        Gradients dropped at the deadline, by a straggler script, or by the end of the run.
    partial_gradients : int
        Gradients of which some shards were finished (late = 'partial'), and used likewise.
    repeated : int
        Rounds in which an earlier gradient was used again (late = 'memory').
    jumped : int
        Rounds skipped to catch up with the neighbours, between two gradients.
    shard_gradients : int
        Gradients of single shards that the finished and the partial gradients are made of.
    compute_s, wait_s, wall_s : float
        Seconds in gradients, in waiting for neighbours, and in all.
    setup_s : float
        Seconds that the method took to set up, before the first round and not in ``wall_s``.
    """

    rounds: int = 0
    gradients: int = 0
    late_gradients: int = 0
    partial_gradients: int = 0
    repeated: int = 0
    jumped: int = 0
    shard_gradients: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    wall_s: float = 0.0
    setup_s: float = 0.0


@dataclass
class ExchangeCounts:
    """What an exchange did, for the record.

    Attributes
    ----------
    messages_sent, messages_received : int
    bytes_sent : int
    superseded : int
        Messages never sent because a newer one took their place.
    missed : int
        Neighbour-rounds in which a neighbour's message was not there when mixing.
    suspected : int
        Times a neighbour became a suspect.
    """

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    superseded: int = 0
    missed: int = 0
    suspected: int = 0

    def __add__(self, other: ExchangeCounts) -> ExchangeCounts:
        """Return the counts of both together."""
        return ExchangeCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))
