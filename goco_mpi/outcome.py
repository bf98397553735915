"""What a run or a simulation gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.checkpoint import WholeSet

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Death:
    """A rank that died in a run.

    Attributes
    ----------
    rank : int
    noticed : dict of int to int
        In which of its rounds each rank that lived on heard of it; without those who had ended before.
    """

    rank: int
    noticed: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` says: the first round in which anybody knew of it (None: after the last)."""
        noticed = {str(rank): round_ for rank, round_ in sorted(self.noticed.items())}
        return {"rank": self.rank, "round": min(self.noticed.values(), default=None), "noticed": noticed}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run or a simulation gave, on the process that records it.

    Attributes
    ----------
    history : sequence of dict
        Rows of ``history.csv``, without suboptimality.
    ranks : sequence of dict
        Rows of ``ranks.csv``; each has at least ``rank`` and ``rounds``.
    stacked_params : ndarray of shape (n_ranks, n_params)
    step_size : float
        Step size of round 0.
    wall_s : float or None
        Seconds in the round loop, of the rank that took longest; None where no time passes.
    loss_optimum : float or None
        F at the optimum, where it was asked for.
    stopped_by : str
        ``rounds``, the key of ``[stop]`` that ended it, ``callback``, or one of `ASKED_TO_STOP`.
    events : sequence of ndarray of int32, optional
        Each rank's table of `goco_mpi.core.events`.
    timeline : sequence of ndarray, optional
        Each rank's times, shape (n_steps, 3 + 2 degree): see `goco_mpi.reporting.timeline`.
    momentum : float, optional
        Of accelerated descent, where the curvatures of the loss told it.
    deaths : sequence of Death
        Of ranks that have no rows in ``ranks`` and ``stacked_params``, and no events.
    lost : str or None
        Which shards died with them, for a message; None where there are none.
    first_params : ndarray of shape (n_params,), optional
        Everybody's, where they are not zero.
    loss_start : float, optional
        F at the first parameters, where the history begins later.
    gradient_dissimilarity : float, optional
        Of the shards at 0 (`goco_mpi.core.metrics.gradient_dissimilarity`).
    resumed_from : WholeSet, optional
        The checkpoint that the run went on from.
    """

    history: Rows
    ranks: Rows
    stacked_params: NDArray[np.float64]
    step_size: float
    wall_s: float | None
    loss_optimum: float | None
    stopped_by: str = "rounds"
    events: Sequence[NDArray[np.int32]] | None = None
    timeline: Sequence[NDArray[np.float64]] | None = None
    momentum: float | None = None
    deaths: Sequence[Death] = ()
    lost: str | None = None
    first_params: NDArray[np.float64] | None = None
    loss_start: float | None = None
    gradient_dissimilarity: float | None = None
    resumed_from: WholeSet | None = None
