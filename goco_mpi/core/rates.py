"""Completion rates as the workers see them themselves: counted, averaged over recent rounds, or dead or alive.

    n <- beta^D n + f ,  r <- beta^D r + (1 + beta + ... + beta^(D-1)) ,  q = n / r          n = r = 1 at first
    D   rounds since the step before
    f   part of the worker's shards that the step's gradient is of
    beta = 1 (``counted``), or 1 - 1/100 (``ema``: an exponential moving average)

An ``ema`` begins anew, with n = r = 1, where the past makes what a worker does all but impossible: it was frozen
and is back, or slow and is so no more. Otherwise it would be made up for a hundredfold while it finishes everything.
With n finished in r rounds the next gap and the next run without one have the chances (Polya's urn)

    P(gap >= D) = B(n, r - n + 1 + D) / B(n, r - n + 1) ,   P(run >= D) = B(n + 1 + D, r - n) / B(n + 1, r - n)

A worker that its machine puts aside jumps over rounds: it finishes few of them, and yet most of its steps. Each of
these is averaged with others' once, and to make up for fifty rounds in one would lead it away from them:

    p <- beta p + f ,  s <- beta s + 1 ,  q' = p / s         at every step, p = s = 1 at first

Its own q' bounds what it makes up for itself (`goco_mpi.core.methods.rated`).

Every worker says its q to all with each message (`goco_mpi.core.bulletin`). One that is silent cannot say
that it finishes nothing any more; after `QUIET_ROUNDS` its q goes on as if it did not. ``live`` is 1 for all who
have been heard of in the last `DEAD_ROUNDS`.
"""

from __future__ import annotations

from math import exp, lgamma

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
IMPROBABLE = 1e-4
"""Chance of a gap or a run of finished gradients below which the past is forgotten."""
LEAST_RATE = 0.01
"""Least sum of its holders' rates that a shard's weight is taken of: lateness is made up for a hundredfold at most."""


def decay(kind: str) -> float:
    """Return beta, by which the sums fade in a round."""
    return 1.0 - 1.0 / HORIZON if kind == "ema" else 1.0


class RateEstimate:
    """One worker's own completion rate.

    Parameters
    ----------
    kind : {'counted', 'ema', 'live'}

    Attributes
    ----------
    of_steps : float
        q', the share of its steps' gradients that are finished, however many rounds they jump over.

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
        self._in_steps = self._steps = 1.0
        self.of_steps = 1.0
        self._round = -1
        self._gap = self._run = 0
        self._before = (1.0, 1.0)  # the sums when this gap or run began
        self._kept = (0, (1.0, 1.0))  # the run before this gap

    def update(self, round_: int, finished: float) -> float:
        """Take note of a step in ``round_``, f of its gradient being ``finished``, and return q in [0, 1]."""
        self._in_steps = self._decay * self._in_steps + finished
        self._steps = self._decay * self._steps + 1.0
        self.of_steps = 1.0 if self._always else self._in_steps / self._steps
        passed = round_ - self._round
        self._round = round_
        if finished > 0.0:
            if passed == 0 and self._gap:
                self._take_back()  # this round was counted for a step in the middle of the gradient
                passed = 1
            # A gradient that took many rounds is counted in the last of them.
            self._pass(passed - 1)
            self._expect()
            self._count(min(passed, 1))
            self._finished += finished
        else:
            self._pass(passed)
        return 1.0 if self._always else min(self._finished / self._rounds, 1.0)

    def _pass(self, rounds: int) -> None:
        """Let rounds pass without a gradient."""
        if rounds > 0:
            if self._gap == 0:
                self._kept = self._run, self._before
                self._before, self._run = (self._finished, self._rounds), 0
            self._gap += rounds
            self._count(rounds)

    def _take_back(self) -> None:
        """Undo the last round that passed without a gradient."""
        self._gap -= 1
        self._finished /= self._decay
        self._rounds = (self._rounds - 1.0) / self._decay
        if self._gap == 0:
            self._run, self._before = self._kept

    def _expect(self) -> None:
        """Forget the past if a gradient comes after too long a gap, or is one too many in a row."""
        if self._run == 0:
            if self._improbable(0, self._gap):
                self._finished = self._rounds = 1.0
            self._before = self._finished, self._rounds
        self._gap = 0
        self._run += 1
        if self._improbable(self._run, 0):
            self._finished = self._rounds = 1.0
            self._before, self._run = (1.0, 1.0), 1

    def _improbable(self, run: int, gap: int) -> bool:
        finished, rounds = self._before
        missed = rounds - finished
        if self._decay == 1.0 or run + gap == 0 or (run and missed <= 0.0):
            return False
        hits, misses = (finished + 1.0, missed) if run else (finished, missed + 1.0)
        return _polya(hits, misses, run, gap) < IMPROBABLE

    def _count(self, rounds: int) -> None:
        """Let the sums fade, and count the rounds."""
        if self._decay < 1.0:
            faded = self._decay**rounds
            self._finished *= faded
            self._rounds = self._rounds * faded + (1.0 - faded) / (1.0 - self._decay)
        else:
            self._rounds += rounds


def _polya(hits: float, misses: float, more_hits: int, more_misses: int) -> float:
    """Return the chance of so many more hits and misses, in one order, after those there were."""
    after = lgamma(hits + more_hits) + lgamma(misses + more_misses) - lgamma(hits + misses + more_hits + more_misses)
    return exp(after - lgamma(hits) - lgamma(misses) + lgamma(hits + misses))


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
