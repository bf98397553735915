"""Coded table Newton: gradients of all workers in a table, the worker's own coded Hessian to scale them.

    g_i = (N/M) sum_k a_ik grad f_k(z_i) ,  w_i = (N/M) sum_k a_ik      sent: (stamp, round, out, w_i, z_i, g_i)
    table               the newest stamp of each worker wins
    zb = sum_j w_j z_j / sum_j w_j ,  gb = sum_j g_j / sum_j w_j        over all entries, old ones too
    s, y                what zb, gb moved by ;  k = y' P^-1 y / s'y, or 4 where s'y <= 0 but for rounding
    alpha = clip(1 / max(last three k), 0.03, 1)                        0.5 at first
    z_i = zb - alpha P_i^-1 gb                                          where the next gradient is taken
    P_i = H_i + c diag(H_i) ,  c = clip(n_params / rows_i - 1/4, 0, 1)  H_i: Hessian of the coded loss / w_i

Where the loss is quadratic P_i is factorised once, and the first entry is that of the minimiser of the
worker's own model: a gradient is known everywhere from one. Otherwise P_i is factorised at every new
gradient, no step is longer than the first, and while ||gb|| is more than 1.5 times its smallest so far the
first P_i serves. Both begin anew when the mean becomes another function's: with one worker more in the table,
or other weights.

A table entry is a point with the gradient *there*, so an old one is old news and nothing worse: where all are
at the optimum it is a fixed point, whoever is late. No entry, or one of weight 0, is as nothing.

**Slow workers are left out**, and their weights go to the other holders of their shards (`goco_mpi.core.reweighting`):

    declaration         (number, out): the largest that a worker has heard of holds; it rides in every message
    a gradient          is coded with the weights of the declaration that holds when it begins, and says so (``out``)
    a table             holds entries of one set of weights: all that were coded with just these, whatever they say
    after a declaration the table goes on, beside a new one, until all who have weight in the new one are in that

so that what is averaged has weights of sum 1 for every shard before, during and after. Who looks slow is seen from
the stamps and rounds in the messages alone; every worker looks for itself and may declare. One that is left out goes
on with gradients that weigh nothing, to be seen when it is fast again. P_i stays that of the first weights.

Nothing is mixed and no step is configured: ``method.mixing`` and ``[step]`` do not apply. Every worker
must hear every other (a complete graph). Rows that nobody counts (an objective of one's
own) are taken for enough: c = 0. A worker that holds nothing follows zb.

The work of a first round is a factorisation, n_params^3 / 3, done before the clock starts (``setup_s`` in the record);
the memory, two vectors for each worker, four during a change of weights, and n_params^2 for each factor.

References
----------
Mishchenko, Iutzeler & Malick, "A distributed flexible delay-tolerant proximal gradient algorithm" (DAve-RPG),
SIAM J. Optim. 2020; Wang, Roosta, Xu & Mahoney, "GIANT: globally improved approximate Newton method", NeurIPS 2018.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Encoding, Gradient, Method, Place, State
from goco_mpi.core.methods.relaxation import curvature, relaxation
from goco_mpi.core.methods.scaling import Scaling, worker_scaling
from goco_mpi.core.methods.table import ENTRY, Table
from goco_mpi.core.reweighting import MOST_WORKERS, Pace, Reweighting, patience
from goco_mpi.errors import InputError, RunError

FIRST_ALPHA = 0.5
"""alpha before any curvature was met."""
SETBACK = 1.5
"""Growth of ||gb|| over its smallest beyond which the first P_i serves."""
SMALL = 1e-9
"""Part of all workers' weight that no gradient has, nor rounding."""
DECLARATION = 2
"""Numbers of a message before its entry: those of the declaration."""


