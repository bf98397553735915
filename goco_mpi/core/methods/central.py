"""A master and its workers: the half of a round that every centralised method shares.

    master, worker 0    sends x ; takes in what came of the gradients at this x, its own among them ; steps
    worker i            sends its coded gradient at x, or that there is none ; takes over the next x

A message is a number and a vector: whether the sender's gradient is finished, and the coded gradient or x. A gradient
counts in the round of its x alone. The master's message of a step is the x before it: a worker that has heard it is
where the master was. Only the master minimises; its solver is one of an allreduce's, told the decoded mean.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.allreduce import ALLREDUCE, Allreduce
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State

MASTER = 0


def write_message(vector: Array | float, finished: bool, out: Array) -> None:
    """Write a vector, and whether the sender's gradient is finished, into a message, shape (1 + n_params,)."""
    out[0] = finished
    out[1:] = vector


def has_gradient(message: Array) -> bool:
    """Tell whether the sender's gradient of its round is finished."""
    return bool(message[0])


@dataclass
class CentralState(State):
    """The place, and on the master the solver's state, its own gradient of the round, and rounds without enough."""

    place: Place
    solver: State | None
    own: Gradient | None = None
    n_undecoded: int = 0


class Central(Method[CentralState]):
    """See the module.

    Parameters
    ----------
    solver : Allreduce
        What the master makes of the mean gradient.
    """

    exchange = "central"
    mixings = ()

    def __init__(self, solver: Allreduce[Any] = ALLREDUCE) -> None:
        self.solver = solver

    def using(self, solver: Allreduce[Any]) -> Self:
        """Return the method with another solver."""
        return type(self)(solver)

    def message_size(self, n_params: int) -> int:
        """Return the length of (finished, vector)."""
        return 1 + n_params

    def start(self, params: Array, place: Place) -> CentralState:
        """Return a state at ``params``."""
        solver = self.solver.start(params, place) if place.worker == MASTER else None
        return CentralState(params.copy(), place, solver)

    def counts(self, state: CentralState) -> dict[str, int]:
        """Return the rounds whose gradients were not enough for a step, as the master knows."""
        return {"undecoded": state.n_undecoded}

    def send(self, state: CentralState, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Send x from the master, and the gradient from the others."""
        if state.solver is None:
            write_message(0.0 if gradient is None else gradient.vector, gradient is not None, out)
        else:
            state.own = gradient
            write_message(state.params, gradient is not None, out)

    def receive(
        self, state: CentralState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Take over x; or take the step, if what has come is enough for one."""
        if state.solver is None:
            for received in inbox:
                if received.value is not None:
                    np.copyto(state.params, received.value[1:])
            return
        finished = np.zeros(state.place.n_workers, dtype=bool)
        gradients: list[Array] = []  # ascending by worker: the master is the first, and so are its neighbours sorted
        if state.own is not None:
            finished[MASTER] = True
            gradients.append(state.own.vector)
        for j, received in zip(state.place.neighbors, inbox, strict=True):
            if received.value is not None and received.age == 0 and has_gradient(received.value):
                finished[j] = True
                gradients.append(received.value[1:])
        weights = self.weights(state.place, finished)
        if weights is None:
            state.n_undecoded += 1
        else:
            terms = zip(weights[finished].tolist(), gradients, strict=True)
            total = sum((weight * gradient for weight, gradient in terms), start=np.zeros_like(state.params))
            self.solver.advance(state.solver, total / state.place.n_workers, step_size)
            np.copyto(state.params, state.solver.params)

    @abstractmethod
    def weights(self, place: Place, finished: NDArray[np.bool_]) -> Array | None:
        """Return the weights b, shape (n_workers,), of the gradients that came: grad F is (1/N) sum_i b_i g_i.

        None where they are not enough; then the master asks for gradients at the same x once more.
        """
