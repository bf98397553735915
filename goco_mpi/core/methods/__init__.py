"""The methods, one a file: each the two halves of a round around an exchange.

A round is: compute the gradient at the state's parameters; `Method.send` turns state and gradient into a message; the
exchange happens (by MPI in ``engine``, in simulated seconds in `goco_mpi.core.discrete_event`, as recorded in
`goco_mpi.core.replay`); `Method.receive` takes in what came. `goco_mpi.core.simulate` uses none of this, but
`goco_mpi.core.stacked`.
"""

import importlib
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
from goco_mpi.errors import InputError

METHODS: dict[str, Method[Any]] = {
    method.name: method
    for method in (GOCO, PUSH_PULL, EXACT_DIFFUSION, TABLE_NEWTON, DGD, ALLREDUCE, GRADIENT_CODING, SGC)
}


def method_of(kind: str) -> Method[Any]:
    """Return a method by its name, or one from outside the package by where it is: ``module:NAME``.

    Raises
    ------
    InputError
        If there is none, or it is not of gossip: what a collective or a master does is not for others to define.

    Examples
    --------
    >>> method_of("goco") is GOCO
    True
    >>> method_of("goco_mpi.core.methods.dgd:DGD") is DGD
    True
    """
    if kind in METHODS:
        return METHODS[kind]
    place, _, name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(place), name)
    except Exception as error:  # whatever a module of others does
        raise InputError(
            f"method.kind = {kind!r} cannot be imported: {error!r}. Name it as module:NAME, and have the module "
            "installed, or its directory in PYTHONPATH, on all ranks."
        ) from None
    if not isinstance(found, Method) or found.exchange != "gossip":
        raise InputError(
            f"method.kind = {kind!r} must be an object of a class derived from goco_mpi.core.methods.Method, with "
            f"exchange = 'gossip'. Got {found!r}."
        )
    return found


SOLVERS: dict[str, Allreduce[Any]] = {
    "descent": ALLREDUCE,
    "nesterov": NESTEROV,
    "cg": CONJUGATE_GRADIENTS,
    "lbfgs": LBFGS,
}
"""What ``method.solver`` makes of the mean gradient that an allreduce brings, or a master has."""

PRECONDITIONED: dict[str, Method[Any]] = {"cg": PRECONDITIONED_GRADIENTS}
"""The solvers that ``method.preconditioner = 'local'`` goes with."""

__all__ = ["METHODS", "PRECONDITIONED", "SOLVERS", "Encoding", "Gradient", "Method", "Place", "State", "method_of"]
