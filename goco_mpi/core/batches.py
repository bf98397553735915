"""Minibatches: a gradient of some rows of each shard, drawn anew for every gradient."""

from __future__ import annotations

from dataclasses import dataclass

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.core.shares import ModelShare, Share


@dataclass(frozen=True)
class Batch:
    """How rows are drawn: a function of seed, worker and step, so that a run can be replayed.

    Attributes
    ----------
    size : int
        Rows of each shard, at least 1; a shard that has no more counts whole.
    seed : int
    """

    size: int
    seed: int

    def of(self, share: Share, worker: int, step: int) -> Share:
        """Return the rows of the gradient that ``worker`` begins in a step; see `Share.sampled`.

        Each holder of a shard draws rows of its own, so that the noise of all averages out.
        """
        return share.sampled(self.size, stream(self.seed, Purpose.BATCH, worker, step))


def n_rows(share: Share, batch: Batch | None) -> int:
    """Return the number of rows that one gradient of a share goes through."""
    if batch is None or not isinstance(share, ModelShare):
        return share.n_rows
    return sum(min(batch.size, rows) for rows in share.sizes)
