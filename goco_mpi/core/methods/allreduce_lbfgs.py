"""L-BFGS on the mean gradient, with one gradient a round and no value of the loss.

    d = -H g(x)                        H: the inverse Hessian that the last pairs (s, y) tell, by two loops
    trial at x + t d , t = 1           where the next gradient is taken
    g(x + t d)' d <= 0.9 |g(x)' d|     x <- x + t d
    else                               t <- t times what a secant says, within 0.1 and 0.5, and try again

The loss is taken to be convex: then a trial of which the slope has not turned uphill is below x, and one that went
a little too far is worth more as a new x than the round that it would cost to do better. Whatever becomes of a trial,
s = t d and y = g(x + t d) - g(x) go into H, unless they show no curvature. H is the step size before the first.
Many more pairs are kept than the usual ten, as arithmetic is cheap beside a round: the last 100, or as many as
fit 64 MB.

References
----------
Nocedal & Wright, "Numerical optimization", 2006, algorithm 7.4.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from goco_mpi.core.methods.allreduce import Allreduce, is_rounding, n_remembered
from goco_mpi.core.methods.base import Array, Place, State

PAIRS = 100
TOO_FAR = 0.9
"""Slope uphill at a trial, in units of the slope downhill at its beginning, up to which the trial is taken."""
NO_CURVATURE = 1e-10
"""Cosine of the angle of s and y up to which they may be rounding."""


@dataclass
class LbfgsState(State):
    """``params`` is the trial ``base`` + ``length`` ``direction``; ``pairs`` are (s, y, 1 / s'y), the oldest first.

    ``gradient`` is that at the base, None before the first.
    """

    base: Array
    direction: Array
    pairs: deque[tuple[Array, Array, float]]
    gradient: Array | None = None
    length: float = 1.0
    first_norm: float = 0.0
    resting: bool = False


class Lbfgs(Allreduce[LbfgsState]):
    """See the module."""

    sensitive = True

    def start(self, params: Array, place: Place) -> LbfgsState:
        """Return a state that knows of no gradient."""
        pairs: deque[tuple[Array, Array, float]] = deque(maxlen=n_remembered(params.size, PAIRS))
        return LbfgsState(params.copy(), params.copy(), np.zeros_like(params), pairs)

    def advance(self, state: LbfgsState, mean: Array, step_size: float) -> None:
        """Take the trial or shorten it."""
        if state.resting:
            return
        if state.gradient is None:
            state.first_norm = float(np.linalg.norm(mean))
            _turn(state, mean, step_size)
            return
        s, y = state.params - state.base, mean - state.gradient
        sy = float(s @ y)
        if sy > NO_CURVATURE * float(np.linalg.norm(s)) * float(np.linalg.norm(y)):
            state.pairs.append((s, y, 1.0 / sy))
        slope, after = float(state.gradient @ state.direction), float(mean @ state.direction)
        if after <= -TOO_FAR * slope:
            state.base = state.params
            _turn(state, mean, step_size)
        else:
            state.length *= min(max(slope / (slope - after), 0.1), 0.5)
            state.params = state.base + state.length * state.direction


def _turn(state: LbfgsState, gradient: Array, step_size: float) -> None:
    """Choose a direction at the base, where the gradient is this, and try its whole length."""
    if is_rounding(gradient, state.base, state.first_norm, step_size):
        state.resting = True
        state.params = state.base
        return
    state.gradient = gradient.copy()
    state.direction = -two_loops(state.pairs, gradient, step_size)
    state.length = 1.0
    state.params = state.base + state.direction


def two_loops(pairs: deque[tuple[Array, Array, float]], gradient: Array, step_size: float) -> Array:
    """Return H times ``gradient``; without pairs H is ``step_size``."""
    result = gradient.copy()
    used = []
    for s, y, inverse in reversed(pairs):
        used.append(inverse * float(s @ result))
        result -= used[-1] * y
    if pairs:
        s, y, inverse = pairs[-1]
        result /= inverse * float(y @ y)
    else:
        result *= step_size
    for s, y, inverse in pairs:
        result += (used.pop() - inverse * float(y @ result)) * s
    return result


LBFGS = Lbfgs()
