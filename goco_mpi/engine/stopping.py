"""When a rank thinks that the run has gone on long enough: loss, gradient norm, wall clock, callback, requests.

Each rank decides on its own, from what it knows; the word spreads over the graph with the
goodbyes, so that all ranks stop within as many rounds as the graph's diameter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.requests import Requests
from goco_mpi.schema import StopConfig

Array = NDArray[np.float64]

Callback = Callable[[int, Array], object]
"""A user's own look at a rank's parameters, before the round that it is given."""

_KEPT = ("_next_loss_round", "_travelled", "_window_start", "_last_round", "_gradients", "_still", "_origin")


class Stopping:
    """The stop conditions of one rank.

    Parameters
    ----------
    config : StopConfig
    exchange : Exchange
        Carries the ranks' losses, and the word to stop.
    loss : callable (ndarray of shape (n_params,)) -> float
        This rank's part of F.
    callback : callable (round, params) -> object, optional
        A user's own look at every round; a StopIteration from it stops the run.
    requests : Requests, optional
        What may ask the run to end from outside.

    Attributes
    ----------
    loss : callable (ndarray of shape (n_params,)) -> float
        As given.
    reason : str or None
        The key of ``[stop]`` by which this rank decided, ``callback``, or what `Requests` heard; None as long as it
        has not.

    Notes
    -----
    The *loss* is the sum of what all ranks last told of their parts of F, each at its own
    parameters and up to ``every`` rounds and one diameter of the graph old.

    The *gradient norm* is ``|x(t) - x(s)| / (eta_s + ... + eta_{t-1})`` over a window of at least
    ``every`` rounds and one gradient: where the ranks keep close, the mean of their parameters moves by
    ``-eta grad F`` a round, and so does each of them. What stragglers add as noise is averaged over the window.
    Two windows in a row must agree, of which one is a round longer: parameters that jump to and fro, as with
    too large a step, are back where they were after an even number of rounds.
    """

    def __init__(
        self,
        config: StopConfig,
        exchange: Exchange,
        loss: Callable[[Array], float],
        callback: Callback | None = None,
        requests: Requests | None = None,
    ) -> None:
        self._config = config
        self._requests = requests or Requests()
        self._callback = callback
        self._exchange = exchange
        self.loss = loss
        self._end = math.inf
        self._next_loss_round = 0
        self._travelled = 0.0
        self._window_start = self._last_round = 0
        self._gradients = 0
        self._still = 0
        self._origin: Array | None = None
        self.reason: str | None = None

    def start(self, params: Array, round_: int = 0) -> None:
        """Start the clock, and in ``round_`` the first window."""
        if self._config.time_limit_s is not None:
            self._end = time.perf_counter() + self._config.time_limit_s
        if self._config.gradient_norm is not None and self._origin is None:
            self._origin = params.copy()
            self._window_start = self._last_round = round_

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the window, and of what has been told."""
        return {name: getattr(self, name) for name in _KEPT}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned, before `start`."""
        for name in _KEPT:
            setattr(self, name, kept[name])
        if self._config.gradient_norm is None:
            self._origin = None

    def out_of_time(self) -> bool:
        """Check the clock and requests, also in the middle of a gradient; return whether the run stops."""
        if self.reason is None:
            now = time.perf_counter()
            if now >= self._end:
                self._decide("time_limit_s")
            elif (asked := self._requests.heard(now)) is not None:
                self._decide(asked)
        return self._exchange.stopped

    def stop(self, reason: str) -> None:
        """Stop the run for a reason that is found elsewhere, unless it stops already."""
        if self.reason is None:
            self._decide(reason)

    def forget(self) -> None:
        """Tell the loss anew in the next round: what all have told is of no more use."""
        self._next_loss_round = 0

    def after_round(self, round_: int, step_size: float, used_gradient: bool, params: Array) -> None:
        """Look at what a round brought.

        Parameters
        ----------
        round_ : int
            The round to come.
        step_size : float
            Of the rounds since the last call: more than one after a jump.
        used_gradient : bool
            Whether this rank took a step of its own.
        params : ndarray of shape (n_params,)
        """
        if self.reason is not None:
            return
        if self._callback is not None:
            try:
                self._callback(round_, params)
            except StopIteration:
                self._decide("callback")
        if self._config.target_loss is not None:
            if round_ >= self._next_loss_round:
                self._exchange.tell(round_, self.loss(params))
                self._next_loss_round = round_ + self._config.every
            if self._exchange.told() <= self._config.target_loss:
                self._decide("target_loss")
        if self._origin is not None:
            # Between neighbours that stand still a rank soon does, too, wherever that is.
            round_ = int(max(self._last_round, min(round_, self._exchange.pace())))
            self._travelled += (round_ - self._last_round) * step_size
            self._last_round = round_
            self._gradients += used_gradient
            if round_ - self._window_start >= self._config.every + self._still and self._gradients:
                self._end_window(self._origin, round_, params)

    def _end_window(self, origin: Array, round_: int, params: Array) -> None:
        assert self._config.gradient_norm is not None  # there is no window otherwise
        norm = float(np.linalg.norm(params - origin)) / self._travelled
        self._still = self._still + 1 if norm <= self._config.gradient_norm else 0
        if self._still == 2:
            self._decide("gradient_norm")
        self._travelled, self._gradients, self._window_start = 0.0, 0, round_
        np.copyto(origin, params)

    def _decide(self, reason: str) -> None:
        self.reason = reason
        self._exchange.stop()
