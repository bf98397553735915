"""A regularised loss of a linear model on weighted rows: what all objectives have in common.

Every objective has the one form

    F(x) = sum_s c_s loss(x; row s) + c_reg (l2 / 2) ||x||^2 ,

with row weights c_s and a regularisation weight c_reg that `WeightedRows` carries. The pooled
objective has c_s = 1/n and c_reg = 1; a worker's coded objective has its encoding weights
there, so that a coded gradient is one weighted pass over the worker's rows.

An intercept is a column of ones among the features and is regularised like the rest, which
keeps F strongly convex.

A pass goes through blocks of rows. Both products of a block, its outputs and its part of the gradient, follow upon
each other while it is in the cache, so that every row comes from memory once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from goco_mpi.core.objectives import kernels
from goco_mpi.core.objectives.curvature import weighted_gram
from goco_mpi.core.objectives.rows import BLOCK_BYTES, Array, Buffers, Features, WeightedRows

Add = Callable[[Array, WeightedRows, slice, Array | None, bool], float]

HESSIAN_BYTES = 16 << 20
"""Most bytes of features that a Hessian takes in at a time."""


class Objective(ABC):
    """A regularised loss of a linear model.

    Parameters
    ----------
    n_features : int
        Columns of the features.
    l2 : float
        Strength of the regulariser (l2 / 2) ||x||^2, at least 0.

    Attributes
    ----------
    block_bytes : int
        Bytes of features in a block of rows: what stays in the cache between its two products.
    """

    name: str
    quadratic = False
    """Whether the Hessian is the same everywhere."""

    def __init__(self, n_features: int, l2: float) -> None:
        self.n_features = n_features
        self.l2 = l2
        self.block_bytes = BLOCK_BYTES
        self._buffers = Buffers()

    @property
    def n_params(self) -> int:
        """Length of the parameter vector."""
        return self.n_features

    @property
    def _columns(self) -> tuple[int, ...]:
        """Shape of the outputs of one row."""
        return ()

    @abstractmethod
    def _residuals(self, outputs: Array, targets: Array, losses: Array | None) -> None:
        """Overwrite the outputs of some rows by d loss / d output.

        Parameters
        ----------
        outputs : ndarray of shape (n_rows,) or (n_rows, n_classes)
        targets : ndarray of shape (n_rows,)
        losses : ndarray of shape (n_rows,) or None
            Overwritten by the rows' losses, where they are wanted.
        """

    @abstractmethod
    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        """Return the second derivative of each row's loss times ``directions``."""

    @abstractmethod
    def _right(self, outputs: Array, targets: Array) -> Array | None:
        """Return for each row whether its output is right, float, shape (n_rows,), or None."""

    def accuracy(self, params: Array, features: Features, targets: Array) -> Array | None:
        """Return for each row whether it is classified right, float, shape (n_rows,); None for a regression."""
        rows = WeightedRows(features, targets, targets, 0.0)
        right = np.empty(rows.n_rows)
        for block in rows.blocks(self.block_bytes):
            part = self._right(self._outputs(params, rows.block(block, self._buffers)[0]), rows.targets[block])
            if part is None:
                return None
            right[block] = part
        return right

    def loss(self, params: Array, rows: WeightedRows) -> float:
        """Return F(params) on the given rows.

        Parameters
        ----------
        params : ndarray of shape (n_params,)
        rows : WeightedRows
        """
        total = 0.5 * self.l2 * rows.l2_weight * float(params @ params)
        add, block_bytes = self._pass(params, rows, None)
        for block in rows.blocks(block_bytes):
            total += add(params, rows, block, None, True)
        return total

    def loss_and_gradient(self, params: Array, rows: WeightedRows, out: Array) -> float:
        """Return F(params) and compute its gradient into ``out``, in one pass over the rows.

        Parameters
        ----------
        params : ndarray of shape (n_params,)
        rows : WeightedRows
        out : ndarray of shape (n_params,)
            Overwritten.
        """
        total = 0.5 * self.l2 * rows.l2_weight * float(params @ params)
        np.multiply(params, self.l2 * rows.l2_weight, out=out)
        add, block_bytes = self._pass(params, rows, out)
        for block in rows.blocks(block_bytes):
            total += add(params, rows, block, out, True)
        return total

    def gradient_blocks(self, params: Array, rows: WeightedRows, out: Array) -> Iterator[None]:
        """Compute grad F(params) into ``out``, yielding after every block of rows.

        The caller may look up between blocks, for messages or the clock, and may stop early;
        ``out`` is the gradient only once the iterator is exhausted.

        Parameters
        ----------
        params : ndarray of shape (n_params,)
        rows : WeightedRows
        out : ndarray of shape (n_params,)
            Overwritten.
        """
        np.multiply(params, self.l2 * rows.l2_weight, out=out)
        add, block_bytes = self._pass(params, rows, out)
        for block in rows.blocks(block_bytes):
            add(params, rows, block, out, False)
            yield

    def gradient(self, params: Array, rows: WeightedRows, out: Array | None = None) -> Array:
        """Return grad F(params), shape (n_params,), in ``out`` if given."""
        result = np.empty(self.n_params) if out is None else out
        for _ in self.gradient_blocks(params, rows, result):
            pass
        return result

    def _pass(self, params: Array, rows: WeightedRows, out: Array | None) -> tuple[Add, int]:
        """Return what adds a block's gradient to ``out``, as `_add` does, and how many bytes it best takes at once."""
        vectors = (params,) if out is None else (params, out)
        if kernels.compiled is not None and all(v.dtype == np.float64 and v.flags.c_contiguous for v in vectors):
            fit = rows.known.get(self.name)
            if fit is None:
                fit = rows.known[self.name] = kernels.fit(self.name, rows)
            if fit:
                # Several outputs a row are as much more work: the time between two blocks is to stay what it is.
                block_bytes = kernels.BLOCKS * self.block_bytes * self.n_features // self.n_params
                return partial(kernels.add, self.name), block_bytes
        return self._add, self.block_bytes

    def _add(self, params: Array, rows: WeightedRows, block: slice, out: Array | None, with_loss: bool) -> float:
        """Add the gradient of some rows' weighted losses to ``out``, if given; return their loss if wanted, else 0."""
        features, transposed = rows.block(block, self._buffers)
        weights = rows.weights[block]
        outputs = self._outputs(params, features)
        losses = self._buffers("losses", len(weights)) if with_loss else None
        self._residuals(outputs, rows.targets[block], losses)
        if out is not None:
            np.multiply(outputs, weights.reshape(-1, *(1,) * (outputs.ndim - 1)), out=outputs)
            out += self._pull_back(transposed, outputs)
        return 0.0 if losses is None else float(weights @ losses)

    def _outputs(self, params: Array, features: Features) -> Array:
        """Return the model's outputs of rows, shape (n_rows, *_columns); of dense ones, in a buffer."""
        matrix = params.reshape(self.n_features, *self._columns)
        if isinstance(features, np.ndarray):
            return np.matmul(features, matrix, out=self._buffers("outputs", len(features), *self._columns))
        return np.asarray(features @ matrix)

    def _pull_back(self, transposed: Features, residuals: Array) -> Array:
        """Return features^T residuals as a vector of shape (n_params,); of dense features, in a buffer."""
        if isinstance(transposed, np.ndarray):
            term = self._buffers("gradient", self.n_features, *self._columns)
            return np.matmul(transposed, residuals, out=term).reshape(-1)
        return np.asarray(transposed @ residuals).reshape(-1)

    def hessian_product(self, params: Array, rows: WeightedRows, direction: Array) -> Array:
        """Return the Hessian of F at ``params`` times ``direction``, shape (n_params,)."""
        result: Array = self.l2 * rows.l2_weight * direction
        for block in rows.blocks(self.block_bytes):
            features, transposed = rows.block(block, self._buffers)
            outputs = 0.0 if self.quadratic else self._outputs(params, features).copy()
            products = self._residual_products(np.asarray(outputs), self._outputs(direction, features))
            products *= rows.weights[block].reshape(-1, *(1,) * (products.ndim - 1))
            result += self._pull_back(transposed, products)
        return result

    def hessian(self, params: Array, rows: WeightedRows) -> Array:
        """Return the Hessian of F at ``params``, shape (n_params, n_params)."""
        result: Array = np.diag(np.full(self.n_params, self.l2 * rows.l2_weight))
        # Of more rows at a time than a gradient: what a block adds is to cost more than adding it.
        for block in rows.blocks(max(self.block_bytes, min(4 * result.nbytes, HESSIAN_BYTES))):
            features, _ = rows.block(block, Buffers())
            self._add_curvature(self._outputs(params, features), features, rows.weights[block], result)
        return result

    def _add_curvature(self, outputs: Array, features: Features, weights: Array, out: Array) -> None:
        """Add the Hessian of some rows' weighted losses to ``out``; here for one output a row."""
        out += weighted_gram(features, weights * self._residual_products(outputs, np.ones_like(outputs)))
