"""What one worker computes of a problem: its coded gradient, and its part of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives import Objective, WeightedRows
from goco_mpi.errors import InputError

Array = NDArray[np.float64]


class Share(ABC):
    """One worker's share of F = (1/M) sum_k f_k.

    Attributes
    ----------
    n_params : int
    n_shards : int
        Shards that this worker holds.
    n_rows : int
        Samples among them, 0 where nobody counts them.
    weights : ndarray of shape (n_shards,)
        (N/M) a_ik of the shards held, in their order.
    quadratic : bool
        Whether the Hessian is known to be the same everywhere.
    """

    n_params: int
    n_shards: int
    n_rows: int = 0
    weights: Array
    quadratic: bool = False

    @property
    def weight(self) -> float:
        """(N/M) sum_k a_ik, the weight of the coded gradient."""
        return float(self.weights.sum())

    @abstractmethod
    def reweighted(self, weights: Array) -> Self:
        """Return the same shards under other ``weights``, shape (n_shards,)."""

    def owning(self, owned: NDArray[np.bool_], n_shards: int) -> Self:
        """Return the same shards, answering for the loss of those ``owned``.

        Parameters
        ----------
        owned : ndarray of bool, shape (n_shards,)
            Of the shards held.
        n_shards : int
            M, the shards of all workers.

        Raises
        ------
        ValueError
            If the share cannot tell the loss of its shards.
        """
        raise ValueError("this share's part of the loss is fixed")

    def sampled(self, batch_size: int, rng: np.random.Generator) -> Self:
        """Return ``batch_size`` rows of each shard, drawn without replacement, that stand for all of its rows.

        Their gradient is an unbiased estimate of the share's. A shard with no more rows than that is taken whole; the
        loss stays that of all rows.

        Raises
        ------
        ValueError
            If shards have no rows that could be drawn.
        """
        raise ValueError("shards of an objective of one's own have no rows to draw from")

    @abstractmethod
    def gradient_blocks(self, params: Array, out: Array, shard: int | None = None) -> Iterator[None]:
        """Compute the coded gradient into ``out``, yielding after every block of work.

        The caller may look up between blocks, for messages or the clock, and may stop early;
        ``out`` is the gradient only once the iterator is exhausted.

        Parameters
        ----------
        params : ndarray of shape (n_params,)
        out : ndarray of shape (n_params,)
            Overwritten with g_i = (N/M) sum_k a_ik grad f_k(params) over the shards held.
        shard : int, optional
            Place of one of the ``n_shards`` shards: only its term of the sum.
        """

    @abstractmethod
    def loss(self, params: Array) -> float:
        """Return the part of F(params) that this worker answers for; all workers' add up to F."""

    def hessian_product(self, params: Array, direction: Array) -> Array:
        """Return the derivative of the coded gradient at ``params`` along ``direction``.

        Here by central differences, with a step that balances rounding and curvature.
        """
        size = float(np.linalg.norm(direction))
        if size == 0.0:
            return np.zeros_like(params)
        step = (np.finfo(np.float64).eps ** (1.0 / 3.0)) * (1.0 + float(np.linalg.norm(params))) / size
        difference = self.gradient(params + step * direction) - self.gradient(params - step * direction)
        return difference / (2.0 * step)

    def hessian(self, params: Array) -> Array:
        """Return the derivative of the coded gradient at ``params``, shape (n_params, n_params), symmetric.

        Here column by column from `hessian_product`, which costs two gradients each.
        """
        columns = np.stack([self.hessian_product(params, unit) for unit in np.eye(self.n_params)])
        return np.asarray(0.5 * (columns + columns.T))

    def correct(self, params: Array) -> tuple[float, int] | None:
        """Return how many of this worker's test samples are classified right, and of how many.

        None where there are no classes.
        """
        return None

    def gradient(self, params: Array, shard: int | None = None) -> Array:
        """Return the coded gradient, or one shard's term of it, shape (n_params,)."""
        out = np.empty(self.n_params)
        for _ in self.gradient_blocks(params, out, shard):
            pass
        return out


