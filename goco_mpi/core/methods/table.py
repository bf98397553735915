"""Everyone's newest gradient, coded with the weights of one set of workers left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ENTRY = 4
"""Numbers of an entry before its point: stamp, round, who was left out, weight."""


@dataclass
class Table:
    """Entries (stamp, w, z, g), one a worker; of stamp 0 as long as there is none.

    Attributes
    ----------
    out : int
        Who is left out, as a set; see `goco_mpi.core.reweighting`.
    stamps, weights : ndarray of shape (n_workers,)
    points, gradients : ndarray of shape (n_workers, n_params)

    Examples
    --------
    >>> table = Table.empty(2, n_params=1, out=0)
    >>> for stamp, z in ((2.0, 5.0), (1.0, 7.0)):  # the newest wins
    ...     table.enter(1, np.array([stamp, 0.0, 0.0, 1.5, z, -z]))
    >>> table.stamps.tolist(), table.points.tolist(), table.gradients.tolist()
    ([0.0, 2.0], [[0.0], [5.0]], [[0.0], [-5.0]])
    """

    out: int
    stamps: Array
    weights: Array
    points: Array
    gradients: Array

    @classmethod
    def empty(cls, n_workers: int, n_params: int, out: int) -> Table:
        """Return a table without entries."""
        return cls(
            out,
            np.zeros(n_workers),
            np.zeros(n_workers),
            np.zeros((n_workers, n_params)),
            np.zeros((n_workers, n_params)),
        )

    def enter(self, worker: int, entry: Array) -> None:
        """Put in an entry (stamp, round, out, w, z, g) if it is newer; one of weight 0 must not even pass on a NaN."""
        if entry[0] > self.stamps[worker]:
            self.stamps[worker] = entry[0]
            if entry[3] != 0.0:
                n = self.points.shape[1]
                self.weights[worker] = entry[3]
                self.points[worker] = entry[ENTRY : ENTRY + n]
                self.gradients[worker] = entry[ENTRY + n :]

    def copy(self, worker: int, other: Table) -> None:
        """Put in a worker's entry of another table."""
        self.stamps[worker], self.weights[worker] = other.stamps[worker], other.weights[worker]
        self.points[worker], self.gradients[worker] = other.points[worker], other.gradients[worker]

    def means(self) -> tuple[Array, Array] | None:
        """Return (sum w z / sum w, sum g / sum w) over all entries; None where there are none."""
        total = float(self.weights.sum())
        if total <= 0.0:
            return None
        return self.weights @ self.points / total, self.gradients.sum(axis=0) / total
