"""An experiment from Python, ended by a callback.

Run it with mpiexec -n 4 python -m mpi4py examples/train_from_python.py

(``python -m mpi4py`` ends all ranks should one of them fail in code of yours.)
"""

import numpy as np
from mpi4py import MPI

import goco_mpi

config = {
    "rounds": 500,
    "data": {"source": "breast_cancer", "shards": 8, "partition": "by_label", "standardize": True},
    "objective": {"kind": "logistic", "l2": 1e-2},
    "topology": {"kind": "ring"},
    "stragglers": {"kind": "slow", "ranks": [0], "factor": 10.0, "work_s": 1e-3},
}


def early_stopping(round_, x):
    """Look at this rank's parameters after each of its rounds; StopIteration ends the run on all ranks."""
    if np.linalg.norm(x) >= 1.5:
        raise StopIteration


result = goco_mpi.train(config, comm=MPI.COMM_WORLD, callback=early_stopping)
if MPI.COMM_WORLD.rank == 0:
    print(f"{result.message} Loss {result.fun:.4f} after {result.nit} rounds and {result.wall_s:.2f} s.")
    print(f"Test accuracy {100 * result.history[-1]['test_accuracy']:.1f} %.")
