"""The gradient of a round: computed block by block, and what it is worth when it is late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch
from goco_mpi.core.methods import Encoding, Gradient
from goco_mpi.core.shares import Share
from goco_mpi.core.stragglers import StragglerModel

Array = NDArray[np.float64]


@dataclass(slots=True)
class FinishedWork:
    """A gradient, or the finished part of one, for local steps to use.

    Attributes
    ----------
    gradient : Gradient
    point : int
        The rank's step before which the parameters were those it was taken at.
    shards : list of int
        Places of the shards it is of, where they count one by one.
    uses : int
        Steps taken with it.
    """

    gradient: Gradient
    point: int
    shards: list[int] = field(default_factory=list)
    uses: int = 0


class Work:
    """Computes one rank's coded gradients, one at a time, by the late-gradient policy.

    ``discard``: a late gradient is nothing. ``partial``: shard by shard in random order, and those
    finished count. ``memory``: the last finished gradient counts until the next one is. ``wait``: there
    are no late ones.

    Parameters
    ----------
    rank : int
    share : Share
    stragglers : StragglerModel
    late : {'discard', 'partial', 'memory', 'wait'}
    batch : Batch, optional
        Which rows a gradient is taken of (default: all).

    Attributes
    ----------
    n_whole, n_partial, n_late : int
        Gradients finished, finished in part and used, and dropped.
    n_shard_gradients : int
        Gradients of single shards in those not dropped.
    """

    def __init__(
        self, rank: int, share: Share, stragglers: StragglerModel, late: str, batch: Batch | None = None
    ) -> None:
        self._rank = rank
        self._own_share = self._share = self._drawn = share
        self._batch = batch
        self._encoding: Encoding | None = None
        self._stragglers = stragglers
        self._late = late
        self._params = np.zeros(share.n_params)
        self._vector = np.zeros(share.n_params)
        # One shard's term, or with memory the buffer of the gradient that is not the last one.
        self._spare = np.zeros(share.n_params if late in ("partial", "memory") else 0)
        self._last: FinishedWork | None = None
        self._step = 0
        self._n_finished = 0
        self._finished: list[int] = []
        self._order: list[int] = []
        self.n_whole = self.n_partial = self.n_late = self.n_shard_gradients = 0

    def start(self, params: Array, round_: int, step: int, encoding: Encoding | None = None) -> Iterator[None]:
        """Begin the gradient at ``params``, under the weights of ``encoding`` if given.

        The iterator computes, and yields between blocks. Exhaust it and call `finish`, or leave it and call `cut`.
        """
        np.copyto(self._params, params)
        self._step = step
        if encoding is not self._encoding:
            self._encoding = encoding
            self._share = self._own_share if encoding is None else self._own_share.reweighted(encoding.weights)
        self._drawn = self._share if self._batch is None else self._batch.of(self._share, self._rank, step)
        self._finished = []
        n_shards = self._share.n_shards
        waits = self._late == "wait"
        self._n_finished = n_shards if waits else self._stragglers.shards_finished(self._rank, round_, n_shards)
        if self._late == "partial":
            self._order = self._stragglers.shard_order(self._rank, round_, n_shards)[: self._n_finished]
            return self._shard_by_shard(self._order)
        return self._in_one_pass()

    def keep(self, n_shards: int) -> None:
        """Let the iterator of `start`, not begun yet, end after so many shards: what a cut would leave of it."""
        del self._order[n_shards:]

    def _lasts(self, done: float) -> Iterator[None]:
        """Go on until the gradient has lasted long enough for a part of it to be ``done``; here no time passes."""
        return iter(())

    def _in_one_pass(self) -> Iterator[None]:
        yield from self._drawn.gradient_blocks(self._params, self._vector)
        yield from self._lasts(1.0)

    def _shard_by_shard(self, order: list[int]) -> Iterator[None]:
        self._vector[:] = 0.0
        for place, shard in enumerate(order, 1):
            yield from self._drawn.gradient_blocks(self._params, self._spare, shard)
            yield from self._lasts(place / self._share.n_shards)
            self._vector += self._spare
            self._finished.append(shard)
        yield from self._lasts(1.0)

    def finish(self) -> FinishedWork | None:
        """Return what counts once all blocks are done; None where a script made it late."""
        if self._late == "partial":
            return self.cut()
        if self._n_finished < self._share.n_shards:
            self.n_late += 1
            return self._last
        self.n_whole += 1
        self.n_shard_gradients += self._share.n_shards
        work = FinishedWork(Gradient(self._vector, self._params, self._encoding), self._step)
        if self._late == "memory":
            self._vector, self._spare = self._spare, self._vector
            self._params = np.empty_like(self._params) if self._last is None else self._last.gradient.params
            self._last = work
        return work

    def cut(self) -> FinishedWork | None:
        """Return what counts of a gradient that is left unfinished."""
        if not self._finished:
            self.n_late += self._share.n_shards > 0  # without shards there is nothing to be late with
            return None
        whole = len(self._finished) == self._share.n_shards
        self.n_whole += whole
        self.n_partial += not whole
        self.n_shard_gradients += len(self._finished)
        part = len(self._finished) / self._share.n_shards
        return FinishedWork(Gradient(self._vector, self._params, self._encoding, part), self._step, self._finished)

    @property
    def meanwhile(self) -> FinishedWork | None:
        """What a step uses that is taken while a gradient is under way."""
        return self._last

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the work: what is finished; a gradient under way will begin anew."""
        return {"last": self._last, "counts": [self.n_whole, self.n_partial, self.n_late, self.n_shard_gradients]}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned, before the first gradient."""
        self._last = kept["last"]
        self.n_whole, self.n_partial, self.n_late, self.n_shard_gradients = kept["counts"]