class ModelShare(Share):
    """Rows of data under a model's objective.

    Parameters
    ----------
    objective : Objective
    coded : WeightedRows
        The worker's shards one after the other, under their encoding weights.
    owned : WeightedRows
        The same arrays, weighted so that the losses of all workers add up to F.
    sizes : sequence of int
        Rows of each shard.
    weights : ndarray of shape (n_shards,)
        Each shard's part of ``coded.l2_weight``.
    test : WeightedRows
        The worker's part of the test samples; the weights do not matter.
    """

    def __init__(
        self,
        objective: Objective,
        coded: WeightedRows,
        owned: WeightedRows,
        sizes: Sequence[int],
        weights: Array,
        test: WeightedRows,
    ) -> None:
        self.objective = objective
        self.coded = coded
        self.owned = owned
        self.test = test
        self.n_params = objective.n_params
        self.n_shards = len(sizes)
        self.n_rows = coded.n_rows
        self.quadratic = objective.quadratic
        self.weights = weights
        self.sizes = sizes
        self._ends = np.cumsum(sizes)

    def reweighted(self, weights: Array) -> ModelShare:
        """Return the same rows under other weights.

        Raises
        ------
        ValueError
            If a shard has no weight now, so that those of its rows are not known.
        """
        if not self.weights.all():
            raise ValueError("a shard without weight cannot be given one")
        factors = np.repeat(weights / self.weights, self.sizes)
        coded = replace(self.coded, weights=self.coded.weights * factors, l2_weight=float(weights.sum()))
        return ModelShare(self.objective, coded, self.owned, self.sizes, weights, self.test)

    def owning(self, owned: NDArray[np.bool_], n_shards: int) -> ModelShare:
        """Return the same rows, those of the shards ``owned`` weighted by 1 / n_samples in the loss."""
        # Every row's coded weight is its shard's, times M / n_samples.
        weights = np.repeat(self.weights, self.sizes)
        ratios = self.coded.weights[weights > 0.0] / weights[weights > 0.0]
        per_row = float(ratios[0]) / n_shards if ratios.size else 0.0
        mask = owned.astype(np.float64)
        rows = replace(
            self.owned, weights=np.repeat(mask * per_row, self.sizes), l2_weight=float(mask.sum()) / n_shards
        )
        return ModelShare(self.objective, self.coded, rows, self.sizes, self.weights, self.test)

    def sampled(self, batch_size: int, rng: np.random.Generator) -> ModelShare:
        """Return some rows of each shard, in the order that they are stored in."""
        if max(self.sizes, default=0) <= batch_size:
            return self
        sizes = np.minimum(self.sizes, batch_size)
        pairs = list(zip(self.sizes, sizes.tolist(), self._ends - self.sizes, strict=True))
        index = np.concatenate(
            [start + np.sort(rng.choice(size, drawn, replace=False, shuffle=False)) for size, drawn, start in pairs]
        )
        rows = self.coded
        scale = np.repeat([size / max(drawn, 1) for size, drawn, _ in pairs], sizes)
        coded = WeightedRows(
            rows.features[index], rows.targets[index], rows.weights[index] * scale, l2_weight=rows.l2_weight
        )
        return ModelShare(self.objective, coded, self.owned, sizes.tolist(), self.weights, self.test)

    def gradient_blocks(self, params: Array, out: Array, shard: int | None = None) -> Iterator[None]:
        """Go through all rows in one weighted pass, or through one shard's."""
        rows = self.coded
        if shard is not None:
            start = int(self._ends[shard - 1]) if shard else 0
            rows = rows.part(slice(start, int(self._ends[shard])), float(self.weights[shard]))
        return self.objective.gradient_blocks(params, rows, out)

    def loss(self, params: Array) -> float:
        """Return the weighted losses of the rows of the shards that this worker owns."""
        return self.objective.loss(params, self.owned)

    def loss_and_gradient(self, params: Array) -> tuple[float, Array]:
        """Return the part of F that this worker answers for, and its gradient; all workers' add up to those of F."""
        out = np.empty(self.n_params)
        return self.objective.loss_and_gradient(params, self.owned, out), out

    def owned_gradients(self, params: Array) -> Iterator[Array]:
        """Yield grad f_k(params) / M of each shard that it answers for in the loss; all workers' add up to grad F."""
        starts = self._ends - self.sizes
        owned = [
            (int(start), int(end)) for start, end in zip(starts, self._ends, strict=True) if self.owned.weights[start]
        ]
        for start, end in owned:
            rows = self.owned.part(slice(start, end), self.owned.l2_weight / len(owned))
            yield self.objective.gradient(params, rows)

    def hessian_product(self, params: Array, direction: Array) -> Array:
        """Return the coded objective's Hessian at ``params`` times ``direction``."""
        return self.objective.hessian_product(params, self.coded, direction)

    def hessian(self, params: Array) -> Array:
        """Return the coded objective's Hessian at ``params``, in one pass over the rows."""
        return self.objective.hessian(params, self.coded)

    def correct(self, params: Array) -> tuple[float, int] | None:
        """Return how many of the worker's test samples are classified right, and of how many."""
        right = self.objective.accuracy(params, self.test.features, self.test.targets)
        return None if right is None else (float(right.sum()), self.test.n_rows)


