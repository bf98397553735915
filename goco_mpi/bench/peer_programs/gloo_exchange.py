"""Neighbour exchange with torch.distributed's gloo backend; see `goco_mpi.bench.peers`.

As its documentation says for point-to-point communication: isend and irecv to and from every
neighbour on tensors that are made once, then wait for all. Started by torchrun.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any


def main() -> None:
    """Measure the cases of the first argument; rank 0 prints the seconds a round of each."""
    import torch  # type: ignore[import-not-found,unused-ignore]
    import torch.distributed as dist  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = []
    for graph, n_params, rounds in json.loads(sys.argv[1]):
        neighbors = graph[rank]
        params = torch.ones(n_params, dtype=torch.float64)
        received = [torch.empty(n_params, dtype=torch.float64) for _ in neighbors]

        exchange = partial(_exchange, dist, neighbors, params, received)
        exchange(-(-rounds // 10))
        dist.barrier()
        start = time.perf_counter()
        exchange(rounds)
        seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        assert all(bool((buffer == 1.0).all()) for buffer in received)
        found.append(float(seconds) / rounds)
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def _exchange(dist: Any, neighbors: list[int], params: Any, received: list[Any], rounds: int) -> None:
    for _ in range(rounds):
        works = [dist.irecv(buffer, j) for buffer, j in zip(received, neighbors, strict=True)]
        works += [dist.isend(params, j) for j in neighbors]
        for work in works:
            work.wait()


if __name__ == "__main__":
    main()
