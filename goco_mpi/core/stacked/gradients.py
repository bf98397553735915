"""The coded gradients of all workers in a few array operations: what makes the simulator fast at scale.

Written from the objectives' equations, like everything here:

    g_i = A_i^T (c_i * r(A_i X_i, b_i)) + c_reg l2 X_i

with the rows A_i of the shards that worker i holds, their weights c_i and targets b_i, and the residuals r, which
are the derivatives of the loss with respect to the model's outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit

from goco_mpi.core import objectives
from goco_mpi.core.rng import Purpose, stream
from goco_mpi.core.shares import ModelShare, Share

Array = NDArray[np.float64]

STACKED_BYTES = objectives.BLOCK_BYTES // 4
"""Features of a worker up to which they are stacked. Beyond it a loop costs little beside its work, and a copy much."""

CACHED_BYTES = 2 * objectives.BLOCK_BYTES
"""Features of a stack: the second of its two products finds them in the cache."""


def _softmax_residuals(outputs: Array, targets: Array) -> Array:
    # (softmax of each row) - (1 at the row's class)
    odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    odds[np.arange(len(odds)), targets.astype(np.intp)] -= 1.0
    return np.asarray(odds)


RESIDUALS: dict[type[objectives.Objective], Callable[[Array, Array], Array]] = {
    objectives.LeastSquares: lambda outputs, targets: outputs - targets[:, None],
    objectives.Logistic: lambda outputs, targets: -targets[:, None] * expit(-targets[:, None] * outputs),
    objectives.Softmax: _softmax_residuals,
}
"""d loss / d output, shape (n_rows, n_outputs), of outputs of that shape and targets (n_rows,)."""


def _softmax_changes(outputs: Array, directions: Array) -> Array:
    odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return np.asarray(odds * (directions - (odds * directions).sum(axis=1, keepdims=True)))


CHANGES: dict[type[objectives.Objective], Callable[[Array, Array], Array]] = {
    objectives.LeastSquares: lambda outputs, directions: directions,
    objectives.Logistic: lambda outputs, directions: directions * expit(outputs) * expit(-outputs),
    objectives.Softmax: _softmax_changes,
}
"""The derivative of the residuals along ``directions``, both and ``outputs`` of shape (n_rows, n_outputs)."""


class StackedGradients:
    """The gradients of all workers' shares.

    Shards are numbered through: those of worker 0 first, in the order of its share, then those of worker 1.

    Parameters
    ----------
    shares : sequence of Share, length n_workers

    Attributes
    ----------
    weights : ndarray of shape (n_copies,)
        The shares' own (N/M) a_ik; a copy is a shard on a worker.
    worker : ndarray of shape (n_copies,)
        Who holds it.
    place : ndarray of shape (n_copies,)
        Its place among that worker's shards.
    n_held : ndarray of shape (n_workers,)
        How many each worker holds.
    starts : ndarray of shape (n_workers,)
        Number of each worker's first.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self.n_held = n_held = np.array([share.n_shards for share in shares])
        self.weights = np.concatenate([share.weights for share in shares])
        self.worker = np.repeat(np.arange(len(shares)), n_held)
        self.starts = np.cumsum(n_held) - n_held
        self.place = np.arange(len(self.worker)) - self.starts[self.worker]
        self._shares = shares
        groups: defaultdict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
        self._alone: list[int] = []
        for i, share in enumerate(shares):
            known = isinstance(share, ModelShare) and type(share.objective) in RESIDUALS
            if isinstance(share, ModelShare) and known and (size := share.coded.features.data.nbytes) <= STACKED_BYTES:
                sparse = sp.issparse(share.coded.features)
                groups[id(share.objective), None if sparse else share.n_rows].append((i, size))
            else:
                self._alone.append(i)
        self._stacks = []
        for group in groups.values():
            workers, sizes = np.array(group).T
            ends = np.flatnonzero(np.diff(np.cumsum(sizes) // CACHED_BYTES)) + 1
            self._stacks += [_Stack(shares, part, self.starts) for part in np.split(workers, ends)]

    def into(
        self,
        out: Array,
        x: Array,
        wanted: NDArray[np.bool_],
        weights: Array | None = None,
        parts: NDArray[np.bool_] | None = None,
    ) -> None:
        """Write the gradients at ``x`` into the ``wanted`` rows of ``out``, both of shape (n_workers, n_params).

        Parameters
        ----------
        out, x : ndarray of shape (n_workers, n_params)
        wanted : ndarray of bool, shape (n_workers,)
        weights : ndarray of shape (n_copies,), optional
            In the place of the shares' own.
        parts : ndarray of bool, shape (n_copies,), optional
            Which shards count.

        Raises
        ------
        ValueError
            If a shard without weight is given one, as its rows' weights are not known.
        """
        factors, used = None, self.weights if weights is None else weights
        if weights is not None:
            if not self.weights.all():
                raise ValueError("a shard without weight cannot be given one")
            factors = weights / self.weights
        if parts is not None:
            factors = parts.astype(np.float64) if factors is None else factors * parts
            used = used * parts
        l2_weights = None if factors is None else np.bincount(self.worker, used, minlength=len(x)).astype(np.float64)
        for stack in self._stacks:
            gradients = stack.gradients(x[stack.rows], factors, l2_weights)
            if isinstance(stack.rows, slice):
                np.copyto(out[stack.rows], gradients, where=wanted[stack.rows, None])
            else:
                chosen = wanted[stack.rows]
                out[stack.rows[chosen]] = gradients[chosen]
        for i in self._alone:
            if wanted[i]:
                share, held = self._shares[i], slice(self.starts[i], self.starts[i] + self._shares[i].n_shards)
                share = share if weights is None else share.reweighted(weights[held])
                if parts is None or parts[held].all():
                    out[i] = share.gradient(x[i])
                else:
                    terms = (share.gradient(x[i], int(k)) for k in np.flatnonzero(parts[held]))
                    out[i] = sum(terms, start=np.zeros_like(x[i]))

    def curvatures(self, iterations: int = 50) -> Array:
        """Return the largest eigenvalue of every worker's Hessian at zero, shape (n_workers,).

        By power iteration, as `goco_mpi.core.objectives.curvature` does it for one.
        """
        n_params = self._shares[0].n_params
        values = np.zeros(len(self._shares))
        start = stream(0, Purpose.CURVATURE).standard_normal(n_params)
        for stack in self._stacks:
            directions = np.tile(start, (stack.n_members, 1))
            for _ in range(iterations):
                norms = np.linalg.norm(directions, axis=1, keepdims=True)
                directions /= np.where(norms > 0.0, norms, 1.0)  # a worker without data has a Hessian of zeros
                directions = stack.hessian_products(np.zeros_like(directions), directions)
            values[stack.rows] = np.linalg.norm(directions, axis=1)
        for i in self._alone:
            product = partial(self._shares[i].hessian_product, np.zeros(n_params))
            values[i] = objectives.curvature(product, n_params, iterations)
        return values


class _Stack:
    """Workers of one objective with equally many rows, or with sparse ones: then as one block diagonal matrix."""

    def __init__(self, shares: Sequence[Share], workers: NDArray[np.intp], starts: NDArray[np.int64]) -> None:
        members = [share for share in (shares[i] for i in workers) if isinstance(share, ModelShare)]
        first, last = int(workers[0]), int(workers[-1])
        # Where it can be, a slice: its rows are looked at where they are.
        self.rows = slice(first, last + 1) if last - first + 1 == len(workers) else workers
        self.objective = members[0].objective
        self.n_members = len(members)
        rows = [share.coded for share in members]
        self.sparse = sp.issparse(rows[0].features)
        if self.sparse:
            self.features = sp.block_diag([part.features for part in rows], format="csr").astype(np.float64)
        else:
            self.features = np.stack([part.features for part in rows]).astype(np.float64, copy=False)
        self.targets = np.concatenate([part.targets for part in rows])
        self.weights = np.concatenate([part.weights for part in rows])
        self.l2_weights = np.array([part.l2_weight for part in rows])
        copies = [starts[i] + np.arange(share.n_shards) for i, share in zip(workers, members, strict=True)]
        sizes = [np.array(share.sizes, dtype=np.int64) for share in members]
        self.copy_of_row = np.repeat(np.concatenate(copies), np.concatenate(sizes))

    def gradients(self, x: Array, factors: Array | None, l2_weights: Array | None) -> Array:
        """Return the gradients at ``x``, both of shape (n_members, n_params), with weights times ``factors``."""
        weights, regularized = self.weights, self.l2_weights
        if factors is not None and l2_weights is not None:
            weights, regularized = weights * factors[self.copy_of_row], l2_weights[self.rows]
        residuals = RESIDUALS[type(self.objective)](self._outputs(x), self.targets)
        residuals *= weights[:, None]
        return self._pulled_back(residuals) + (self.objective.l2 * regularized)[:, None] * x

    def hessian_products(self, x: Array, directions: Array) -> Array:
        """Return the gradients' derivatives at ``x`` along ``directions``, all of shape (n_members, n_params)."""
        changes = CHANGES[type(self.objective)](self._outputs(x), self._outputs(directions)) * self.weights[:, None]
        return self._pulled_back(changes) + (self.objective.l2 * self.l2_weights)[:, None] * directions

    def _outputs(self, x: Array) -> Array:
        n_features = self.objective.n_features
        shape = (self.n_members * n_features, -1) if self.sparse else (self.n_members, n_features, -1)
        outputs = np.asarray(self.features @ x.reshape(shape))
        return outputs.reshape(len(self.targets), self.objective.n_params // n_features)

    def _pulled_back(self, residuals: Array) -> Array:
        if self.sparse:
            sums = self.features.T @ residuals
        else:
            shape = (self.n_members, -1 if len(residuals) else 0, residuals.shape[1])
            sums = np.matmul(self.features.transpose(0, 2, 1), residuals.reshape(shape))
        return np.asarray(sums).reshape(self.n_members, -1)
