"""Pictures of variants: loss against what it costs, a line a variant and a band over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from goco_mpi.errors import InputError
from goco_mpi.reporting.comparison import History, Variant, measure, relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

AGAINST = {
    "round": ("rounds", 1.0),
    "wall_s": ("wall time (s)", 1.0),
    "bytes_sent": ("MB sent by a rank", 1e6),
    "shard_gradients": ("gradients of shards computed by a rank", 1.0),
}
"""What a curve may be drawn against: the axis' title and its unit."""
FLOOR = 1e-13
"""Suboptimality below which the optimum itself is not known any better."""
FORMATS = (".svg", ".png", ".pdf")
# Okabe and Ito's palette: told apart also by those who see fewer colours.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", "--", ":", "-.")


def curves(histories: Sequence[History], against: str, column: str) -> tuple[Array, Array]:
    """Return all runs' values on one axis: points of shape (n_points,), values of shape (n_runs, n_points).

    The axis has every recorded point of any run, as far as all runs reach; between its own points a run's
    logarithm is interpolated.

    Examples
    --------
    >>> first = {"round": np.array([0.0, 2.0]), "suboptimality": np.array([1.0, 0.01])}
    >>> second = {"round": np.array([0.0, 1.0, 2.0, 3.0]), "suboptimality": np.array([1.0, 0.5, 0.2, 0.1])}
    >>> points, values = curves([first, second], "round", "suboptimality")
    >>> points.tolist(), values.round(3).tolist()
    ([0.0, 1.0, 2.0], [[1.0, 0.1, 0.01], [1.0, 0.5, 0.2]])
    """
    ends = min(float(history[against][-1]) for history in histories)
    points = np.unique(np.concatenate([history[against] for history in histories]))
    points = points[points <= ends]
    logs = [np.log10(np.maximum(relative(history, column), FLOOR)) for history in histories]
    values = [np.interp(points, history[against], log) for history, log in zip(histories, logs, strict=True)]
    return points, np.power(10.0, np.array(values))


def draw(variants: Sequence[Variant], path: Path, title: str = "", floor: float = FLOOR) -> None:
    """Draw loss or suboptimality against rounds and, where they are known, seconds, bytes and gradients.

    Parameters
    ----------
    variants : sequence of Variant
    path : Path
        Its suffix says in which format.
    title : str
    floor : float
        The lowest value drawn.

    Raises
    ------
    InputError
        If matplotlib is missing, there is nothing to draw, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"--figure must end in {', '.join(FORMATS)}. Got {str(path)!r}.")
    try:
        import matplotlib
    except ImportError:
        raise InputError("--figure needs matplotlib: pip install 'goco-mpi[report]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [variant for variant in variants if variant.histories]
    if not drawn:
        raise InputError("--figure has nothing to draw: no run succeeded.")
    column = measure(drawn)
    against = [cost for cost in AGAINST if all(np.isfinite(h[cost]).all() for v in drawn for h in v.histories)]
    n_columns = len(against) if len(against) < 4 else 2
    n_rows = -(-len(against) // n_columns)
    # The same picture is the same file: no date, and ids that do not change.
    with plt.rc_context({"svg.hashsalt": "goco_mpi", "font.size": 9.5}):
        figure, grid = plt.subplots(
            n_rows, n_columns, figsize=(1.5 + 3.6 * n_columns, 3.3 * n_rows + 0.6), sharey=True, squeeze=False
        )
        try:
            for axes, cost in zip(grid.flat, against, strict=False):
                _panel(axes, drawn, cost, column)
            if floor > FLOOR:
                grid[0, 0].set_ylim(bottom=floor)  # all panels share the axis
            for axes in grid[:, 0]:
                axes.set_ylabel("suboptimality (F - F*) / (F(0) - F*)" if column == "suboptimality" else "F / F(0)")
            n_seeds = max(len(variant.histories) for variant in drawn)
            over = f"median, and range over {n_seeds} seeds" if n_seeds > 1 else ""
            figure.suptitle(": ".join(part for part in (title, over) if part))
            handles, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
            figure.set_layout_engine("constrained")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise InputError(f"--figure {str(path)!r} cannot be written: {error.strerror}.") from None
        finally:
            plt.close(figure)


def _panel(axes: Axes, variants: Sequence[Variant], against: str, column: str) -> None:
    title, unit = AGAINST[against]
    for place, variant in enumerate(variants):
        points, values = curves(variant.histories, against, column)
        color, style = COLORS[place % len(COLORS)], STYLES[place // len(COLORS) % len(STYLES)]
        label = variant.label + (f" ({variant.n_failed} failed)" if variant.n_failed else "")
        axes.plot(points / unit, np.median(values, axis=0), color=color, linestyle=style, linewidth=1.8, label=label)
        if len(values) > 1:
            axes.fill_between(
                points / unit, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, linewidth=0
            )
    axes.set_yscale("log")
    axes.set_xlim(left=0.0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(title)
    axes.grid(True, which="major", alpha=0.3)
