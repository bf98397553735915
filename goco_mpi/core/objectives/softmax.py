"""Softmax regression (multinomial logistic)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives.base import Objective
from goco_mpi.core.objectives.curvature import weighted_gram
from goco_mpi.core.objectives.rows import Array, Features


class Softmax(Objective):
    """loss = logsumexp(row X) - (row X)[target], X = params reshaped (n_features, n_classes)."""

    name = "softmax"

    def __init__(self, n_features: int, l2: float, n_classes: int) -> None:
        super().__init__(n_features, l2)
        self.n_classes = n_classes
        self._classes = np.arange(n_classes, dtype=np.float64)

    @property
    def n_params(self) -> int:
        """Length of the parameter vector, n_features * n_classes."""
        return self.n_features * self.n_classes

    @property
    def _columns(self) -> tuple[int, ...]:
        return (self.n_classes,)

    def _residuals(self, outputs: Array, targets: Array, losses: Array | None) -> None:
        shape = outputs.shape
        chosen: NDArray[np.bool_] = self._buffers("chosen", *shape, dtype=np.bool_)
        np.equal(targets[:, None], self._classes, out=chosen)
        sums = self._probabilities(outputs, chosen, losses)
        if losses is not None:
            np.log(sums, out=sums)
            losses += sums
        np.subtract(outputs, 1.0, out=outputs, where=chosen)

    def _probabilities(
        self, outputs: Array, chosen: NDArray[np.bool_] | None = None, negated: Array | None = None
    ) -> Array:
        """Overwrite outputs by the softmax of each row; return the sums of the exponentials, largest taken as 1.

        ``negated``, where given, is overwritten by minus the logarithm of the ``chosen`` exponential of each row.
        """
        row = self._buffers("row", len(outputs))
        np.max(outputs, axis=1, out=row)
        outputs -= row[:, None]
        if negated is not None and chosen is not None:
            np.sum(outputs, axis=1, where=chosen, out=negated)
            np.negative(negated, out=negated)
        np.exp(outputs, out=outputs)
        np.sum(outputs, axis=1, out=row)
        outputs /= row[:, None]
        return row

    def _residual_products(self, outputs: Array, directions: Array) -> Array:
        self._probabilities(outputs)
        mean = np.sum(outputs * directions, axis=1, keepdims=True)
        return np.asarray(outputs * (directions - mean))

    def _add_curvature(self, outputs: Array, features: Features, weights: Array, out: Array) -> None:
        self._probabilities(outputs)
        # Indices: feature, class, feature, class; the blocks of two classes are one weighted Gram matrix each.
        blocks = out.reshape(self.n_features, self.n_classes, self.n_features, self.n_classes)
        for a in range(self.n_classes):
            for b in range(a, self.n_classes):
                products = outputs[:, a] * (float(a == b) - outputs[:, b])
                gram = weighted_gram(features, weights * products)
                blocks[:, a, :, b] += gram
                if a != b:
                    blocks[:, b, :, a] += gram

    def _right(self, outputs: Array, targets: Array) -> Array | None:
        return np.asarray(outputs.argmax(axis=1) == targets, dtype=np.float64)
