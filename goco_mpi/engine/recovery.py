"""What a rank does about the death of others: their shards' weights, their part of the loss, and when to give up."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods import Encoding
from goco_mpi.core.shares import Share
from goco_mpi.core.survivors import DISCONNECTED, LOST_SHARD, Survivors, ranks_text, shards_text
from goco_mpi.engine.stopping import Stopping
from goco_mpi.experiment import Layout

Array = NDArray[np.float64]


class Recovery:
    """One rank's share of the work as others die. All ranks come to the same by themselves.

    Parameters
    ----------
    layout : Layout
    rank : int
    share : Share
        What this rank computes as long as all live.
    sizes : sequence of int, optional
        Rows of every shard, where they are known.

    Attributes
    ----------
    dead : dict of int to int
        The round in which this rank heard of each death.
    encoding : Encoding or None
        What gradients are coded with; None: the share's own weights.
    step_scale : float
        What automatic step sizes are multiplied with; see `goco_mpi.core.survivors`.
    alive : ndarray of bool, shape (n_workers,)
    """

    def __init__(self, layout: Layout, rank: int, share: Share, sizes: Sequence[int] | None = None) -> None:
        self._layout = layout
        self._rank = rank
        self._share = self._owner = share
        self._sizes = sizes
        self._held = layout.placement.shards_of(rank)
        self.dead: dict[int, int] = {}
        self.encoding: Encoding | None = None
        self.step_scale = 1.0
        self.alive = np.ones(layout.n_workers, dtype=bool)

    def loss(self, params: Array) -> float:
        """Return this rank's part of F, of which it answers for more as others die."""
        return self._owner.loss(params)

    def lose(self, ranks: Sequence[int], round_: int, stopping: Stopping) -> None:
        """Take over from those who died, and stop the run if it cannot or should not go on."""
        self.dead.update(dict.fromkeys(ranks, round_))
        left = self._layout.without(self.dead)
        self.alive = left.alive
        weights = left.weights[self._rank, self._held]
        if not np.array_equal(weights, self._share.weights):
            self.encoding = Encoding(weights)
        if self._layout.config.step.kind == "auto":
            self.step_scale = left.step_scale
        self._owner = self.owner(left)
        stopping.forget()
        goes_on = True
        if not left.connected:
            stopping.stop(DISCONNECTED)
            goes_on = False
        elif left.lost_shards and self._layout.config.stop.on_lost_shard == "stop":
            stopping.stop(LOST_SHARD)
            goes_on = False
        if self._rank == int(left.alive.argmax()):
            self._say(ranks, round_, left, goes_on)

    def owner(self, left: Survivors) -> Share:
        """Return the share with its part of the loss as the living divide it."""
        if left.alive.all():
            return self._share
        return self._share.owning(left.owned(self._rank, self._held), self._layout.placement.n_shards)

    def _say(self, ranks: Sequence[int], round_: int, left: Survivors, goes_on: bool) -> None:
        text = f"goco: {ranks_text(list(ranks))} died; round {round_}"
        if left.lost_shards:
            text += f", {shards_text(left.lost_shards, self._sizes)} lost"
        if goes_on:
            text += f", going on with {int(left.alive.sum())} of {len(left.alive)} ranks"
        print(text, file=sys.stderr, flush=True)
