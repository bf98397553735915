"""Coded table Newton: gradients of all workers in a table, the worker's own coded Hessian to scale them.

    g_i = (N/M) sum_k a_ik grad f_k(z_i) ,  w_i = (N/M) sum_k a_ik      sent: (stamp, w_i, z_i, g_i)
    table               the newest stamp of each worker wins
    zb = sum_j w_j z_j / sum_j w_j ,  gb = sum_j g_j / sum_j w_j        over all entries, old ones too
    s, y                what zb, gb moved by ;  k = y' P^-1 y / s'y, or 4 where s'y <= 0 but for rounding
    alpha = clip(1 / max(last three k), 0.03, 1)                        0.5 at first
    z_i = zb - alpha P_i^-1 gb                                          where the next gradient is taken
    P_i = H_i + c diag(H_i) ,  c = clip(n_params / rows_i - 1/4, 0, 1)  H_i: Hessian of the coded loss / w_i

Where the loss is quadratic P_i is factorised once, and the first entry is that of the minimiser of the
worker's own model: a gradient is known everywhere from one. Otherwise P_i is factorised at every new
gradient, no step is longer than the first, and while ||gb|| is more than 1.5 times its smallest so far the
first P_i serves. Both begin anew when a worker enters the table: the mean is another function's then.

A table entry is a point with the gradient *there*, so an old one is old news and nothing worse: where all are
at the optimum it is a fixed point, whoever is late. No entry, or one of weight 0, is as nothing.

Nothing is mixed and no step is configured: ``method.mixing`` and ``[step]`` do not apply. Every worker
must hear every other (a complete graph). The weights stay what they are: those of a slow worker's shards do
not move to their other holders, and a dead one's entry stays. Rows that nobody counts (an objective of one's
own) are taken for enough: c = 0. A worker that holds nothing follows zb.

The work of a first round is a factorisation, n_params^3 / 3, done before the clock starts; the memory, two
vectors for each worker and n_params^2.

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

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State
from goco_mpi.core.shares import Share
from goco_mpi.errors import InputError

HALF_THE_DIGITS = float(np.finfo(np.float64).eps) ** 0.5
FIRST_ALPHA = 0.5
LEAST_ALPHA = 0.03
CAUTIOUS = 4.0
"""k where the table shows no curvature."""
ROUNDING = 1e-24
"""Part of a squared length that may be rounding."""
SETBACK = 1.5
"""Growth of ||gb|| over its smallest beyond which the first P_i serves."""


class Scaling:
    """P, factorised: a Hessian with something added to its diagonal.

    Parameters
    ----------
    hessian : ndarray of shape (n_params, n_params)
        Symmetric, not negative.
    c : float
        Multiple of its diagonal that is added; 1 where that alone leaves P singular, or nearly.

    Attributes
    ----------
    added : ndarray of shape (n_params,)
        P is the Hessian and this on its diagonal.

    Raises
    ------
    ValueError
        If the Hessian is not finite, or has negative curvature.
    """

    def __init__(self, hessian: Array, c: float) -> None:
        import scipy.linalg

        diagonal = hessian.diagonal().copy()
        largest = float(diagonal.max(initial=0.0))
        for added in (c * diagonal, np.where(diagonal > 0.0, diagonal, largest or 1.0)):
            self.added: Array = added
            try:
                lower = scipy.linalg.cholesky(hessian + np.diag(added), lower=True)
            except np.linalg.LinAlgError:
                continue
            # A pivot that lost half the digits is rounding as much as curvature.
            if (lower.diagonal() ** 2 >= HALF_THE_DIGITS * (diagonal + added)).all():
                self._lower = lower
                return
        raise ValueError("The Hessian has negative curvature.")

    def solve(self, vector: Array) -> Array:
        """Return P^-1 vector."""
        import scipy.linalg

        return np.asarray(scipy.linalg.cho_solve((self._lower, True), vector, check_finite=False))

    def square(self, vector: Array) -> float:
        """Return vector' P vector."""
        half = vector @ self._lower
        return float(half @ half)


@dataclass
class TableNewtonState(State):
    """As in the module; row j of the table's arrays is worker j's entry, of stamp 0 as long as there is none.

    ``scaling`` is None where the worker holds nothing. ``last`` is the gradient of the worker's own entry.
    """

    place: Place
    stamps: Array
    weights: Array
    points: Array
    gradients: Array
    first_scaling: Scaling | None
    scaling: Scaling | None
    alpha: float = FIRST_ALPHA
    curvatures: deque[float] = field(default_factory=lambda: deque(maxlen=3))
    mean_point: Array | None = None
    mean_gradient: Array | None = None
    last: Gradient | None = None
    n_entered: int = 0
    longest_step: float = 0.0
    smallest_gradient: float = np.inf


