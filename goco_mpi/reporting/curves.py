"""Progress of runs as figures: loss or suboptimality against what it cost, and how far the ranks were apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from goco_mpi.reporting.account import Account
from goco_mpi.reporting.figures import AGAINST, FLOOR
from goco_mpi.reporting.svg import draw, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 600
"""Points of a curve: more cannot be seen."""


def measure(runs: Sequence[Account]) -> str:
    """Return what is drawn of all runs: ``suboptimality`` where all know it, or ``loss``."""
    return "suboptimality" if all(run.measure == "suboptimality" for run in runs) else "loss"


def known(run: Account, column: str) -> bool:
    """Tell whether a record has a column of the history."""
    return bool(np.isfinite(run.record.history[column]).all())


def progress(runs: Sequence[Account], against: str) -> str:
    """Return loss or suboptimality against a cost (a key of `figures.AGAINST`), of the runs that know it."""
    column = measure(runs)
    title, unit = AGAINST[against]

    def fill(axes: Axes) -> None:
        _lines(axes, runs, column, against, unit)
        axes.set_xlabel(title)
        axes.set_ylabel("suboptimality" if column == "suboptimality" else "loss")
        if column == "suboptimality" or all((run.record.history["loss"] > 0.0).all() for run in runs):
            axes.set_yscale("log")

    return draw(f"progress-{against}", fill)


def consensus(runs: Sequence[Account]) -> str:
    """Return how far the ranks' parameters were apart against rounds."""

    def fill(axes: Axes) -> None:
        _lines(axes, runs, "consensus_distance", "round", 1.0)
        axes.set_xlabel("rounds")
        axes.set_ylabel("consensus distance")
        if any((run.record.history["consensus_distance"] > 0.0).any() for run in runs):
            axes.set_yscale("log")

    return draw("consensus", fill)


def _lines(axes: Axes, runs: Sequence[Account], column: str, against: str, unit: float) -> None:
    for place, run in enumerate(runs):
        history = run.record.history
        if not known(run, against):
            continue
        values = history[column]
        if column == "suboptimality":
            values = np.maximum(values, FLOOR)
        elif column == "consensus_distance":
            values = np.where(values > 0.0, values, np.nan)  # on a logarithmic axis there is no zero
        chosen = np.unique(np.linspace(0, len(values) - 1, MOST_POINTS).astype(int))
        axes.plot(history[against][chosen] / unit, values[chosen], linewidth=1.6, label=run.name, **style(place))
    axes.set_xlim(left=0.0)
    axes.locator_params(axis="x", nbins=5)
