"""What a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.codes import Code
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.shares import Share

Array = NDArray[np.float64]


@dataclass
class State:
    """What one worker keeps from round to round; methods add their own vectors.

    Attributes
    ----------
    params : ndarray of shape (n_params,)
        The worker's parameters: where its next gradient is taken.
    """

    params: Array


@dataclass(frozen=True, eq=False)
class Place:
    """Where a worker stands in the network, and what it holds.

    Attributes
    ----------
    worker, n_workers : int
    neighbors : tuple of int
        In the order of the inbox.
    share : Share
    weight : float
        (N/M) sum_k a_ik, the weight of its coded gradient; their mean over all workers is 1 where
        nobody's lateness is made up for.
    held : ndarray of shape (n_workers, n_held), bool
        Which of the shards held here each worker holds too; all true in this worker's row.
    n_shards : int
        M, all shards.
    all_weights : ndarray of shape (n_workers, n_shards), optional
        (N/M) a_ik of all workers and shards, for methods that change them.
    momentum : float or None
        For `goco_mpi.core.methods.allreduce_nesterov`, where the curvatures of the loss tell it.
    code : Code, optional
        How gradients are decoded, for methods that are exact.
    """

    worker: int
    n_workers: int
    neighbors: tuple[int, ...]
    share: Share
    weight: float
    held: NDArray[np.bool_]
    n_shards: int
    all_weights: Array | None = None
    momentum: float | None = None
    code: Code | None = None


@dataclass(frozen=True, eq=False)
class Encoding:
    """The weights that a gradient is coded with, where they change in the course of a run.

    Attributes
    ----------
    weights : ndarray of shape (n_held,)
        (N/M) a_ik of the shards held, in their order.
    epoch : int
        Which of the method's weights these are, for methods that have several; 0 for the first.
    """

    weights: Array
    epoch: int = 0


@dataclass(frozen=True, eq=False)
class Gradient:
    """A coded gradient and where it was taken, both of shape (n_params,), and what it was coded with.

    ``encoding`` is None where that is the share's own weights; ``part`` is the share of the worker's shards that it
    is of.
    """

    vector: Array
    params: Array
    encoding: Encoding | None = None
    part: float = 1.0


S = TypeVar("S", bound=State)


class Method(ABC, Generic[S]):
    """A method as the two halves of a round around the exchange, pure but for the state they are given.

    The class variables are those of the method that ``method.kind`` names. Other keys may put another in its place, as
    ``method.momentum`` puts `goco_mpi.core.methods.momentum` in that of goco: of that one only ``exchange`` and the
    last four attributes are asked.

    Attributes
    ----------
    name : str
        As in ``method.kind``.
    coded : bool
        Whether shards may be replicated and gradients coded; otherwise every shard has one holder.
    exact : bool
        Whether the encoding is an exact gradient code, in place of ``method.weights``.
    exchange : {'gossip', 'allreduce', 'central'}
        ``gossip``: messages to graph neighbours, of whom some may be late.
        ``allreduce``: the mean over all workers, which waits for everyone.
        ``central``: worker 0 is the master of the others (`goco_mpi.core.methods.central`).
    reweighs : bool
        Whether its weights may follow the completion rates as they become known (`goco_mpi.core.methods.rated`).
    remembers : bool
        Whether a worker whose gradient is late goes on with its last one by itself.
    mixings : tuple of str
        Mixing rules that are sound with it, the default first; none where nothing is mixed.
    late : {'discard', 'memory'}
        What a late gradient is worth where the config leaves it open.
    steps : bool
        Whether it takes steps of the size that the config gives.
    solvers : tuple of str
        What a master may minimise with, the default first; see `goco_mpi.core.methods.central`.
    stacked : callable (X, Links, shares) -> `goco_mpi.core.stacked.Step`, or None
        The twin of a method from outside the package; those inside have theirs in `goco_mpi.core.stacked.STEPS`.
    sensitive : bool
        Whether what rounding does may grow on the way, as it does where differences of gradients are divided.
    in_step : bool
        Whether the workers' states are of use together only if they are of one round; a stopped run ends in one.
    survives : bool
        Whether a run can go on when a worker dies.
    restarts : bool
        Whether what a dead worker took with it is missed by all, so that they begin anew in `lose`, and then mix
        messages only of those that have lost as many.
    """

    name: ClassVar[str]
    coded: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    exchange: ClassVar[Literal["gossip", "allreduce", "central"]] = "gossip"
    reweighs: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    mixings: ClassVar[tuple[str, ...]] = ("stale", "fold", "symmetric", "running")
    late: ClassVar[Literal["discard", "memory"]] = "discard"
    steps: ClassVar[bool] = True
    solvers: ClassVar[tuple[str, ...]] = ()
    stacked: ClassVar[Callable[..., Any] | None] = None
    sensitive: bool = False
    in_step: bool = False
    survives: bool = True
    restarts: bool = False

    def message_size(self, n_params: int) -> int:
        """Return the numbers in a message; here one vector."""
        return n_params

    @abstractmethod
    def start(self, params: Array, place: Place) -> S:
        """Return a worker's first state."""

    def needs_gradient(self, state: S, round_: int) -> bool:
        """Tell whether this round has a use for a gradient; where it has none, none is computed."""
        return True

    def encoding(self, state: S) -> Encoding | None:
        """Return the weights for a gradient that begins now; None: those of the worker's share."""
        return None

    def counts(self, state: S) -> dict[str, int]:
        """Return what the method counted of its own, by column of the record."""
        return {}

    def lose(self, state: S, place: Place, alive: NDArray[np.bool_]) -> None:
        """Go on without those who are not ``alive``, shape (n_workers,), of whom nothing more is in the inbox."""
        return

    @abstractmethod
    def send(self, state: S, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Take the local step and write the message into ``out``, shape (message_size,).

        ``gradient`` is the coded gradient, None where it was not finished; it may have been taken at
        earlier parameters than the state's. ``round_`` never goes back, but may stay or jump.
        """

    @abstractmethod
    def receive(self, state: S, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float) -> None:
        """Take in what came: the newest message of each neighbour, beside the ``own`` one sent.

        With ``exchange = 'allreduce'`` the inbox holds the mean over all workers alone.
        """


class Descent(Method[State]):
    """The local step v = x - eta g (v = x without a gradient), and the mixed vector as the next parameters."""

    def start(self, params: Array, place: Place) -> State:
        """Return a state of parameters alone."""
        return State(params.copy())

    def send(self, state: State, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Send v."""
        if gradient is None:
            np.copyto(out, state.params)
        else:
            np.multiply(gradient.vector, -step_size, out=out)
            out += state.params

    def receive(self, state: State, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float) -> None:
        """Mix."""
        mixing.mix(own, inbox, state.params)
