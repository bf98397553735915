"""What the launcher says of this process, read from its environment before MPI starts.

Kept free of numpy and mpi4py: BLAS reads its thread count when numpy is first imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

OPEN_MPI = "Open MPI mpiexec"

# In the order of trust: mpiexec inside a Slurm job leaves Slurm's own step variables in place,
# and those then count its proxies, one a node.
_LAUNCHERS = (
    (OPEN_MPI, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    # Hydra's mpiexec, or srun --mpi=pmi2, which does not count a node's ranks in PMI's terms.
    ("mpiexec (PMI)", "PMI_SIZE", "PMI_RANK", ("MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", ("SLURM_STEP_TASKS_PER_NODE",)),
)
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Launch:
    """What the environment says of the launch.

    Attributes
    ----------
    launcher : str
    n_ranks : int or None
        Processes started together, as far as the launcher says.
    rank : int
        This process among them; good for deciding who prints, not for MPI.
    n_local : int
        Processes on this node.
    """

    launcher: str
    n_ranks: int | None
    rank: int
    n_local: int


def inspect(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables.

    Examples
    --------
    >>> inspect({"PMI_SIZE": "8", "PMI_RANK": "3", "MPI_LOCALNRANKS": "4"})
    Launch(launcher='mpiexec (PMI)', n_ranks=8, rank=3, n_local=4)
    """
    for launcher, size, rank, local in _LAUNCHERS:
        if size in environment:
            n_ranks = _leading_int(environment[size], 1)
            n_local = next((environment[name] for name in local if name in environment), "")
            return Launch(launcher, n_ranks, _leading_int(environment.get(rank, ""), 0), _leading_int(n_local, n_ranks))
    return Launch("none", None, 0, 1)


def is_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether srun started this process, whatever it says to the MPI library."""
    return "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment


def speaks_pmix_alone(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the launcher offers a rank PMIx and no older PMI, as ``srun --mpi=pmix`` does.

    Examples
    --------
    >>> speaks_pmix_alone({"PMIX_NAMESPACE": "slurm.pmix.1.0"}), speaks_pmix_alone({"PMI_SIZE": "8"})
    (True, False)
    """
    return "PMIX_NAMESPACE" in environment and "PMI_SIZE" not in environment


def _leading_int(text: str, default: int) -> int:
    """Read the number that ``text`` starts with: ``4(x2)`` of Slurm is 4 tasks on 2 nodes, ``4,2`` of OpenMP nested."""
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits) if digits else default


def asks_for_fault_tolerance(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the job was started with Open MPI's ``mpiexec --with-ft ulfm``.

    Examples
    --------
    >>> asks_for_fault_tolerance({"OMPI_MCA_mpi_ft_enable": "1"}), asks_for_fault_tolerance({})
    (True, False)
    """
    return environment.get("OMPI_MCA_mpi_ft_enable", "0").lower() in ("1", "true", "yes", "on")


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def node_cores() -> int:
    """Return the number of cores of this node, whatever this process is bound to."""
    return os.cpu_count() or 1


def limit_threads(launch: Launch) -> int:
    """Set the BLAS threads of this process to its share of the node's cores, unless the user did.

    Returns
    -------
    int
        Threads per rank. With several ranks on a node, leaving it to the BLAS starts ranks
        times cores threads, which was measured 7 times slower.
    """
    for variable in _THREAD_VARIABLES:
        threads = _leading_int(os.environ.get(variable, ""), 0)
        if threads > 0:
            return threads
    threads = max(1, min(usable_cores(), node_cores() // launch.n_local))
    if "numpy" not in sys.modules:
        os.environ.update({variable: str(threads) for variable in _THREAD_VARIABLES})
    else:  # a program that imports numpy first: its BLAS has read the environment, and is told itself
        import threadpoolctl

        threadpoolctl.threadpool_limits(threads, user_api="blas")
    return threads
