"""A master and its workers: the half of a round that every centralised method shares.

    master, worker 0    sends x ; takes in what came of the gradients at this x, its own among them ; steps
    worker i            sends its coded gradient at x, or that there is none ; takes over the next x

A message is a number and a vector: whether the sender's gradient is finished, and the coded gradient or x. A gradient
counts in the round of its x alone. The master's message of a step is the x before it: a worker that has heard it is
where the master was. Only the master minimises; see `goco_mpi.core.solvers`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State
from goco_mpi.core.methods.table_newton import Scaling, trust
from goco_mpi.core.shares import Share
from goco_mpi.core.solvers import Solver, build
from goco_mpi.errors import InputError

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
    """The place, and on the master the solver and its own gradient of the round."""

    place: Place
    solver: Solver | None
    own: Gradient | None = None


class Central(Method[CentralState]):
    """See the module.

    Parameters
    ----------
    solver : str, optional
        A name in ``solvers``; the first where none is given.
    """

    exchange = "central"
    mixings = ()

    def __init__(self, solver: str | None = None) -> None:
        self.solver = solver or self.solvers[0]

    def using(self, solver: str) -> Self:
        """Return the method with a solver of that name."""
        return type(self)(solver)

    def message_size(self, n_params: int) -> int:
        """Return the length of (finished, vector)."""
        return 1 + n_params

    def start(self, params: Array, place: Place) -> CentralState:
        """Return a state at ``params``; the master's prepares its solver.

        Raises
        ------
        InputError
            If the solver needs a quadratic loss, and this is none.
        """
        solver = None
        if place.worker == MASTER:
            preconditioner = self._preconditioner(place.share, params) if self.solver == "cg" else None
            solver = build(self.solver, params, preconditioner.solve if preconditioner else lambda r: r)
        return CentralState(params.copy(), place, solver)

    def _preconditioner(self, share: Share, params: Array) -> Scaling | None:
        """Return the mean Hessian of the shards held, factorised, to stand for that of all; None without shards."""
        if not share.quadratic:
            raise InputError(
                "method.solver = 'cg' needs a loss with the same Hessian everywhere: objective.kind = 'least_squares'. "
                "For others use method.solver = 'nesterov'."
            )
        if share.n_shards == 0:
            return None
        alike = share.reweighted(np.full(share.n_shards, 1.0 / share.n_shards))
        return Scaling(alike.hessian(params), trust(share))

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
        if weights is not None:
            terms = zip(weights[finished].tolist(), gradients, strict=True)
            total = sum((weight * gradient for weight, gradient in terms), start=np.zeros_like(state.params))
            state.solver.advance(total / state.place.n_workers, step_size)
            np.copyto(state.params, state.solver.point)

    @abstractmethod
    def weights(self, place: Place, finished: NDArray[np.bool_]) -> Array | None:
        """Return the weights b, shape (n_workers,), of the gradients that came: grad F is (1/N) sum_i b_i g_i.

        None where they are not enough; then the master asks for gradients at the same x once more.
        """
