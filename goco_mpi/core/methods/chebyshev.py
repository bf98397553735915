"""GOCO with several gossip rounds a gradient, accelerated by Chebyshev polynomials.

    round 0      v = x - eta_t g ;  x_1 = W v                                 lambda: second largest |eigenvalue| of W
    round k      x_{k+1} = c_k W x_k - (c_k - 1) x_{k-1} ;  x_K is where the next gradient is taken
                 c_k = 2 / (2 - lambda r_k) ,  r_{k+1} = lambda / (2 - lambda r_k) ,  r_1 = lambda ,  x_0 = v

which is x_K = T_K(W / lambda) v / T_K(1 / lambda): disagreement shrinks by 1 / T_K(1 / lambda), about
2 (1 - sqrt(2 (1 - lambda)))^K, where K plain rounds shrink it by lambda^K. The average stays what it is.

The polynomial is that of one matrix: every message of every round must be there.

References
----------
Scaman, Bach, Bubeck, Lee & Massoulie, "Optimal algorithms for smooth and strongly convex distributed optimization
in networks", ICML 2017, arXiv 1702.08704.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Method, Place, State

LEAST_RADIUS = 1e-3
"""Of lambda: less is as good as nothing."""


@dataclass
class ChebyshevState(State):
    """As in the module: k, r_k and x_{k-1}."""

    before: Array
    k: int = 0
    ratio: float = 0.0


class Chebyshev(Method[ChebyshevState]):
    """See the module.

    Parameters
    ----------
    n_rounds : int
        K, of which one has a gradient.
    radius : float
        lambda, in [0, 1).
    """

    name = "goco"
    in_step = True
    survives = False

    def __init__(self, n_rounds: int, radius: float) -> None:
        self._n_rounds = n_rounds
        self._radius = max(radius, LEAST_RADIUS)

    def start(self, params: Array, place: Place) -> ChebyshevState:
        """Return a state in which a gradient comes next."""
        return ChebyshevState(params.copy(), before=params.copy())

    def needs_gradient(self, state: ChebyshevState, round_: int) -> bool:
        """Tell whether this is the first of K rounds."""
        return state.k == 0

    def send(self, state: ChebyshevState, gradient: Gradient | None, step_size: float, round_: int, out: Array) -> None:
        """Send v, or x_k."""
        np.copyto(out, state.params)
        if gradient is not None:
            out -= step_size * gradient.vector

    def receive(
        self, state: ChebyshevState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Mix, and subtract what that overdoes."""
        mixing.mix(own, inbox, state.params)
        if state.k == 0:
            state.ratio = self._radius
        else:
            rest = 2.0 - self._radius * state.ratio
            state.params *= 2.0 / rest
            state.params -= (2.0 / rest - 1.0) * state.before
            state.ratio = self._radius / rest
        np.copyto(state.before, own)
        state.k = (state.k + 1) % self._n_rounds
