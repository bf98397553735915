"""What one worker computes of a module: coded gradients by automatic differentiation, block by block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from goco_mpi.core.shares import Share
from goco_mpi.errors import InputError
from goco_mpi.torch.flat import FlatModule, drawing_from, reason_of
from goco_mpi.torch.rows import Index, Rows

Array = NDArray[np.float64]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SEEDS = 2**32
"""How many seeds torch's CPU generator tells apart."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one shard, and the weight of their mean loss.

    Attributes
    ----------
    rows : Rows
    index : ndarray of int64
    weight : float
    """

    rows: Rows
    index: Index
    weight: float


@dataclass(frozen=True, eq=False)
class Block:
    """Parts that go through the module together, and the seed of what it draws meanwhile."""

    parts: Sequence[Part]
    seed: int


class TorchShare(Share):
    """One worker's shards of rows under a module and a loss.

    The coded gradient is that of sum_k (N/M) a_ik f_k, f_k being the mean loss over the rows of shard k, or over those
    drawn of it. As many rows as a block holds go through the module together, whichever shards they are of. A module
    that draws random numbers is given the rows of one shard at a time: a shard's term would depend on the shards beside
    it otherwise.

    Nothing but the rows is kept from one block to the next: each loads the parameters and adds its gradient to
    ``out``, so that in between the same module may serve for a loss, or for another worker.

    Parameters
    ----------
    flat : FlatModule
    loss : callable (outputs, targets) -> scalar tensor
        The mean over rows.
    rows : sequence of Rows, length n_shards
    weights : ndarray of shape (n_shards,)
        (N/M) a_ik of each shard.
    owned : ndarray of shape (n_shards,)
        1/M for a shard whose loss this worker answers for, 0 for the others.
    test : (Rows, ndarray of int64), optional
        Test samples, and which of them this worker classifies.
    block_rows : int
        Most rows of a block.
    draws : bool
        Whether the module, or the rows, draw random numbers.
    """

    def __init__(
        self,
        flat: FlatModule,
        loss: Loss,
        rows: Sequence[Rows],
        weights: Array,
        owned: Array,
        test: tuple[Rows, Index] | None,
        block_rows: int,
        draws: bool,
    ) -> None:
        self.n_params = flat.n_params
        self.n_shards = len(rows)
        self.n_rows = sum(map(len, rows))
        self.weights = weights
        self._flat = flat
        self._loss = loss
        self._rows = rows
        self._owned = owned
        self._test = test
        self._block_rows = block_rows
        self._draws = draws
        self._index: list[Index] = [np.arange(len(part)) for part in rows]
        self._seeds = np.zeros(len(rows), dtype=np.int64)

    def reweighted(self, weights: Array) -> TorchShare:
        """Return the same shards under other weights."""
        other = copy.copy(self)
        other.weights = weights
        return other

    def owning(self, owned: NDArray[np.bool_], n_shards: int) -> TorchShare:
        """Return the same shards, those ``owned`` with 1 / M in the loss."""
        other = copy.copy(self)
        other._owned = owned / n_shards
        return other

    def sampled(self, batch_size: int, rng: np.random.Generator) -> TorchShare:
        """Return some rows of each shard, in their order, and seeds of what the module draws itself."""
        other = copy.copy(self)
        sizes = [len(part) for part in self._rows]
        other._index = [np.sort(rng.choice(n, min(n, batch_size), replace=False, shuffle=False)) for n in sizes]
        other._seeds = rng.integers(SEEDS, size=self.n_shards)
        return other

    def gradient_blocks(self, params: Array, out: Array, shard: int | None = None) -> Iterator[None]:
        """Go through all rows that are drawn, or through one shard's; yield after each block."""
        out[:] = 0.0
        for block in self._blocks(range(self.n_shards) if shard is None else (shard,)):
            self._flat.load(params)
            with drawing_from(block.seed):
                self._value(block.parts).backward()
            out += self._flat.gradients
            yield

    def loss(self, params: Array) -> float:
        """Return 1/M times the sum, over the shards that this worker owns, of the mean losses of all their rows."""
        total = 0.0
        self._flat.load(params)
        with self._flat.evaluating(), drawing_from(0):
            for rows, weight in zip(self._rows, self._owned, strict=True):
                if weight:
                    for index in self._cut(np.arange(len(rows))):
                        total += float(self._value([Part(rows, index, weight * len(index) / len(rows))]))
        return total

    def hessian_product(self, params: Array, direction: Array) -> Array:
        """Return the derivative of the coded gradient along ``direction``, by differentiating twice.

        Raises
        ------
        InputError
            If the module has no second derivatives.
        """
        flat, product = self._flat, np.zeros(self.n_params)
        along = flat.split(direction)
        for block in self._blocks(range(self.n_shards)):
            flat.load(params)
            try:
                with drawing_from(block.seed):
                    value = self._value(block.parts)
                first = torch.autograd.grad(value, flat.parameters, create_graph=True, materialize_grads=True)
                slope = sum((torch.sum(one * other) for one, other in zip(first, along, strict=True)), torch.zeros(()))
                if slope.requires_grad:
                    slope.backward()
            except RuntimeError as error:
                raise InputError(
                    "step.kind = 'auto' needs the curvature of the loss, and the module has no second derivatives: "
                    f"{reason_of(error)}. Give step.size."
                ) from None
            product += flat.gradients
        return product

    def correct(self, params: Array) -> tuple[float, int] | None:
        """Return how many of the worker's test samples have their largest output at their class, and of how many."""
        if self._test is None:
            return None
        (rows, mine), right = self._test, 0.0
        self._flat.load(params)
        with self._flat.evaluating(), drawing_from(0):
            for index in self._cut(mine):
                inputs, targets = rows.take(index)
                right += float((self._flat.module(inputs).argmax(dim=1) == targets).sum())
        return right, len(mine)

    def _blocks(self, places: Sequence[int]) -> Iterator[Block]:
        """Group the drawn rows of some shards into blocks."""
        parts: list[Part] = []
        seed, room = 0, self._block_rows
        for place in places:
            index, weight = self._index[place], float(self.weights[place])
            begin = 0
            while begin < len(index) and weight:
                piece = index[begin : begin + room]
                if not parts:
                    seed = (int(self._seeds[place]) + begin) % SEEDS
                parts.append(Part(self._rows[place], piece, weight * len(piece) / len(index)))
                begin, room = begin + len(piece), room - len(piece)
                if not room or self._draws:
                    yield Block(parts, seed)
                    parts, room = [], self._block_rows
        if parts:
            yield Block(parts, seed)

    def _cut(self, index: Index) -> Iterator[Index]:
        return (index[begin : begin + self._block_rows] for begin in range(0, len(index), self._block_rows))

    def _value(self, parts: Sequence[Part]) -> torch.Tensor:
        """Return the weighted sum of the parts' mean losses, all rows gone through the module together."""
        taken = [part.rows.take(part.index) for part in parts]
        inputs = torch.cat([one for one, _ in taken]) if len(taken) > 1 else taken[0][0]
        outputs = self._flat.module(inputs).split([len(part.index) for part in parts])
        values = [
            part.weight * self._loss(out, targets)
            for part, out, (_, targets) in zip(parts, outputs, taken, strict=True)
        ]
        return torch.stack(values).sum() if len(values) > 1 else values[0]
