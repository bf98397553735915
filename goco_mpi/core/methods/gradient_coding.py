"""Exact gradient coding: a master that steps as soon as the gradients that have come determine grad F.

    g_i = (N/M) sum_{k held by i} B_ik grad f_k(x)         B: an exact code, `goco_mpi.core.codes`
    grad F = (1/N) sum_{i finished} a_i g_i                a' B = (1, ..., 1)

With every shard on d workers nobody waits for the d - 1 slowest. The gradient is exact, so that the solver may be any
of an allreduce's, or `goco_mpi.core.methods.master_cg`.

References
----------
Tandon, Lei, Dimakis & Karampatziakis, "Gradient coding: avoiding stragglers in distributed learning",
arXiv 1612.03301.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods.base import Array, Place
from goco_mpi.core.methods.central import Central


class GradientCoding(Central):
    """See the module."""

    name = "gradient_coding"
    exact = True
    solvers = ("descent", "nesterov", "cg", "lbfgs")

    def weights(self, place: Place, finished: NDArray[np.bool_]) -> Array | None:
        """Return the decoding vector; None where the gradient is not determined."""
        assert place.code is not None  # the layout has one for methods that are exact
        return place.code.decoding(finished)


GRADIENT_CODING = GradientCoding()
