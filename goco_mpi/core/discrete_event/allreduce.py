"""The synchronous rival in simulated seconds: everybody waits for the slowest, and for the reduction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.batches import Batch, n_rows
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
    batch: Batch | None = None,
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
    n_workers = len(places)
    states = [method.start(start, place) for place in places]
    message = np.zeros((n_workers, method.message_size(start.size)))
    n_bytes = (message.shape[1] + TRAILER) * 8
    nowhere = Mixing(np.zeros(0), 0)
    counts = [RunCounts() for _ in places]
    now, round_ = 0.0, 0

    def stacked() -> Array:
        return np.stack([state.params for state in states])

    def spent() -> Spent:
        return Spent(round_ * n_bytes, sum(worker.shard_gradients for worker in counts) / n_workers)

    every = every or n_rounds
    stopped = not observe(0, 0.0, stacked(), spent())
    while round_ < n_rounds and not stopped:
        needed = method.needs_gradient(states[0], round_)  # all are in the same state
        lasts_s = [0.0] * n_workers
        if needed:
            lasts_s = [
                _gradient_s(place, worker.gradients, round_, cost, stragglers, batch)
                for place, worker in zip(places, counts, strict=True)
            ]
        round_s = max(lasts_s) + cost.allreduce_s(n_workers, n_bytes)
        if not math.isfinite(round_s):
            now = math.inf
            break
        now += round_s
        for place, state, out in zip(places, states, message, strict=True):
            drawn = place.share if batch is None else batch.of(place.share, place.worker, round_)
            gradient = Gradient(drawn.gradient(state.params), state.params) if needed else None
            method.send(state, gradient, step_size(round_), round_, out)
        mean = Received(message.mean(axis=0), 0)
        for place, state, own, worker, seconds in zip(places, states, message, counts, lasts_s, strict=True):
            method.receive(state, own, [mean], nowhere, step_size(round_))
            worker.rounds += 1
            worker.gradients += needed
            worker.shard_gradients += place.share.n_shards * needed
            worker.compute_s += seconds
            worker.wait_s += round_s - seconds
            worker.wall_s = now
        if rounds.diverged(float(states[0].params @ states[0].params)):
            raise divergence(round_, step_size(round_))
        round_ += 1
        if round_ % every == 0:
            stopped = not observe(round_, now, stacked(), spent())
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


def _gradient_s(
    place: Place, number: int, round_: int, cost: CostModel, stragglers: StragglerModel, batch: Batch | None
) -> float:
    """Return how long a worker's gradient of that number lasts, with the work that is injected in this round."""
    own_s = cost.gradient_s(place.worker, number, n_rows(place.share, batch)) * stragglers.slowness(place.worker)
    return max(own_s, stragglers.duration_s(place.worker, round_))
