"""What `goco bench` measures on MPI: pairs of (ours, the raw limit) taken in one run.

Every function returns samples, not figures: one ratio a repeat, after a warm-up that is thrown
away. `goco_mpi.bench` starts them under mpiexec and turns samples into figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from goco_mpi.config import replace
from goco_mpi.core import topology
from goco_mpi.engine.deadline import Deadline
from goco_mpi.engine.exchange import GossipExchange
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.schema import RunConfig

MESSAGE_BYTES_A_REPEAT = 64 << 20
"""How much a rank sends in one repeat, within 20 to 400 rounds: a repeat lasts a fraction of a second."""


def exchange(session: Session, kind: str, n_params: int, repeats: int) -> list[float]:
    """Return ours / raw seconds of punctual exchange rounds on one graph. Collective.

    Ours is offer and wait of `GossipExchange`; raw posts Irecv and Isend and waits for all of
    them. Both move the same vectors between the same ranks, in turn.
    """
    graph = topology.build(kind, session.size)
    neighbors = graph.neighbors(session.rank)
    gossip = GossipExchange(
        session.comm,
        neighbors,
        n_params,
        Deadline(np.inf, 1.0),
        session.poll_s,
        lambda source, round_: True,
    )
    rounds = max(20, min(400, MESSAGE_BYTES_A_REPEAT // (8 * n_params * max(1, len(neighbors)))))
    params = np.ones(n_params)
    recvbufs = [np.empty(n_params) for _ in neighbors]
    round_ = 0

    def ours() -> None:
        nonlocal round_
        for _ in range(rounds):
            gossip.blank()
            gossip.offer(round_, round_)
            gossip.wait(round_)
            round_ += 1

    def raw() -> None:
        for _ in range(rounds):
            requests = [session.comm.Irecv(buf, j, 2) for buf, j in zip(recvbufs, neighbors, strict=True)]
            requests += [session.comm.Isend(params, j, 2) for j in neighbors]
            MPI.Request.Waitall(requests)

    samples = [_slowest(session, ours) / _slowest(session, raw) for _ in range(repeats + 1)]
    gossip.blank()
    gossip.close(round_, round_, failed=False, time_limit_s=60.0)
    return samples[1:]


def isolation(session: Session, config: RunConfig, repeats: int) -> list[float]:
    """Return the fast ranks' round rate with slow ranks / without. Collective.

    ``config`` has real slow ranks; each repeat runs it as it is and without them, in turn.
    """
    undisturbed = replace(config, stragglers=replace(config.stragglers, ranks=(), delay_p=0.0))
    slow = set(config.stragglers.ranks)

    def rate(variant: RunConfig) -> float:
        outcome = train(variant, session)
        rates = [] if outcome is None else [r["rounds"] / r["wall_s"] for r in outcome.ranks if r["rank"] not in slow]
        return float(session.comm.bcast(float(np.median(rates)) if rates else 0.0))

    samples = [rate(config) / rate(undisturbed) for _ in range(repeats + 1)]
    return samples[1:]


def _slowest(session: Session, action: Callable[[], None]) -> float:
    """Return the seconds that ``action`` takes on the rank that takes longest. Collective."""
    session.comm.Barrier()
    start = time.perf_counter()
    action()
    return float(session.comm.allreduce(time.perf_counter() - start, MPI.MAX))
