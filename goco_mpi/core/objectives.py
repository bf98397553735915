"""Least squares, logistic and softmax regression on weighted rows, dense or CSR.

Every objective has the one form

    F(x) = sum_s c_s loss(x; row s) + c_reg (l2 / 2) ||x||^2 ,

with row weights c_s and a regularisation weight c_reg that `WeightedRows` carries. The pooled
objective has c_s = 1/n and c_reg = 1; a worker's coded objective has its encoding weights
there, so that a coded gradient is one weighted pass over the worker's rows.

An intercept is a column of ones among the features and is regularised like the rest, which
keeps F strongly convex.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, softmax

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError, check_one_of

Array = NDArray[np.float64]
Features = Any  # an ndarray or a scipy.sparse.csr_array, float64, shape (n_rows, n_features)

BLOCK_BYTES = 1 << 20
"""Size of a row block: a few hundred microseconds of work between two looks at the messages."""


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Samples with the weight each has in an objective.

    Attributes
    ----------
    features : ndarray or csr_array of shape (n_rows, n_features)
    targets : ndarray of shape (n_rows,)
        Real numbers (least squares), -1 and 1 (logistic), or classes 0, 1, ... (softmax).
    weights : ndarray of shape (n_rows,)
        c_s, the weight of each row's loss.
    l2_weight : float
        c_reg, the weight of the regulariser.
    """

    features: Features
    targets: Array
    weights: Array
    l2_weight: float

    @property
    def n_rows(self) -> int:
        """Number of samples."""
        return int(self.features.shape[0])

    def part(self, index: slice, l2_weight: float) -> WeightedRows:
        """Return some of the rows; without copying, where the features are dense."""
        return WeightedRows(self.features[index], self.targets[index], self.weights[index], l2_weight)

    def blocks(self) -> Iterator[slice]:
        """Yield row slices of about ``BLOCK_BYTES`` of features each."""
        if self.n_rows == 0:
            return
        nbytes = self.features.data.nbytes
        rows = max(1, int(BLOCK_BYTES / max(1.0, nbytes / self.n_rows)))
        for start in range(0, self.n_rows, rows):
            yield slice(start, min(start + rows, self.n_rows))


