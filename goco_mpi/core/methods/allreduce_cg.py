"""Conjugate gradients on the mean gradient, with one gradient a round.

    trial at x + t p                   where the next gradient is taken
    q = (g(x + t p) - g(x)) / t        the Hessian times p
    a = -g'p / p'q                     x <- x + a p , g <- g + a q
    p <- -g + sum_j p_j (q_j'g) / (p_j'q_j)
    t <- the longer of the last two a

Where the loss is quadratic this is the method of Hestenes and Stiefel, exactly: the gradient at the new x follows from
the two that were measured, and t may be anything. With a guess of the next a the trial is nearly as good as
x + a p, so that no round is lost to it; too short a t would let grow what rounding left in g. In exact arithmetic the
sum over all earlier directions has one term, the last. Kept whole it undoes what rounding does to the method,
which then needs no more than n_params rounds and a few, at any condition number, and ends in the same place whatever
the order of summation. Directions are kept as long as they fit 64 MB.

Elsewhere the same steps are nonlinear conjugate gradients with a secant for a line search: one direction is
kept, its factor at least 0, a within a tenth and four times t, and where the measured gradient is ever more than
a hundred times its smallest the method goes back there and begins anew with a shorter trial. The loss is taken to be
convex.

References
----------
Hestenes & Stiefel, J. Res. NBS 1952; Hager & Zhang, "A survey of nonlinear conjugate gradient methods", 2006.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from goco_mpi.core.methods.allreduce import ROUNDING, Allreduce, is_rounding, largest_gradient, n_remembered
from goco_mpi.core.methods.base import Array, Place, State

DIRECTIONS = 1000
SHORTEST, LONGEST = 0.1, 4.0
"""a in units of t, where the loss is not quadratic."""
SETBACK = 100.0


class Directions:
    """Conjugate directions and the Hessian times each, scaled to p'q = 1; the newest take the place of the oldest.

    Parameters
    ----------
    n_params : int
    most : int
        How many are kept.
    """

    def __init__(self, n_params: int, most: int) -> None:
        self._p = np.empty((most, n_params))
        self._q = np.empty((most, n_params))
        self.count = 0

    def add(self, p: Array, q: Array, curvature: float) -> None:
        """Keep a direction with p'q = ``curvature`` > 0."""
        place = self.count % len(self._p)
        scale = curvature**-0.5
        np.multiply(p, scale, out=self._p[place])
        np.multiply(q, scale, out=self._q[place])
        self.count += 1

    def conjugate(self, vector: Array, least: float = -np.inf) -> Array:
        """Return ``vector`` made conjugate to the directions; of each at least ``least`` is added."""
        n = min(self.count, len(self._p))
        factors = np.maximum(-(self._q[:n] @ vector), least)
        return np.asarray(vector + factors @ self._p[:n])


@dataclass
class ConjugateState(State):
    """``params`` is the trial, ``base`` + ``length`` ``direction``; ``gradient`` that at the base, None at first.

    ``last_length`` is the last a. The last four serve where the loss is not quadratic: the smallest gradient measured,
    its norm and its place, and how often the method went back there.
    """

    base: Array
    direction: Array
    directions: Directions
    quadratic: bool
    gradient: Array | None = None
    length: float = 0.0
    last_length: float = 0.0
    first_norm: float = 0.0
    resting: bool = False
    smallest: Array | None = None
    smallest_norm: float = np.inf
    smallest_params: Array | None = None
    n_setbacks: int = 0


class ConjugateGradients(Allreduce[ConjugateState]):
    """See the module."""

    sensitive = True

    def start(self, params: Array, place: Place) -> ConjugateState:
        """Return a state that knows of no gradient."""
        quadratic = place.share.quadratic
        n_kept = n_remembered(params.size, min(DIRECTIONS, params.size)) if quadratic else 1
        directions = Directions(params.size, n_kept)
        return ConjugateState(params.copy(), params.copy(), np.zeros_like(params), directions, quadratic)

    def advance(self, state: ConjugateState, mean: Array, step_size: float) -> None:
        """Go to the minimum along the direction, and choose the next."""
        if state.resting:
            return
        if state.gradient is None:
            state.first_norm = float(np.linalg.norm(mean))
            state.gradient = mean.copy()
            _note(state, mean)
            _begin(state, step_size)
            return
        if not state.quadratic and _set_back(state, mean, step_size):
            return
        if not to_minimum(state, mean, step_size):
            return
        state.direction = state.directions.conjugate(-state.gradient, -np.inf if state.quadratic else 0.0)
        if float(state.direction @ state.gradient) >= 0.0:
            state.direction = -state.gradient
        _try(state, step_size)


def to_minimum(state: ConjugateState, mean: Array, step_size: float) -> bool:
    """Go to the minimum along the direction, by the gradient at the trial; False where that was not far enough."""
    assert state.gradient is not None
    difference, t = mean - state.gradient, state.length
    along = float(state.direction @ difference)
    rounding = float(np.linalg.norm(state.direction)) * largest_gradient(state.base, state.first_norm, step_size)
    if along <= ROUNDING * rounding:  # too flat to see
        state.length *= LONGEST
        state.params = state.base + state.length * state.direction
        return False
    a = -t * float(state.gradient @ state.direction) / along
    if not state.quadratic:
        a = min(max(a, SHORTEST * t), LONGEST * t)
    state.directions.add(state.direction, difference / t, along / t)
    state.base = state.base + a * state.direction
    state.gradient = state.gradient + (a / t) * difference
    state.length, state.last_length = max(a, state.last_length), a
    return True


def _begin(state: ConjugateState, step_size: float) -> None:
    """Go downhill from the base, as if it were the first."""
    assert state.gradient is not None
    state.directions.count = 0
    state.direction = -state.gradient
    state.length = step_size * 0.5**state.n_setbacks
    state.last_length = 0.0
    _try(state, step_size)


def _try(state: ConjugateState, step_size: float) -> None:
    """Put the next gradient at the trial, or rest where there is nothing left to do."""
    assert state.gradient is not None
    if is_rounding(state.gradient, state.base, state.first_norm, step_size):
        state.resting = True
        state.params = state.base
    else:
        state.params = state.base + state.length * state.direction


def _note(state: ConjugateState, mean: Array) -> None:
    """Remember a measured gradient that is the smallest so far."""
    norm = float(np.linalg.norm(mean))
    if norm <= state.smallest_norm:
        state.smallest_norm, state.smallest, state.smallest_params = norm, mean.copy(), state.params


def _set_back(state: ConjugateState, mean: Array, step_size: float) -> bool:
    """Go back to the smallest gradient measured if this one is far from it; tell whether it was."""
    _note(state, mean)
    assert state.smallest is not None and state.smallest_params is not None
    if float(np.linalg.norm(mean)) <= SETBACK * state.smallest_norm:
        return False
    state.n_setbacks += 1
    state.base, state.gradient = state.smallest_params, state.smallest
    _begin(state, step_size)
    return True


CONJUGATE_GRADIENTS = ConjugateGradients()
