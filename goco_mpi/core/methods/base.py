"""What a method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """A named pair of pure functions and the exchange they need.

    Attributes
    ----------
    name : str
        As in ``method.kind``.
    coded : bool
        Whether shards may be replicated and gradients coded; otherwise every shard has one holder.
    exchange : {'gossip', 'allreduce'}
        ``gossip``: vectors to graph neighbours, mixed by a rule that forgives late ones.
        ``allreduce``: the sum over all workers, which waits for everyone.
    local_step : callable (params, gradient or None, step_size, out) -> None
        Writes into ``out`` the vector to send; the gradient is None when it was not finished.
    combine : callable (params, exchanged, step_size, out) -> None
        Writes into ``out`` the next parameters. ``exchanged`` is the mixed vector (gossip) or
        the mean over all workers of what they sent (allreduce). ``out`` may be ``params``.
    """

    name: str
    coded: bool
    exchange: Literal["gossip", "allreduce"]
    local_step: Callable[[Array, Array | None, float, Array], None]
    combine: Callable[[Array, Array, float, Array], None]


def descend(params: Array, gradient: Array | None, step_size: float, out: Array) -> None:
    """Write v = x - eta g, or v = x where the gradient was not finished."""
    if gradient is None:
        np.copyto(out, params)
    else:
        np.multiply(gradient, -step_size, out=out)
        out += params


def adopt(params: Array, exchanged: Array, step_size: float, out: Array) -> None:
    """Take the mixed vector as the next parameters."""
    np.copyto(out, exchanged)