class Objective(ABC):
    """A regularised loss of a linear model.

    Parameters
    ----------
    n_features : int
        Columns of the features.
    l2 : float
        Strength of the regulariser (l2 / 2) ||x||^2, at least 0.
    """

    name: str
    curvature_bound: float
    """Largest second derivative of the loss with respect to the model's output."""
    quadratic = False
    """Whether the Hessian is the same everywhere."""

    def __init__(self, n_features: int, l2: float) -> None:
        self.n_features = n_features
        self.l2 = l2

    @property
    def n_params(self) -> int:
        """Length of the parameter vector."""
        return self.n_features

    @abstractmethod
    def _outputs(self, params: Array, features: Features) -> Array:
        """Return the model's outputs, shape (n_rows,) or (n_rows, n_classes)."""

    @abstractmethod
    def _row_losses(self, outputs: Array, targets: Array) -> Array:
        """Return the loss of each row, shape (n_rows,)."""

    @abstractmethod
    def _residuals(self, outputs: Array, targets: Array) -> Array:
        """Return d loss / d output of each row, shaped like ``outputs``."""

    @abstractmethod
    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        """Return the second derivative of each row's loss times ``directions``."""

    @abstractmethod
    def _pull_back(self, features: Features, residuals: Array) -> Array:
        """Return features^T residuals as a vector of shape (n_params,)."""

    @abstractmethod
    def accuracy(self, params: Array, features: Features, targets: Array) -> Array | None:
        """Return for each row whether it is classified right, shape (n_rows,), or None."""

    def loss(self, params: Array, rows: WeightedRows) -> float:
        """Return F(params) on the given rows.

        Parameters
        ----------
        params : ndarray of shape (n_params,)
        rows : WeightedRows
        """
        total = 0.5 * self.l2 * rows.l2_weight * float(params @ params)
        for block in rows.blocks():
            losses = self._row_losses(self._outputs(params, rows.features[block]), rows.targets[block])
            total += float(rows.weights[block] @ losses)
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
        for block in rows.blocks():
            features = rows.features[block]
            residuals = self._residuals(self._outputs(params, features), rows.targets[block])
            residuals *= rows.weights[block].reshape(-1, *(1,) * (residuals.ndim - 1))
            out += self._pull_back(features, residuals)
            yield

    def gradient(self, params: Array, rows: WeightedRows, out: Array | None = None) -> Array:
        """Return grad F(params), shape (n_params,), in ``out`` if given."""
        result = np.empty(self.n_params) if out is None else out
        for _ in self.gradient_blocks(params, rows, result):
            pass
        return result

    def hessian_product(self, params: Array, rows: WeightedRows, direction: Array) -> Array:
        """Return the Hessian of F at ``params`` times ``direction``, shape (n_params,)."""
        result: Array = self.l2 * rows.l2_weight * direction
        for block in rows.blocks():
            features = rows.features[block]
            products = self._residual_products(self._outputs(params, features), self._outputs(direction, features))
            products *= rows.weights[block].reshape(-1, *(1,) * (products.ndim - 1))
            result += self._pull_back(features, products)
        return result

    def hessian(self, params: Array, rows: WeightedRows) -> Array:
        """Return the Hessian of F at ``params``, shape (n_params, n_params)."""
        result: Array = np.diag(np.full(self.n_params, self.l2 * rows.l2_weight))
        for block in rows.blocks():
            features = rows.features[block]
            self._add_curvature(self._outputs(params, features), features, rows.weights[block], result)
        return result

    def _add_curvature(self, outputs: Array, features: Features, weights: Array, out: Array) -> None:
        """Add the Hessian of some rows' weighted losses to ``out``; here for one output a row."""
        out += _weighted_gram(features, weights * self._residual_products(outputs, np.ones_like(outputs)))

    def smoothness(self, rows: WeightedRows) -> float:
        """Return L with ||grad F(x) - grad F(y)|| <= L ||x - y|| for all x, y (worst case)."""
        return self.curvature_bound * _gram_extremes(rows)[1] + self.l2 * rows.l2_weight

    def strong_convexity(self, rows: WeightedRows) -> float:
        """Return mu with F - (mu/2) ||x||^2 convex: what the regulariser alone guarantees."""
        return self.l2 * rows.l2_weight


class LeastSquares(Objective):
    """loss = (row . x - target)^2 / 2."""

    name = "least_squares"
    curvature_bound = 1.0
    quadratic = True

    def _outputs(self, params: Array, features: Features) -> Array:
        return np.asarray(features @ params)

    def _row_losses(self, outputs: Array, targets: Array) -> Array:
        return 0.5 * (outputs - targets) ** 2

    def _residuals(self, outputs: Array, targets: Array) -> Array:
        return outputs - targets

    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        return directions

    def _pull_back(self, features: Features, residuals: Array) -> Array:
        return np.asarray(features.T @ residuals)

    def accuracy(self, params: Array, features: Features, targets: Array) -> Array | None:
        """Return None: a regression has no accuracy."""
        return None

    def strong_convexity(self, rows: WeightedRows) -> float:
        """Return the smallest eigenvalue of the Hessian, which is constant."""
        return _gram_extremes(rows)[0] + self.l2 * rows.l2_weight


