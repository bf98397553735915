"""The synchronous rival in simulated seconds: everybody waits for the slowest, and for the reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.costs import CostModel
from goco_mpi.core.discrete_event.network import Observe, TimedRun
from goco_mpi.core.gossip import TRAILER, Mixing, Received
from goco_mpi.core.methods import Gradient, Method, Place
from goco_mpi.core.pace import rounds
from goco_mpi.core.pace.counts import ExchangeCounts, RunCounts, Spent
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import divergence

Array = NDArray[np.float64]


def run_allreduce(
    method: Method[Any],
    places: Sequence[Place],
    step_size: Callable[[int], float],
    stragglers: StragglerModel,
    cost: CostModel,
    n_rounds: int,
    start: Array,
    observe: Observe = lambda *_: True,
    every: int | None = None,
) -> TimedRun:
    """Go through the rounds of a method whose exchange is an allreduce.

    A round lasts max_i T_i + 2 log2 N latencies + 2 bytes / bandwidth, T_i worker i's gradient time; where a
    worker never finishes, neither does the first round.

    Parameters are those of `Network` and `Network.run`.

    Raises
    ------
    RunError
        If the parameters grow without bound.
    """
    n_workers, shares = len(places), [place.share for place in places]
    states = [method.start(start, place) for place in places]
    message = np.zeros((n_workers, method.message_size(start.size)))
    n_bytes = (message.shape[1] + TRAILER) * 8
    nowhere = Mixing(np.zeros(0), 0)
    counts = [RunCounts() for _ in places]
    loads = [share.n_shards for share in shares]
    mean_load = sum(loads) / n_workers
    now, round_, stopped = 0.0, 0, False

    def stacked() -> Array:
        return np.stack([state.params for state in states])

    every = every or n_rounds
    stopped = not observe(0, 0.0, stacked(), Spent(0.0, 0.0))
    while round_ < n_rounds and not stopped:
        lasts_s = np.array(
            [
                max(
                    cost.gradient_s(worker, round_, share.n_rows) * stragglers.slowness(worker),
                    stragglers.duration_s(worker, round_),
                )
                for worker, share in enumerate(shares)
            ]
        )
        round_s = float(lasts_s.max()) + cost.allreduce_s(n_workers, n_bytes)
        if not np.isfinite(round_s):
            now = float("inf")
            break
        now += round_s
        for state, share, out in zip(states, shares, message, strict=True):
            gradient = Gradient(share.gradient(state.params), state.params)
            method.send(state, gradient, step_size(round_), round_, out)
        mean = Received(message.mean(axis=0), 0)
        for state, own, worker, seconds, n_held in zip(states, message, counts, lasts_s, loads, strict=True):
            method.receive(state, own, [mean], nowhere, step_size(round_))
            worker.rounds += 1
            worker.gradients += 1
            worker.shard_gradients += n_held
            worker.compute_s += float(seconds)
            worker.wait_s += round_s - float(seconds)
            worker.wall_s = now
        if rounds.diverged(float(states[0].params @ states[0].params)):
            raise divergence(round_, step_size(round_))
        round_ += 1
        if round_ % every == 0:
            stopped = not observe(round_, now, stacked(), Spent(round_ * n_bytes, round_ * mean_load))
    exchanged = ExchangeCounts(messages_sent=round_, messages_received=round_, bytes_sent=round_ * n_bytes)
    return TimedRun(
        stacked_params=stacked(),
        ranks=[{"rank": i, **asdict(worker), **asdict(exchanged)} for i, worker in enumerate(counts)],
        wall_s=now,
        last_round=round_,
        stopped=stopped,
        n_events=round_ * n_workers,
        events=None,
    )