class ShardObjective(Protocol):
    """What a user's own objective must offer: f_k and its gradient, a shard being any object."""

    def loss(self, x: Array, shard: Any) -> float:
        """Return f_k(x)."""

    def gradient(self, x: Array, shard: Any, out: Array) -> object:
        """Write grad f_k(x) into ``out``, or return it."""


class CustomShare(Share):
    """Shards of a user's own objective.

    Parameters
    ----------
    objective : ShardObjective
    n_params : int
    shards : sequence of object
        The shards that this worker holds.
    weights : ndarray of shape (n_shards,)
        (N/M) a_ik of each.
    owned : ndarray of shape (n_shards,)
        1/M for a shard whose loss this worker answers for, 0 for the others.

    Raises
    ------
    InputError
        By `gradient_blocks` and `loss`, where the objective gives no gradient as long as x, or no number.
    """

    def __init__(
        self, objective: ShardObjective, n_params: int, shards: Sequence[Any], weights: Array, owned: Array
    ) -> None:
        self.objective = objective
        self.n_params = n_params
        self.n_shards = len(shards)
        self._shards = shards
        self.weights = weights
        self._owned = owned
        self._term = np.full(n_params, np.nan)
        self._answered = False

    def reweighted(self, weights: Array) -> CustomShare:
        """Return the same shards under other weights."""
        return CustomShare(self.objective, self.n_params, self._shards, weights, self._owned)

    def owning(self, owned: NDArray[np.bool_], n_shards: int) -> CustomShare:
        """Return the same shards, those ``owned`` with 1 / M in the loss."""
        return CustomShare(self.objective, self.n_params, self._shards, self.weights, owned / n_shards)

    def gradient_blocks(self, params: Array, out: Array, shard: int | None = None) -> Iterator[None]:
        """Take one shard after the other, or only one; yield after each."""
        out[:] = 0.0
        for place in range(self.n_shards) if shard is None else (shard,):
            self._ask(params, self._shards[place])
            self._term *= self.weights[place]
            out += self._term
            yield

    def _ask(self, params: Array, shard: Any) -> None:
        """Have the gradient of a shard in the buffer, whether the objective writes or returns it."""
        returned = self.objective.gradient(params, shard, out=self._term)
        if returned is not None and returned is not self._term:
            self._term[:] = self._vector(returned)
        elif not self._answered and np.isnan(self._term).all():
            raise InputError(
                f"gradient(x, shard, out) of {type(self.objective).__name__} must write the gradient into out, or "
                "return it. It returned nothing, and every number in out is NaN, as it was before."
            )
        self._answered = True

    def _vector(self, returned: object) -> Array:
        """Return what the objective returned for a gradient as a vector of shape (n_params,)."""
        try:
            array = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError):
            found = f"{returned!r}"
        else:
            if array.size == self.n_params:
                return array.reshape(-1)
            found = f"an array of shape {array.shape}"
        raise InputError(
            f"gradient(x, shard, out) of {type(self.objective).__name__} must return {self.n_params} numbers, as many "
            f"as x has. Got {found}. Return the gradient with respect to x, or write it into out."
        )

    def loss(self, params: Array) -> float:
        """Return the mean over the shards that this worker owns, of the losses of all."""
        parts = zip(self._owned, self._shards, strict=True)
        return float(sum(weight * self._loss(params, shard) for weight, shard in parts if weight))

    def _loss(self, params: Array, shard: Any) -> float:
        returned = self.objective.loss(params, shard)
        try:
            return float(returned)
        except (TypeError, ValueError):
            raise InputError(
                f"loss(x, shard) of {type(self.objective).__name__} must return a number. Got {returned!r}. Return the "
                "shard's loss at x, such as a mean over its rows."
            ) from None