class Logistic(Objective):
    """loss = log(1 + exp(-target row . x)), targets -1 and 1."""

    name = "logistic"
    curvature_bound = 0.25

    def _outputs(self, params: Array, features: Features) -> Array:
        return np.asarray(features @ params)

    def _row_losses(self, outputs: Array, targets: Array) -> Array:
        return np.logaddexp(0.0, -targets * outputs)

    def _residuals(self, outputs: Array, targets: Array) -> Array:
        return np.asarray(-targets * expit(-targets * outputs))

    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        return np.asarray(expit(outputs) * expit(-outputs) * directions)

    def _pull_back(self, features: Features, residuals: Array) -> Array:
        return np.asarray(features.T @ residuals)

    def accuracy(self, params: Array, features: Features, targets: Array) -> Array | None:
        """Return whether the output has the target's sign, float, shape (n_rows,)."""
        return np.asarray(targets * self._outputs(params, features) > 0.0, dtype=np.float64)


class Softmax(Objective):
    """loss = logsumexp(row X) - (row X)[target], X = params reshaped (n_features, n_classes)."""

    name = "softmax"
    curvature_bound = 0.5

    def __init__(self, n_features: int, l2: float, n_classes: int) -> None:
        super().__init__(n_features, l2)
        self.n_classes = n_classes

    @property
    def n_params(self) -> int:
        """Length of the parameter vector, n_features * n_classes."""
        return self.n_features * self.n_classes

    def _outputs(self, params: Array, features: Features) -> Array:
        return np.asarray(features @ params.reshape(self.n_features, self.n_classes))

    def _row_losses(self, outputs: Array, targets: Array) -> Array:
        chosen = np.take_along_axis(outputs, targets.astype(np.intp)[:, None], axis=1)[:, 0]
        return np.asarray(logsumexp(outputs, axis=1) - chosen)

    def _residuals(self, outputs: Array, targets: Array) -> Array:
        residuals = np.asarray(softmax(outputs, axis=1))
        residuals[np.arange(len(targets)), targets.astype(np.intp)] -= 1.0
        return residuals

    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        probabilities = softmax(outputs, axis=1)
        mean = np.sum(probabilities * directions, axis=1, keepdims=True)
        return np.asarray(probabilities * (directions - mean))

    def _add_curvature(self, outputs: Array, features: Features, weights: Array, out: Array) -> None:
        probabilities = softmax(outputs, axis=1)
        # Indices: feature, class, feature, class; the blocks of two classes are one weighted Gram matrix each.
        blocks = out.reshape(self.n_features, self.n_classes, self.n_features, self.n_classes)
        for a in range(self.n_classes):
            for b in range(a, self.n_classes):
                products = probabilities[:, a] * (float(a == b) - probabilities[:, b])
                gram = _weighted_gram(features, weights * products)
                blocks[:, a, :, b] += gram
                if a != b:
                    blocks[:, b, :, a] += gram

    def _pull_back(self, features: Features, residuals: Array) -> Array:
        return np.asarray(features.T @ residuals).ravel()

    def accuracy(self, params: Array, features: Features, targets: Array) -> Array | None:
        """Return whether the largest output is the target's, float, shape (n_rows,)."""
        return np.asarray(self._outputs(params, features).argmax(axis=1) == targets, dtype=np.float64)


KINDS = (LeastSquares.name, Logistic.name, Softmax.name)


def build(kind: str, n_features: int, l2: float, n_classes: int | None) -> Objective:
    """Build an objective by name for data with ``n_classes`` classes (None: real targets).

    Raises
    ------
    InputError
        For an unknown kind, or targets that do not fit it.
    """
    check_one_of("objective.kind", kind, KINDS)
    if kind == LeastSquares.name:
        return LeastSquares(n_features, l2)
    if n_classes is None:
        raise InputError(
            f"objective.kind = '{kind}' needs whole-number class labels as targets, and these are real "
            "numbers. Use 'least_squares'."
        )
    if n_classes < 2:
        raise InputError(f"objective.kind = '{kind}' needs at least two classes. Got {n_classes}.")
    if kind == Softmax.name:
        return Softmax(n_features, l2, n_classes)
    if n_classes != 2:
        raise InputError(f"objective.kind = 'logistic' needs two classes. Got {n_classes}. Use 'softmax'.")
    return Logistic(n_features, l2)


