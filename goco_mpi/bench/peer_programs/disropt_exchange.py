"""Neighbour exchange with disropt; see `goco_mpi.bench.peers`.

As its documentation says: `Agent.neighbors_exchange` sends an object to all out-neighbours and returns what
the in-neighbours sent. Started by mpiexec.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Measure the cases of the first argument; rank 0 prints the seconds a round of each."""
    import numpy as np
    from disropt.agents import Agent  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from disropt.communicators import MPICommunicator  # type: ignore[import-not-found,import-untyped,unused-ignore]

    communicator = MPICommunicator()
    comm = communicator.comm
    found = []
    for graph, n_params, rounds in json.loads(sys.argv[1]):
        neighbors = graph[communicator.rank]
        agent = Agent(in_neighbors=neighbors, out_neighbors=neighbors, communicator=communicator)
        params = np.ones(n_params)
        received = {}
        for _ in range(-(-rounds // 10)):
            agent.neighbors_exchange(params)
        comm.Barrier()
        start = time.perf_counter()
        for _ in range(rounds):
            received = agent.neighbors_exchange(params)
        seconds = time.perf_counter() - start
        assert sorted(received) == sorted(neighbors)
        assert all((vector == 1.0).all() for vector in received.values())
        found.append(max(comm.allgather(seconds)) / rounds)
    if communicator.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
