"""Workers in simulated seconds: the methods' own rounds under the engine's rules of pace, without MPI or a clock."""

from goco_mpi.core.discrete_event.allreduce import run_allreduce
from goco_mpi.core.discrete_event.network import Network, Pacing, TimedRun

__all__ = ["Network", "Pacing", "TimedRun", "run_allreduce"]
