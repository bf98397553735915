"""Finished runs side by side: a table on the terminal, a picture of loss against wall time.

Reads records only and never computes a result anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from goco_mpi import terminal
from goco_mpi.errors import InputError
from goco_mpi.record import RunRecord


def time_to_gap(run: RunRecord, gap: float) -> float | None:
    """Return the wall seconds to the first recorded suboptimality of at most ``gap``, or None."""
    reached = np.flatnonzero(run.history["suboptimality"] <= gap)
    return float(run.history["wall_s"][reached[0]]) if reached.size else None


def rounds_to_gap(run: RunRecord, gap: float) -> int | None:
    """Return the round of the first recorded suboptimality of at most ``gap``, or None."""
    reached = np.flatnonzero(run.history["suboptimality"] <= gap)
    return int(run.history["round"][reached[0]]) if reached.size else None


def per_second(run: RunRecord, column: str) -> float:
    """Return a column of ``ranks.csv`` over the wall time, of the median rank: of a fast one, when few are slow.

    Of seconds, such as ``wait_s``, that is a share of its time. NaN if no time passed.
    """
    values = [row[column] / row["wall_s"] for row in run.ranks if row["wall_s"] > 0.0]
    return float(np.median(values)) if values else math.nan


def print_table(runs: Sequence[RunRecord], reference: RunRecord | None, gap: float) -> None:
    """Print one line a run: seconds and rounds to the gap, seconds relative to the first run's.

    Parameters
    ----------
    runs : sequence of RunRecord
        Real runs, not simulations.
    reference : RunRecord or None
        The same as the first run, without stragglers.
    gap : float
        The suboptimality whose time is shown.

    Raises
    ------
    InputError
        If a run was simulated: it has no wall time.
    """
    from rich.table import Table

    for run in [*runs, *([reference] if reference else [])]:
        if run.run["result"]["wall_s"] is None:
            raise InputError(
                f"{str(run.path)!r} is a simulation, in which no time passes. "
                "Report real runs, or what simulated ones need with --targets and --figure."
            )
    table = Table(header_style="bold", row_styles=["bold"] + [""] * len(runs))
    table.add_column("run", no_wrap=True)
    for title in (
        f"time to {gap:g}",
        "ratio",
        "rounds",
        "rounds/s",
        "waiting",
        "final gap",
        "accuracy",
    ):
        table.add_column(title, justify="right")
    times = [time_to_gap(run, gap) for run in runs]
    for run, seconds in zip(runs, times, strict=True):
        result = run.run["result"]
        rounds = rounds_to_gap(run, gap)
        ratio = seconds / times[0] if seconds is not None and times[0] else None
        table.add_row(
            label(run),
            "not reached" if seconds is None else f"{seconds:.2f} s",
            "-" if ratio is None else f"{ratio:.1f} x",
            "-" if rounds is None else str(rounds),
            _figure(per_second(run, "rounds"), "{:.1f}"),
            _figure(100 * per_second(run, "wait_s"), "{:.0f} %"),
            _figure(result["suboptimality"], "{:.1e}"),
            "-" if result["test_accuracy"] is None else f"{100 * result['test_accuracy']:.1f} %",
        )
    console = terminal.console()
    console.print(table)
    if reference is not None:
        own, full = per_second(runs[0], "rounds"), per_second(reference, "rounds")
        share = 100 * own / full if full > 0.0 else None
        console.print(
            f"{label(runs[0])}: its fast ranks go through {_figure(own, '{:.1f}')} rounds a second, and through "
            f"{_figure(full, '{:.1f}')} when no rank is slow: {_figure(share, '{:.0f} %')} of full speed.",
            soft_wrap=True,
        )


def label(run: RunRecord) -> str:
    """Return what a run is called: its directory's name."""
    return run.path.resolve().name.replace("_", " ")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def draw(runs: Sequence[RunRecord], gap: float, path: Path) -> None:
    """Draw suboptimality (or loss, where the optimum is unknown) against wall time, as PNG.

    Raises
    ------
    InputError
        If matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("--png needs matplotlib: pip install 'goco-mpi[report]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    column = "suboptimality" if all(np.isfinite(run.history["suboptimality"]).all() for run in runs) else "loss"
    figure, axes = plt.subplots(figsize=(8.0, 4.5), layout="constrained")
    colors = ("#0b6e4f", "#e07a1f", "#7a3b8f", "#27537f", "#9a9a9a")
    for place, run in enumerate(runs):
        axes.plot(
            run.history["wall_s"],
            run.history[column],
            color=colors[place % len(colors)],
            linewidth=2.6 if place == 0 else 1.8,
            label=label(run),
        )
    axes.set_yscale("log")
    axes.set_xlabel("wall time (s)")
    if column == "suboptimality":
        axes.axhline(gap, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylabel("suboptimality  (F - F*) / (F(0) - F*)")
        for place, run in enumerate(runs):
            seconds = time_to_gap(run, gap)
            if seconds is not None:
                axes.plot([seconds], [gap], "o", color=colors[place % len(colors)], markersize=7)
                axes.annotate(
                    f"{seconds:.2f} s",
                    (seconds, gap),
                    xytext=(6, 8),
                    textcoords="offset points",
                    color=colors[place % len(colors)],
                    fontweight="bold",
                )
    else:
        axes.set_ylabel("loss at the mean of the parameters")
    slow = runs[0].run["config"]["stragglers"]
    if slow["kind"] == "slow" and slow["ranks"]:
        axes.set_title(
            f"{runs[0].run['environment']['n_ranks']} ranks, {len(slow['ranks'])} of them "
            f"{slow['factor']:g} times slower"
        )
    axes.set_xlim(left=0.0)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise InputError(f"--png {str(path)!r} cannot be written: {error.strerror}.") from None
    finally:
        plt.close(figure)
