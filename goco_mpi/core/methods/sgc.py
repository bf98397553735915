"""Stochastic gradient coding: a master that steps at a deadline, with whatever gradients have come.

    g_i = (N/M) sum_{k held by i} a_ik grad f_k(x)         a_ik = 1 / (d_k (1 - p)), or 1 / sum_{j holds k} q_j
    g   = (1/N) sum_{i finished} g_i                       unbiased: E g = grad F
    x <- x - eta g                                         or Nesterov's step

References
----------
Bitar, Wootters & El Rouayheb, "Stochastic gradient coding for straggler mitigation in distributed
learning", arXiv 1905.05383.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods.base import Array, Place
from goco_mpi.core.methods.central import Central


class Sgc(Central):
    """See the module."""

    name = "sgc"
    solvers = ("descent", "nesterov")

    def weights(self, place: Place, finished: NDArray[np.bool_]) -> Array | None:
        """Return ones: the encoding makes up for who is late. None where nobody finished."""
        return np.ones(place.n_workers) if finished.any() else None


SGC = Sgc()
