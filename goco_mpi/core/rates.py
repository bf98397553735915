"""Completion rates as the workers see them themselves: counted, averaged over recent rounds, or dead or alive.

    n <- beta^D n + f ,  r <- beta^D r + (1 + beta + ... + beta^(D-1)) ,  q = n / r          n = r = 1 at first
    f   share of the held shards that a step's gradient is of, D rounds after the step before
    beta = 1 (``counted``), or 1 - 1/100 (``ema``: an exponential moving average)

Every worker says its q to all with each message (`goco_mpi.core.bulletin`). One that is silent cannot say
that it finishes nothing any more; after `QUIET_ROUNDS` its q goes on as if it did not. ``live`` is 1 for all who
have been heard of in `DEAD_ROUNDS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

KINDS = ("stated", "counted", "ema", "live")

HORIZON = 100.0
"""Rounds that an exponential moving average looks back."""
QUIET_ROUNDS = 20
"""Rounds without news of a worker after which its rate fades: news may be that long under way."""
DEAD_ROUNDS = 200
"""The same after which it is not ``live`` any more: longer than a process is put aside on a busy machine."""
LEAST_RATE = 0.01
"""What all holders of a shard together finish at least, for its weight: it is made up for up to a hundredfold."""


def decay(kind: str) -> float:
    """Return beta."""
    return 1.0 - 1.0 / HORIZON if kind == "ema" else 1.0


class RateEstimate:
    """One worker's own completion rate.

    Parameters
    ----------
    kind : {'counted', 'ema', 'live'}

    Examples
    --------
    >>> estimate = RateEstimate("counted")
    >>> for round_ in range(98):
    ...     rate = estimate.update(round_, finished=round_ % 2)
    >>> round(rate, 2)
    0.51
    """

    def __init__(self, kind: str) -> None:
        self._decay = decay(kind)
        self._always = kind == "live"
        self._finished = self._rounds = 1.0
        self._round = -1

    def update(self, round_: int, finished: float) -> float:
        """Take note of a step in ``round_``, ``finished`` the share of its gradient, and return q in [0, 1]."""
        passed = round_ - self._round
        self._round = round_
        if self._decay < 1.0:
            faded = self._decay**passed
            self._finished *= faded
            self._rounds = self._rounds * faded + (1.0 - faded) / (1.0 - self._decay)
        else:
            self._rounds += passed
        self._finished += finished
        # A gradient that took many rounds is counted in the last of them.
        return 1.0 if self._always else min(self._finished / self._rounds, 1.0)


def present(kind: str, rates: Array, said: Array, round_: int) -> Array:
    """Return the rates that count in ``round_``, shape (n_workers,): lower where a worker is silent.

    Parameters
    ----------
    kind : {'counted', 'ema', 'live'}
    rates : ndarray of shape (n_workers,)
        What each worker said last; 1 before it said anything.
    said : ndarray of shape (n_workers,)
        The rounds in which they said so, -1 before.
    round_ : int
        The worker's own.

    Examples
    --------
    >>> present("live", np.ones(2), np.array([250.0, 10.0]), 250).tolist()
    [1.0, 0.0]
    """
    if kind == "live":
        return np.where(round_ - said > DEAD_ROUNDS, 0.0, rates)
    silent = np.maximum(round_ - said - QUIET_ROUNDS, 0.0)
    if kind == "ema":
        return np.asarray(rates * decay(kind) ** silent)
    return np.asarray(rates * (said + 2.0) / (said + 2.0 + silent))
