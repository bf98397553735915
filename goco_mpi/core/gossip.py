"""Mixing rules: what a worker does with its neighbours' vectors, late and missing ones included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RULES = ("stale", "fold", "symmetric", "running")
HEADER = 4
"""Numbers of a message before its vectors: round, flags, seconds of work, step."""
TRAILER = 2
"""Numbers of an allreduce behind its vector: what the ranks tell, and how many want to stop."""


@dataclass(frozen=True)
class Received:
    """The newest vector that a worker has of one neighbour.

    Attributes
    ----------
    value : ndarray of shape (n_params,) or None
        None as long as nothing has arrived.
    age : int
        Rounds since that vector was sent; 0 or less is fresh.
    """

    value: Array | None
    age: int


def age_limit(rule: str, max_age: int) -> int:
    """Return the largest age that ``rule`` mixes: ``fold`` and ``symmetric`` take only this round's vectors.

    `mix` with that limit *is* the rule; see there.

    Examples
    --------
    >>> age_limit("fold", 20), age_limit("stale", 20)
    (0, 20)
    """
    return max_age if rule == "stale" else 0


def mix(own: Array, weights: Array, inbox: Sequence[Received], max_age: int, out: Array) -> list[bool]:
    """Average with the neighbours: x_i = v_i + sum_j w_ij (vhat_j - v_i) over the usable j.

    A neighbour is usable when something of it has arrived that is not older than ``max_age``
    rounds; the weight of the others stays with the worker itself.

    Parameters
    ----------
    own : ndarray of shape (n_params,)
        v_i, the worker's vector after its local step.
    weights : ndarray of shape (degree,)
        w_ij in the order of ``inbox``.
    inbox : sequence of Received, length degree
    max_age : int
        From `age_limit`.
    out : ndarray of shape (n_params,)
        Receives x_i; must not be ``own`` nor a vector of the inbox.

    Returns
    -------
    list of bool, length degree
        Which neighbours were used.

    Notes
    -----
    With ``max_age = 0`` this is the fold rule, biased when links are unequally late; otherwise
    the stale rule, whose limit keeps a dead neighbour from dragging everyone to its last vector.
    """
    used = [received.value is not None and received.age <= max_age for received in inbox]
    terms = [
        (weight, received.value)
        for weight, received, use in zip(weights, inbox, used, strict=True)
        if use and received.value is not None
    ]
    np.multiply(own, 1.0 - sum(weight for weight, _ in terms), out=out)
    for weight, value in terms:
        out += weight * value
    return used


@dataclass(frozen=True, eq=False)
class Mixing:
    """One worker's mixing: its weights under a rule.

    Attributes
    ----------
    weights : ndarray of shape (degree,)
        w_ij of the neighbours in the order of an inbox.
    max_age : int
        Largest age at which a vector is mixed, from `age_limit`.
    """

    weights: Array
    max_age: int

    def mix(self, own: Array, inbox: Sequence[Received], out: Array) -> list[bool]:
        """Write the mixed vector into ``out``; see `mix`."""
        return mix(own, self.weights, inbox, self.max_age, out)
