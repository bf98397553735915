"""The methods, one a file: each a pair of pure functions around an exchange.

A round is: compute the gradient at the state; `Method.local_step` turns state and gradient into
the vector to send; the exchange (messages in ``engine``, a matrix product in ``simulate``)
happens; `Method.combine` turns what came back into the next state.
"""

from goco_mpi.core.methods.allreduce import ALLREDUCE
from goco_mpi.core.methods.base import Method
from goco_mpi.core.methods.dgd import DGD
from goco_mpi.core.methods.goco import GOCO

METHODS: dict[str, Method] = {method.name: method for method in (GOCO, DGD, ALLREDUCE)}

__all__ = ["METHODS", "Method"]