def curvature(hessian_product: Callable[[Array], Array], n_params: int, iterations: int = 50) -> float:
    """Return the largest eigenvalue of a Hessian by power iteration.

    Parameters
    ----------
    hessian_product : callable (ndarray of shape (n_params,)) -> ndarray of shape (n_params,)
        Such as `Objective.hessian_product` at a fixed point; a mean over workers serves too.
    n_params : int
    iterations : int
        Products spent; 50 give two digits even with close eigenvalues.

    Returns
    -------
    float
        A lower bound of the true value that approaches it from below.

    Examples
    --------
    >>> round(curvature(lambda v: np.array([3.0, 1.0]) * v, 2), 6)
    3.0
    """
    direction = stream(0, Purpose.CURVATURE).standard_normal(n_params)
    value = 0.0
    for _ in range(iterations):
        norm = float(np.linalg.norm(direction))
        if norm == 0.0:
            return 0.0
        direction = hessian_product(direction / norm)
        value = float(np.linalg.norm(direction))
    return value


def extreme_curvatures(
    hessian_product: Callable[[Array], Array], n_params: int, iterations: int = 100
) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a Hessian by Lanczos' method, fully orthogonalised.

    Parameters
    ----------
    hessian_product, n_params
        As for `curvature`.
    iterations : int
        Products spent at most; as many as there are parameters are enough.

    Returns
    -------
    smallest, largest : float
        To six significant digits (see `goco_mpi.core.schedules.from_curvature`), 0 for a smallest one that is rounding;
        each approaches the true value from within.

    References
    ----------
    Golub & Van Loan, "Matrix computations", 2013, section 10.1.

    Examples
    --------
    >>> extreme_curvatures(lambda v: np.array([3.0, 1.0, 2.0]) * v, 3)
    (1.0, 3.0)
    """
    basis = np.zeros((min(iterations, n_params) + 1, n_params))
    vector = stream(0, Purpose.CURVATURE).standard_normal(n_params)
    diagonal: list[float] = []
    off: list[float] = []
    norm, largest = float(np.linalg.norm(vector)), 0.0
    for k in range(len(basis) - 1):
        basis[k] = vector / norm
        product = hessian_product(basis[k])
        largest = max(largest, float(np.linalg.norm(product)))
        diagonal.append(float(basis[k] @ product))
        vector = product
        for _ in range(2):  # the second time for what rounding left
            vector = vector - basis[: k + 1].T @ (basis[: k + 1] @ vector)
        norm = float(np.linalg.norm(vector))
        if norm <= 1e-12 * largest:
            break
        off.append(norm)
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off[: len(diagonal) - 1], -1))  # of the lower half
    smallest = float(f"{values[0]:.6g}") if values[0] > 1e-12 * values[-1] else 0.0
    return smallest, float(f"{values[-1]:.6g}")


def _weighted_gram(features: Features, weights: Array) -> Array:
    """Return sum_s weights_s row_s row_s^T, shape (n_features, n_features), dense."""
    gram = features.T @ (sp.diags_array(weights) @ features)
    return gram.toarray() if sp.issparse(gram) else np.asarray(gram)


def _gram_extremes(rows: WeightedRows) -> tuple[float, float]:
    """Return the smallest and largest eigenvalue of sum_s c_s row_s row_s^T."""
    n_features = rows.features.shape[1]
    if n_features <= 2048:
        values = np.linalg.eigvalsh(_weighted_gram(rows.features, rows.weights))
        return max(0.0, float(values[0])), float(values[-1])
    if rows.n_rows == 0:
        return 0.0, 0.0
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator(
        (n_features, n_features),
        matvec=lambda v: rows.features.T @ (rows.weights * (rows.features @ v)),
        dtype=np.float64,
    )
    # The smallest eigenvalue of a wide Gram matrix costs a factorisation; 0 is a safe bound.
    return 0.0, float(eigsh(operator, k=1, which="LA", return_eigenvectors=False)[0])
