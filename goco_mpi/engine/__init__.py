"""The MPI side: the only importers of mpi4py."""
