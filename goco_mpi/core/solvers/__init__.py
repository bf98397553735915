"""Minimisers that are told one exact gradient a round and ask for the next: one process runs them, or all alike."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.solvers.base import Solver
from goco_mpi.core.solvers.conjugate_gradients import ConjugateGradients
from goco_mpi.core.solvers.descent import Descent
from goco_mpi.core.solvers.nesterov import Nesterov

Array = NDArray[np.float64]

SOLVERS = ("descent", "nesterov", "cg")


def build(name: str, start: Array, precondition: Callable[[Array], Array]) -> Solver:
    """Build the solver named ``name``; only ``cg`` makes use of ``precondition``, r -> P^-1 r."""
    if name == "cg":
        return ConjugateGradients(start, precondition)
    return Nesterov(start) if name == "nesterov" else Descent(start)


__all__ = ["SOLVERS", "Solver", "build"]
