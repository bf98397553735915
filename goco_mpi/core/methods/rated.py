"""A method whose encoding weights follow the completion rates that the workers tell each other.

    sent: (the method's own message, for every worker the round and the value of its newest known q)
    a_ik  from the newest q of all holders of shard k when worker i begins a gradient (`goco_mpi.core.encoding`)

Of itself it takes the larger of its q and its q' (`goco_mpi.core.rates`). And where the step is as long as the
workers' curvatures allow, all a_ik of a worker together grow, from what they are where everybody finishes, at most to
``most_growth`` / q' times that: the mean of its steps, with those that have no gradient, stays one that does not lead
away. Without it a worker that is left alone for long, to whom all others seem dead, would diverge.

Nobody needs to be a neighbour of its co-holders: the table spreads with the messages, the newest entry wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core import encoding, rates
from goco_mpi.core.bulletin import Bulletin
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Encoding, Gradient, Method, Place, State
from goco_mpi.errors import InputError


@dataclass
class RatedState(State):
    """The method's own state, what is known of all rates, and the weights in use; ``params`` are the inner state's."""

    inner: State
    place: Place
    estimate: rates.RateEstimate
    table: Bulletin
    round: int = -1
    encoding: Encoding | None = None
    alive: NDArray[np.bool_] | None = None


class Rated(Method[RatedState]):
    """See the module.

    Parameters
    ----------
    inner : Method
    weights : {'paper', 'own', 'coverage'}
        The kind of weights that the rates go into.
    kind : {'counted', 'ema', 'live'}
        The kind of rates; see `goco_mpi.core.rates`.
    n_workers : int
    most_growth : float
        Of the weights of a worker all of whose steps have gradients; inf where steps are as long as somebody says.

    Raises
    ------
    InputError
        If the method has rounds without a gradient: they would count as late.
    """

    def __init__(
        self, inner: Method[Any], weights: str, kind: str, n_workers: int, most_growth: float = np.inf
    ) -> None:
        if type(inner).needs_gradient is not Method.needs_gradient:
            raise InputError(
                f"method.rates = '{kind}' counts how often gradients are late, and needs a method that wants one in "
                f"every round. Got {type(inner).__name__}, which decides in needs_gradient. Use method.rates = "
                "'stated', or give the class reweighs = False."
            )
        self._inner = inner
        self.sensitive, self.in_step = inner.sensitive, inner.in_step
        self.survives, self.restarts = inner.survives, inner.restarts
        self._weights = weights
        self._kind = kind
        self._most_growth = most_growth
        self._table_size = 2 * n_workers

    def message_size(self, n_params: int) -> int:
        """Return the length of the method's own message and the table."""
        return self._inner.message_size(n_params) + self._table_size

    def start(self, params: Array, place: Place) -> RatedState:
        """Return a state in which everybody is taken to finish always."""
        inner = self._inner.start(params, place)
        table = Bulletin(place.n_workers, unsaid=1.0)
        return RatedState(inner.params, inner, place, rates.RateEstimate(self._kind), table)

    def encoding(self, state: RatedState) -> Encoding:
        """Return the weights by what is known now; the same object as long as they are the same."""
        place, of_steps = state.place, state.estimate.of_steps
        said, known = state.table.entries
        present = rates.present(self._kind, known, said, state.round)
        held, me, n_alive = place.held, place.worker, place.n_workers
        if state.alive is not None:
            held, present = held[state.alive], present[state.alive]
            me, n_alive = int(state.alive[:me].sum()), int(state.alive.sum())
        present[me] = max(present[me], of_steps)
        weights = encoding.of_worker(self._weights, held, present, me, rates.LEAST_RATE)
        growth = weights.sum() / (1.0 / held.sum(axis=0)).sum() if weights.size else 0.0
        weights *= min(1.0, self._most_growth / (growth * of_steps)) if growth > 0.0 else 1.0
        weights *= n_alive / place.n_shards
        if state.encoding is None or not np.array_equal(weights, state.encoding.weights):
            state.encoding = Encoding(weights)
        return state.encoding

    def counts(self, state: RatedState) -> dict[str, int]:
        """Return what the method counted."""
        return self._inner.counts(state.inner)

    def lose(self, state: RatedState, place: Place, alive: NDArray[np.bool_]) -> None:
        """Make up for the dead from now on; the rest is the method's."""
        state.alive = alive
        self._inner.lose(state.inner, place, alive)

    def send(self, state: RatedState, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Put the table behind the method's own message."""
        rate = state.estimate.update(round_, 0.0 if gradient is None else gradient.part)
        state.round = round_
        state.table.post(state.place.worker, round_, rate)
        self._inner.send(state.inner, gradient, step_size, round_, out[: -self._table_size])
        out[-self._table_size :] = state.table.entries.ravel()

    def receive(
        self, state: RatedState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Take over what is newer in the tables; the rest is the method's."""
        size = self._table_size
        for received in inbox:
            if received.value is not None:
                state.table.merge(received.value[-size:])
        messages = [
            received if received.value is None else replace(received, value=received.value[:-size])
            for received in inbox
        ]
        self._inner.receive(state.inner, own[:-size], messages, mixing, step_size)
        state.params = state.inner.params
