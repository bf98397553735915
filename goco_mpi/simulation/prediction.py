"""A recorded run simulated once more in seconds, from its own costs: how far the two are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi import terminal
from goco_mpi.errors import InputError
from goco_mpi.outcome import Rows
from goco_mpi.record import RunRecord
from goco_mpi.simulation.calibration import Calibration, calibrate
from goco_mpi.simulation.seconds import simulate_in_time

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A run and its simulation, rank by rank.

    Attributes
    ----------
    calibration : Calibration
        The cost model that the simulation went by.
    recorded, simulated : dict of str to ndarray of shape (n_ranks,)
        ``wall_s``, ``rate`` (steps a second), ``waiting`` (share of the time) and ``gradients``.
    """

    calibration: Calibration
    recorded: dict[str, Array]
    simulated: dict[str, Array]

    def errors(self, name: str) -> Array:
        """Return simulated / recorded - 1 of each rank, NaN where nothing was recorded."""
        recorded = self.recorded[name]
        known = np.where(recorded > 0.0, recorded, np.nan)
        return np.asarray(self.simulated[name] / known - 1.0)


def predict(run: RunRecord) -> Prediction:
    """Fit the cost model to a run, and simulate the run with it.

    Raises
    ------
    InputError
        If the run says nothing of its machine, took no step, or its data cannot be read.
    RunError
        If the simulation diverges.
    """
    found = calibrate(run)
    if not any(row["rounds"] for row in run.ranks):
        raise InputError(
            f"{str(run.path)!r} ended before its first step: there is nothing to predict. Give another run."
        )
    simulated = simulate_in_time(found.config, found.n_workers, cost=found.cost, measured=True).outcome
    return Prediction(found, _figures(run.ranks), _figures(simulated.ranks))


def _figures(ranks: Rows) -> dict[str, Array]:
    columns = {name: np.array([row[name] for row in ranks], dtype=np.float64) for name in ranks[0] if name != "host"}
    wall_s = columns["wall_s"]
    return {
        "wall_s": wall_s,
        "rate": columns["rounds"] / wall_s,
        "waiting": columns["wait_s"] / wall_s,
        "gradients": columns["gradients"] + columns["partial_gradients"],
    }


def print_prediction(name: str, found: Prediction) -> None:
    """Print one line a rank, and the largest errors."""
    from rich.table import Table

    table = Table(header_style="bold", title=f"{name}, recorded and simulated from its own costs", title_justify="left")
    pairs = ("seconds", "simulated", "steps/s", "simulated", "waiting", "simulated", "gradients", "simul.")
    for title in ("rank", *pairs):
        table.add_column(title, justify="right")
    recorded, simulated = found.recorded, found.simulated
    for rank in range(len(recorded["wall_s"])):
        table.add_row(
            str(rank),
            f"{recorded['wall_s'][rank]:.2f}",
            f"{simulated['wall_s'][rank]:.2f}",
            f"{recorded['rate'][rank]:.1f}",
            f"{simulated['rate'][rank]:.1f}",
            f"{100 * recorded['waiting'][rank]:.0f} %",
            f"{100 * simulated['waiting'][rank]:.0f} %",
            f"{recorded['gradients'][rank]:.0f}",
            f"{simulated['gradients'][rank]:.0f}",
        )
    console = terminal.console()
    console.print(table)
    parts = []
    for column, words in (("wall_s", "wall time"), ("rate", "round rate")):
        errors = 100 * found.errors(column)
        worst = errors[np.nanargmax(np.abs(errors))]
        parts.append(f"{words} {np.nanmedian(errors):+.0f} % (median), {worst:+.0f} % (worst rank)")
    console.print("error of the simulation: " + "; ".join(parts), soft_wrap=True)
    cost = found.calibration.cost
    console.print(
        f"cost: overhead {cost.overhead_s:.3g} s a message, latency {cost.latency_s:.3g} s, "
        f"{cost.bytes_per_s:.3g} bytes/s (as configured); gradient times of {len(cost.traces)} ranks",
        soft_wrap=True,
    )
