"""What `goco bench` measures on MPI; `goco_mpi.bench` starts it and turns samples into figures.

Every function is collective, takes the options of one row of `goco_mpi.bench.members`, and returns
samples, not figures: one a repeat, good on rank 0. Ratios are of (ours, the raw limit) taken in one
run, in turn, after a warm-up that is thrown away.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from goco_mpi.config import parse_config
from goco_mpi.core import topology
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.engine.gossip_exchange import GossipExchange
from goco_mpi.engine.memory import resident_mib
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.experiment import lay_out
from goco_mpi.schema import RunConfig, replace

MESSAGE_BYTES_A_REPEAT = 64 << 20
"""How much a rank sends in one repeat, within 20 to 400 rounds: a repeat lasts a fraction of a second."""


def exchange(session: Session, kind: str, n_params: int, repeats: int) -> list[float]:
    """Return ours / raw seconds of punctual exchange rounds on one graph.

    Ours is offer and wait of `GossipExchange`; raw posts Irecv and Isend and waits for all of
    them. Both move the same vectors between the same ranks, in turn.
    """
    neighbors = topology.build(kind, session.size).neighbors(session.rank)
    params = np.ones(n_params)
    recvbufs = [np.empty(n_params) for _ in neighbors]
    rounds = max(20, min(400, MESSAGE_BYTES_A_REPEAT // (8 * n_params * max(1, len(neighbors)))))

    def raw() -> None:
        for _ in range(rounds):
            requests = [session.comm.Irecv(buf, j, 2) for buf, j in zip(recvbufs, neighbors, strict=True)]
            requests += [session.comm.Isend(params, j, 2) for j in neighbors]
            MPI.Request.Waitall(requests)

    with _punctual_rounds(session, kind, n_params) as go:
        samples = [_slowest(session, go, rounds) / _slowest(session, raw) for _ in range(repeats + 1)]
    return samples[1:]


def exchange_seconds(session: Session, cases: list[tuple[str, int, int]], repeats: int) -> list[float]:
    """Return the seconds of our punctual exchange rounds, for each (graph, n_params, rounds) of ``cases``.

    A tenth of the rounds go before as a warm-up. What peers are compared to: their programs do the
    same with the same cases. One sample a case: ``repeats`` is 1.
    """
    seconds = []
    for kind, n_params, rounds in cases:
        with _punctual_rounds(session, kind, n_params) as go:
            go(-(-rounds // 10))
            seconds.append(_slowest(session, go, rounds) / rounds)
    return seconds


@contextlib.contextmanager
def _punctual_rounds(session: Session, kind: str, n_params: int) -> Iterator[Callable[[int], None]]:
    """Set up our exchange on a graph, with nobody late; what is given goes so many rounds."""
    graph = topology.build(kind, session.size)
    gossip = GossipExchange(
        session.comm,
        graph.neighbors(session.rank),
        n_params,
        Deadline(np.inf, 1.0),
        session.poll_s,
    )
    round_ = 0

    def go(rounds: int) -> None:
        nonlocal round_
        for _ in range(rounds):
            gossip.blank()
            gossip.offer(round_, round_)
            gossip.wait(round_)
            round_ += 1

    yield go
    gossip.blank()
    gossip.close(round_, round_, failed=False, time_limit_s=60.0)


def isolation(session: Session, rank: int, factor: float, rounds: int, repeats: int) -> list[float]:
    """Return the fast ranks' round rate with one slow rank / without, median over the fast ranks.

    The slow rank's gradients really last ``factor`` times as long; each repeat is one run with it
    and one without.
    """
    undisturbed = experiment(rounds)
    slowed = replace(undisturbed, stragglers=replace(undisturbed.stragglers, ranks=(rank,), factor=factor))

    def rate(config: RunConfig) -> float:
        outcome = train(config, session)
        rates = [] if outcome is None else [r["rounds"] / r["wall_s"] for r in outcome.ranks if r["rank"] != rank]
        return float(session.comm.bcast(float(np.median(rates)) if rates else 0.0))

    samples = [rate(slowed) / rate(undisturbed) for _ in range(repeats + 1)]
    return samples[1:]


def memory(session: Session, rank: int, factor: float, from_round: int, rounds: int, repeats: int) -> list[float]:
    """Return how much resident memory any rank takes beyond what it has in an early round, in MiB.

    The peak over the rounds up to the last less that at ``from_round``, of the rank where it
    grows most, with one rank ``factor`` times slower. To be measured in processes of their own: memory
    that an earlier run left to the allocator would hide growth.
    """
    config = experiment(rounds, work_s=1e-3, ranks=(rank,), factor=factor)
    samples = []
    for _ in range(repeats):
        growth = _Growth(from_round)
        train(config, session, growth)
        samples.append(float(session.comm.allreduce(growth.mib, MPI.MAX)))
    return samples


def over_shards(session: Session, n_samples: int, n_features: int, rounds: int, repeats: int) -> list[float]:
    """Return how much more memory than its shards and (3 degree + 6) vectors a rank takes at its peak, in MiB.

    Of the rank that takes most, in a whole run: Python, numpy and MPI are in it. To be measured in processes of their
    own, as the peak is that since they began.
    """
    data = {"source": "synthetic_regression", "n_samples": n_samples, "n_features": n_features, "partition": "in_order"}
    config = parse_config(
        {
            "rounds": rounds,
            "data": {**data, "shards": 2 * session.size, "test_fraction": 0.0},
            "objective": {"kind": "least_squares"},
            "placement": {"replication": min(2, session.size)},
            "method": {"kind": "push_pull"},
            "record": {"every": rounds},
        }
    )
    degrees = lay_out(config, session.size).topology.degrees
    samples = []
    for _ in range(repeats):
        outcome = train(config, session)
        ranks = [] if outcome is None else outcome.ranks
        over = [row["peak_mib"] - allowed_mib(row["rows"], n_features + 1, int(degrees[row["rank"]])) for row in ranks]
        samples.append(float(session.comm.bcast(max(over, default=0.0))))
    return samples


def allowed_mib(n_rows: int, n_params: int, degree: int) -> float:
    """Return the size of dense shards with their targets, and of (3 degree + 6) vectors, in MiB.

    Examples
    --------
    >>> allowed_mib(n_rows=1024, n_params=127, degree=4) == 1.0 + 18 * 127 * 8 / 2**20
    True
    """
    return 8.0 * (n_rows * (n_params + 1) + (3 * degree + 6) * n_params) / float(1 << 20)


class _Growth:
    """How far resident memory rises above what it is in a first round; called after every round."""

    def __init__(self, from_round: int) -> None:
        self._from_round = from_round
        self._first = self._peak = math.nan

    def __call__(self, round_: int) -> None:
        if round_ >= self._from_round:
            now = resident_mib()
            if math.isnan(self._first):
                self._first = self._peak = now
            self._peak = max(self._peak, now)

    @property
    def mib(self) -> float:
        """The growth; NaN if that round was never reached."""
        return self._peak - self._first


def startup(session: Session, repeats: int) -> list[float]:
    """Do what a compute rank does before its first data and round, and nothing more; no samples.

    In it are: Python and the imports of ``goco run``, all but the data libraries, which are rank
    0's; MPI's start and our communicator; reading and checking a small experiment; laying it out
    (graph, mixing matrix, placement, weights), and agreeing on it.
    """
    layout = session.agree(lambda: lay_out(experiment(100), session.size))
    session.agree_on("the layout", layout.fingerprint())
    return []


def experiment(rounds: int, **stragglers: Any) -> RunConfig:
    """Return the experiment that is disturbed: rounds of real work, so light that ranks can share cores."""
    return parse_config(
        {
            "rounds": rounds,
            "data": {"partition": "by_label", "standardize": True},
            "placement": {"replication": 3},
            "stragglers": {"kind": "slow", "work_s": 0.01, **stragglers},
            "record": {"every": rounds},
        }
    )


def _slowest(session: Session, action: Callable[..., None], *args: Any) -> float:
    """Return the seconds that ``action(*args)`` takes on the rank that takes longest. Collective."""
    session.comm.Barrier()
    start = time.perf_counter()
    action(*args)
    return float(session.comm.allreduce(time.perf_counter() - start, MPI.MAX))