@dataclass
class TableNewtonState(State):
    """As in the module: ``params`` is z_i. Sets of workers are the bits of an int.

    Attributes
    ----------
    entry : ndarray of shape (ENTRY + 2 n_params,)
        The worker's own newest entry, of stamp 0 as long as there is none; ``last`` is the gradient that made it.
    table, coming : Table
        What is averaged, and what will be once it is whole (None where no change is on).
    pace : Pace
        What is known of everybody's pace.
    reweighting : Reweighting or None
        What becomes of the weights without a set of workers; None where nobody is left out.
    first_scaling, scaling : Scaling or None
        P_i at the start and now; None where the worker holds nothing.
    declared : (int, int)
        Number and set of the declaration that holds, ``since`` which round of the worker.
    encoding : Encoding or None
        The worker's weights by it; None: its first.
    slow : int
        Who looks slow to this worker.
    round : int
        The worker's own.
    alpha : float
    curvatures : deque of float
        The last three k.
    mean_point, mean_gradient : ndarray of shape (n_params,) or None
        zb and gb; None before the first, and where the next are another function's.
    weight : float
        Sum of the table's weights.
    n_left_out : int
        Steps in which the worker was left out.
    longest_step, smallest_gradient : float
        The safeguards where the loss is not quadratic: the length of the first step, and the smallest ||gb|| so far.
    """

    place: Place
    entry: Array
    table: Table
    pace: Pace
    reweighting: Reweighting | None
    first_scaling: Scaling | None
    scaling: Scaling | None
    coming: Table | None = None
    declared: tuple[int, int] = (0, 0)
    since: int = 0
    encoding: Encoding | None = None
    slow: int = 0
    round: int = 0
    alpha: float = FIRST_ALPHA
    curvatures: deque[float] = field(default_factory=lambda: deque(maxlen=3))
    mean_point: Array | None = None
    mean_gradient: Array | None = None
    last: Gradient | None = None
    weight: float = 0.0
    n_left_out: int = 0
    longest_step: float = 0.0
    smallest_gradient: float = np.inf

    @property
    def tables(self) -> list[Table]:
        """The table, and the one that is to come."""
        return [self.table] if self.coming is None else [self.table, self.coming]


