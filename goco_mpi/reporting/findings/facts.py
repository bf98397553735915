"""What findings stand on, and what one is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SLOW = 2.0
"""A rank whose gradients take so many times as long as the median rank's is a slow one."""
LATE = 0.01
"""Part of the gradients whose loss is worth a word."""

Kind = Literal["waiting", "computing", "messages", "mixing", "heterogeneity", "noise", "rounds", "good", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that limited a run, or did not.

    Attributes
    ----------
    kind : str
    title : str
    text : str
        Why, with the numbers.
    tries : tuple of str
        What to try; keys of the experiment file and commands between backquotes.
    """

    kind: Kind
    title: str
    text: str
    tries: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Facts:
    """What findings stand on. None, NaN or empty where the record does not say.

    Attributes
    ----------
    exchange : {'gossip', 'allreduce', 'central'}
    method, late : str
    waits : bool
        Whether every round waits for all: infinite deadlines, or an allreduce.
    waiting, computing : float
        Shares of its time of the median rank.
    slow : dict of int to float
        Ranks whose gradients took more than `SLOW` times the median rank's, and how many times.
    late_share : float
        Part of all gradients that was dropped, or used in part only.
    crowded : bool
        Whether several ranks shared a core.
    rounds, values, spread : ndarray
        Of the history: the round, suboptimality or loss, consensus distance.
    optimum_known : bool
        Whether ``values`` is the suboptimality.
    scale : float
        F(start) - F*, by which a suboptimality becomes a loss.
    seconds_a_round : float
    curvature : float
        Largest curvature of the loss at the start.
    spectral_gap : float
    dissimilarity : float
        Of the shards' gradients at 0 (`goco_mpi.core.metrics.gradient_dissimilarity`).
    n_shards, n_ranks, replication : int
    minibatches : bool
    stopped_by : str
    """

    exchange: str = "gossip"
    method: str = "goco"
    late: str = "discard"
    waits: bool = False
    waiting: float = math.nan
    computing: float = math.nan
    slow: dict[int, float] = field(default_factory=dict)
    late_share: float = math.nan
    crowded: bool = False
    rounds: Array = field(default_factory=lambda: np.zeros(0))
    values: Array = field(default_factory=lambda: np.zeros(0))
    spread: Array = field(default_factory=lambda: np.zeros(0))
    optimum_known: bool = False
    scale: float = math.nan
    seconds_a_round: float = math.nan
    curvature: float = math.nan
    spectral_gap: float = math.nan
    dissimilarity: float = math.nan
    n_shards: int = 1
    n_ranks: int = 1
    replication: int = 1
    minibatches: bool = False
    stopped_by: str = "rounds"


def percent(share: float) -> str:
    """Return a share as text.

    Examples
    --------
    >>> percent(0.256), percent(0.0004), percent(0.0)
    ('26 %', '0.04 %', '0 %')
    """
    if share >= 0.01 or share <= 0.0:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1g} %"