class TableNewton(Method[TableNewtonState]):
    """See the module."""

    name = "table_newton"
    remembers = True
    mixings = ()

    def message_size(self, n_params: int) -> int:
        """Return the length of (stamp, w, z, g)."""
        return 2 + 2 * n_params

    def start(self, params: Array, place: Place) -> TableNewtonState:
        """Factorise P and return a state with an empty table.

        Raises
        ------
        InputError
            If the loss is not convex at the start.
        """
        try:
            scaling = _scaling(place, params)
        except ValueError:
            raise InputError(
                f"method.kind = '{self.name}' needs a convex loss with finite second derivatives, and rank "
                f"{place.worker}'s has none at the start. Use method.kind = 'push_pull'."
            ) from None
        n = place.n_workers
        return TableNewtonState(
            params.copy(),
            place=place,
            stamps=np.zeros(n),
            weights=np.zeros(n),
            points=np.zeros((n, params.size)),
            gradients=np.zeros((n, params.size)),
            first_scaling=scaling,
            scaling=scaling,
        )

    def send(
        self, state: TableNewtonState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Enter a new gradient into the table, and send the worker's own entry."""
        me, n = state.place.worker, state.params.size
        if gradient is not None and gradient is not state.last:
            state.last = gradient
            state.stamps[me] += 1
            if state.scaling is not None:
                _enter_own(state, gradient, state.scaling)
        out[0] = state.stamps[me]
        out[1] = state.weights[me]
        out[2 : 2 + n] = state.points[me]
        out[2 + n :] = state.gradients[me]

    def receive(
        self, state: TableNewtonState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Enter what came, and take the step."""
        n = state.params.size
        for received, j in zip(inbox, state.place.neighbors, strict=True):
            if received.value is not None and received.value[0] > state.stamps[j]:
                state.stamps[j] = received.value[0]
                weight = float(received.value[1])
                if weight != 0.0:  # one of weight 0 must not even pass on a NaN
                    state.weights[j] = weight
                    state.points[j] = received.value[2 : 2 + n]
                    state.gradients[j] = received.value[2 + n :]
        total = float(state.weights.sum())
        if total > 0.0:
            n_entered = int(np.count_nonzero(state.weights))
            grown, state.n_entered = n_entered > state.n_entered, n_entered
            _step(state, state.weights @ state.points / total, state.gradients.sum(axis=0) / total, grown)


def relaxation(curvatures: Sequence[float]) -> float:
    """Return alpha from the last k.

    Examples
    --------
    >>> relaxation([2.0, 1.0]), relaxation([0.5]), relaxation([100.0])
    (0.5, 1.0, 0.03)
    """
    return min(max(1.0 / max(curvatures), LEAST_ALPHA), 1.0)


def trust(share: Share) -> float:
    """Return c: how much of its diagonal a Hessian of so few rows needs.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> [trust(SimpleNamespace(n_params=100, n_rows=n)) for n in (0, 50, 100, 400)]
    [0.0, 1.0, 0.75, 0.0]
    """
    if share.n_rows == 0:
        return 0.0
    return min(max(share.n_params / share.n_rows - 0.25, 0.0), 1.0)


def _scaling(place: Place, params: Array) -> Scaling | None:
    if place.weight == 0.0:
        return None
    return Scaling(place.share.hessian(params) / place.weight, trust(place.share))


def _enter_own(state: TableNewtonState, gradient: Gradient, scaling: Scaling) -> None:
    """Put a new gradient into the worker's own row, with P to go with it."""
    place, me = state.place, state.place.worker
    state.weights[me] = place.weight
    state.points[me] = gradient.params
    state.gradients[me] = gradient.vector
    if place.share.quadratic:
        if state.mean_point is None:
            # Go to the minimiser of the worker's own model; w H d = w (P - added) d is what that adds to g.
            step = -scaling.solve(gradient.vector / place.weight)
            state.points[me] += step
            state.gradients[me] = -place.weight * scaling.added * step
        return
    try:
        state.scaling = _scaling(place, gradient.params)
    except ValueError:
        state.scaling = state.first_scaling


def _step(state: TableNewtonState, point: Array, gradient: Array, grown: bool) -> None:
    """Go to zb - alpha P^-1 gb; ``grown``: one more worker is in these means than before."""
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
        k = _curvature(scaling, point, point - before, gradient - gradient_before)
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


def _curvature(scaling: Scaling, point: Array, s: Array, y: Array) -> float | None:
    """Return k, the curvature in units of P that s and y show, or None where neither mean moved.

    What may be rounding, as between two gradients at one point, is not taken for curvature. In the second round
    of a quadratic loss, s is nothing else: all were at the minimisers of their own models, and now are at the mean.
    """
    rounding = ROUNDING * scaling.square(point)
    sy, yy = float(s @ y), float(y @ scaling.solve(y))
    moved, changed = scaling.square(s) > rounding, yy > rounding
    if not moved and not changed:
        return None
    return yy / sy if moved and changed and sy > 0.0 else CAUTIOUS


TABLE_NEWTON = TableNewton()