class TableNewton(Method[TableNewtonState]):
    """See the module."""

    name = "table_newton"
    remembers = True
    mixings = ()
    late = "memory"
    steps = False

    def message_size(self, n_params: int) -> int:
        """Return the length of a declaration (number, out) and an entry (stamp, round, out, w, z, g)."""
        return DECLARATION + ENTRY + 2 * n_params

    def start(self, params: Array, place: Place) -> TableNewtonState:
        """Factorise P and return a state with an empty table.

        Raises
        ------
        InputError
            If the loss is not convex at the start.
        """
        try:
            first_scaling = worker_scaling(place, params)
        except ValueError:
            raise InputError(
                f"method.kind = '{self.name}' needs a convex loss with finite second derivatives, and rank "
                f"{place.worker}'s has none at the start. Use method.kind = 'push_pull'."
            ) from None
        n = place.n_workers
        all_weights = place.all_weights if n <= MOST_WORKERS else None
        return TableNewtonState(
            params.copy(),
            place=place,
            entry=np.zeros(ENTRY + 2 * params.size),
            table=Table.empty(n, params.size, out=0),
            pace=Pace(n),
            reweighting=None if all_weights is None else Reweighting(all_weights),
            first_scaling=first_scaling,
            scaling=first_scaling,
        )

    def counts(self, state: TableNewtonState) -> dict[str, int]:
        """Return the steps in which the worker was left out, as far as it knew."""
        return {"left_out": state.n_left_out}

    def lose(self, state: TableNewtonState, place: Place, alive: NDArray[np.bool_]) -> None:
        """Do nothing: the dead are silent, and left out like everybody who is.

        Raises
        ------
        RunError
            If there are too many workers for anybody to be left out.
        """
        if state.reweighting is None:
            raise RunError(
                f"Rank {int(np.flatnonzero(~alive)[0])} died, and method.kind = '{self.name}' leaves nobody out on "
                f"more than {MOST_WORKERS} ranks. Start again, or use method.kind = 'push_pull', which survives it."
            )

    def encoding(self, state: TableNewtonState) -> Encoding | None:
        """Return the weights by the declaration that holds."""
        return state.encoding

    def send(
        self, state: TableNewtonState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Enter a new gradient into the table, and send the worker's own entry."""
        state.round = round_
        if gradient is not None and gradient is not state.last:
            state.last = gradient
            _write_entry(state, gradient)
            _enter(state, state.place.worker, state.entry)
        out[:DECLARATION] = state.declared
        out[DECLARATION:] = state.entry

    def receive(
        self, state: TableNewtonState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Enter what came, take the step, and look who is slow."""
        place = state.place
        came = [
            (j, received.value)
            for received, j in zip(inbox, place.neighbors, strict=True)
            if received.value is not None
        ]
        if state.reweighting is not None:
            _obey(state, state.reweighting, max(((int(m[0]), int(m[1])) for _, m in came), default=(0, 0)))
        for j, message in came:
            _enter(state, j, message[DECLARATION:])
        changed = state.reweighting is not None and _change_over(state, state.reweighting)
        means = state.table.means()
        if means is not None:
            weight = float(state.table.weights.sum())
            grown, state.weight = changed or weight > state.weight + SMALL * place.n_workers, weight
            if changed:  # what the means moved by is no curvature
                state.mean_point = state.mean_gradient = None
            _step(state, *means, grown)
        if state.reweighting is not None:
            state.n_left_out += state.table.out >> place.worker & 1
            _judge(state, state.reweighting)


def _write_entry(state: TableNewtonState, gradient: Gradient) -> None:
    """Make a new gradient the worker's entry, with P to go with it."""
    place, scaling, encoding, n = state.place, state.scaling, gradient.encoding, state.params.size
    point, vector = state.entry[ENTRY : ENTRY + n], state.entry[ENTRY + n :]
    state.entry[0] += 1.0
    state.entry[1] = state.round
    state.entry[2] = 0.0 if encoding is None else encoding.epoch
    state.entry[3] = place.weight if encoding is None else encoding.weights.sum()
    point[:] = gradient.params
    vector[:] = gradient.vector
    if scaling is None:
        return
    if place.share.quadratic:
        if state.mean_point is None and encoding is None:
            # Go to the minimiser of the worker's own model; w H d = w (P - added) d is what that adds to g.
            step = -scaling.solve(gradient.vector / place.weight)
            point += step
            vector[:] = -place.weight * scaling.added * step
        return
    try:
        state.scaling = worker_scaling(place, gradient.params)
    except ValueError:
        state.scaling = state.first_scaling


def _enter(state: TableNewtonState, worker: int, entry: Array) -> None:
    """Put an entry into the tables that it goes with."""
    if entry[0] == 0.0:
        return
    state.pace.note(worker, int(entry[0]), int(entry[1]))
    for table in state.tables:
        if state.reweighting is None or state.reweighting.unchanged(worker, int(entry[2]), table.out):
            table.enter(worker, entry)


def _obey(state: TableNewtonState, reweighting: Reweighting, declaration: tuple[int, int]) -> None:
    """Take a declaration, if it is larger than the one that holds, and begin the table that it asks for."""
    if declaration <= state.declared:
        return
    state.declared, state.since = declaration, state.round
    out, me = declaration[1], state.place.worker
    if reweighting.unchanged(me, 0, out):
        state.encoding = None
    elif state.encoding is None or state.encoding.epoch != out:
        state.encoding = Encoding(reweighting.own_row(me, out), out)
    if out == state.table.out:
        state.coming = None
        return
    state.coming = Table.empty(state.place.n_workers, state.params.size, out)
    for j in range(state.place.n_workers):
        if reweighting.unchanged(j, state.table.out, out):
            state.coming.copy(j, state.table)
    _enter(state, me, state.entry)


def _change_over(state: TableNewtonState, reweighting: Reweighting) -> bool:
    """Use the table to come once it is whole; tell whether it is now."""
    coming = state.coming
    if coming is None or (reweighting.needed(coming.out) & (coming.stamps == 0.0)).any():
        return False
    state.table, state.coming = coming, None
    return True


def _judge(state: TableNewtonState, reweighting: Reweighting) -> None:
    """Declare anew who is left out where that should be others, but not too often."""
    state.slow = state.pace.slow(state.round, state.slow)
    if state.round - state.since >= patience(state.declared[0]):
        out = reweighting.choose(state.table.out, state.slow)
        if out != state.declared[1]:
            _obey(state, reweighting, (state.declared[0] + 1, out))


def _step(state: TableNewtonState, point: Array, gradient: Array, grown: bool) -> None:
    """Go to zb - alpha P^-1 gb; ``grown``: these means are of one worker more than before, or of other weights."""
    before, gradient_before = state.mean_point, state.mean_gradient
    state.mean_point, state.mean_gradient = point, gradient
    scaling = state.scaling
    if scaling is None:
        np.copyto(state.params, point)
        return
    quadratic = state.place.share.quadratic
    if not quadratic:
        norm = float(np.linalg.norm(gradient))
        if grown:
            state.smallest_gradient = norm
        if norm > SETBACK * state.smallest_gradient:
            assert state.first_scaling is not None  # there is one where there is another
            scaling = state.first_scaling
        state.smallest_gradient = min(state.smallest_gradient, norm)
    if before is not None and gradient_before is not None:
        k = curvature(scaling, point, point - before, gradient - gradient_before)
        if k is not None:
            state.curvatures.append(k)
            state.alpha = relaxation(state.curvatures)
    step = scaling.solve(gradient)
    step *= state.alpha
    if not quadratic:
        length = float(np.linalg.norm(step))
        if grown:
            state.longest_step = max(state.longest_step, length)
        elif length > state.longest_step:
            step *= state.longest_step / length
    np.subtract(point, step, out=state.params)


TABLE_NEWTON = TableNewton()
