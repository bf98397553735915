"""The methods, one a file: each the two halves of a round around an exchange.

A round is: compute the gradient at the state's parameters; `Method.send` turns state and gradient
into a message; the exchange happens (MPI in ``engine``, a matrix product in ``simulate``);
`Method.receive` takes in what came.
"""

from typing import Any

from goco_mpi.core.methods.allreduce import ALLREDUCE, Allreduce
from goco_mpi.core.methods.allreduce_cg import CONJUGATE_GRADIENTS
from goco_mpi.core.methods.allreduce_lbfgs import LBFGS
from goco_mpi.core.methods.allreduce_nesterov import NESTEROV
from goco_mpi.core.methods.allreduce_pcg import PRECONDITIONED_GRADIENTS
from goco_mpi.core.methods.base import Encoding, Gradient, Method, Place, State
from goco_mpi.core.methods.dgd import DGD
from goco_mpi.core.methods.exact_diffusion import EXACT_DIFFUSION
from goco_mpi.core.methods.goco import GOCO
from goco_mpi.core.methods.gradient_coding import GRADIENT_CODING
from goco_mpi.core.methods.push_pull import PUSH_PULL
from goco_mpi.core.methods.sgc import SGC
from goco_mpi.core.methods.table_newton import TABLE_NEWTON

METHODS: dict[str, Method[Any]] = {
    method.name: method
    for method in (GOCO, PUSH_PULL, EXACT_DIFFUSION, TABLE_NEWTON, DGD, ALLREDUCE, GRADIENT_CODING, SGC)
}

SOLVERS: dict[str, Allreduce[Any]] = {
    "descent": ALLREDUCE,
    "nesterov": NESTEROV,
    "cg": CONJUGATE_GRADIENTS,
    "lbfgs": LBFGS,
}
"""What ``method.solver`` makes of the mean gradient that an allreduce brings, or a master has."""

PRECONDITIONED: dict[str, Method[Any]] = {"cg": PRECONDITIONED_GRADIENTS}
"""The solvers that ``method.preconditioner = 'local'`` goes with."""

__all__ = ["METHODS", "PRECONDITIONED", "SOLVERS", "Encoding", "Gradient", "Method", "Place", "State"]
