"""What a solver is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Solver(ABC):
    """A deterministic minimiser: it is told the gradient at its point and goes to the next.

    Parameters
    ----------
    start : ndarray of shape (n_params,)

    Attributes
    ----------
    point : ndarray of shape (n_params,)
        Where the next gradient is to be taken.
    """

    point: Array

    def __init__(self, start: Array) -> None:
        self.point = start.copy()

    @abstractmethod
    def advance(self, gradient: Array, step_size: float) -> None:
        """Take in the gradient at ``point``, shape (n_params,), and go on; ``step_size`` may play no part."""
