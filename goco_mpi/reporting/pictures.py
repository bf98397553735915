"""Pictures of one run's ranks: who was slow when, where their time went, the graph, who holds what, ages of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.reporting.account import SAMPLES, Account
from goco_mpi.reporting.activity import Activity, State
from goco_mpi.reporting.svg import HEIGHT, INK, SERIES, WIDTH, draw, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATES = {
    State.WORKING: ("#a9c9e3", "at work"),
    State.WAITING: ("#f3e3ae", "waiting"),
    State.SKIPPED: ("#f2a057", "skipped"),
    State.SLOW: ("#c8323c", "slow"),
}
"""Colour and name; the graver, the darker, so that they are told apart without colour too."""
SUSPECTED = ("#7a4bb0", "suspected")
"""The same of those whom most neighbours do not wait for, whatever they do."""
WIDE = 12.4
"""Inches of a figure over the whole width of a page."""
NAMED = 24
"""Ranks that are labelled one by one; of more, some."""
EDGES = 4000
"""Edges that are drawn at most."""


def heat_map(run: Account, name: str, width: float = WIDE) -> str:
    """Return who was slow or skipped, and when, a row a rank; below it a stripe while it was suspected."""
    from matplotlib.colors import ListedColormap

    found = run.activity
    assert found is not None
    n_ranks, n_colors = len(found.states), len(STATES) + 2
    colors = ["none", *(color for color, _ in STATES.values()), SUSPECTED[0]]
    pixels = map_pixels(found, n_colors - 1)

    def fill(axes: Axes) -> None:
        axes.imshow(
            pixels,
            cmap=ListedColormap(colors),
            vmin=-0.5,
            vmax=n_colors - 0.5,
            aspect="auto",
            interpolation="none",
            extent=(found.edges[0], found.edges[-1], n_ranks - 0.5, -0.5),
        )
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("seconds" if found.timed else "rounds")
        axes.locator_params(axis="x", nbins=6 if width < WIDE else 12)
        _label_ranks(axes, n_ranks)

    return draw(name, fill, width, min(0.75 + 0.26 * n_ranks, 5.5))


def map_pixels(found: Activity, stripe: int) -> NDArray[np.int8]:
    """Return the colours of the map, a column a piece.

    Of few ranks each has several lines: a piece in which a rank did several things is divided among them as its time
    was, the gravest at the bottom. Of many each has one, of what it mostly did.

    Parameters
    ----------
    found : Activity
    stripe : int
        Colour of those who are suspected; the others are values of `State`.
    """
    n_ranks, samples = len(found.states), SAMPLES if found.timed else 1
    suspected = np.where(found.suspected, stripe, 0).astype(np.int8)
    states, stripes = (np.sort(rows.reshape(n_ranks, -1, samples), axis=2) for rows in (found.states, suspected))
    if n_ranks > NAMED:
        most = samples // 2
        return np.where(stripes[:, :, most], stripes[:, :, most], states[:, :, most])
    lines = [
        np.repeat(states, 2 * SAMPLES // samples, axis=2),
        np.repeat(stripes[:, :, ::-1], SAMPLES // samples, axis=2),
        np.zeros((*states.shape[:2], SAMPLES // 2), np.int8),
    ]
    pixels = np.concatenate(lines, axis=2)
    return pixels.swapaxes(1, 2).reshape(-1, pixels.shape[1])


def _label_ranks(axes: Axes, n_ranks: int) -> None:
    step = -(-n_ranks // NAMED)
    axes.set_yticks(range(0, n_ranks, step))
    axes.set_ylabel("rank")
    axes.set_ylim(n_ranks - 0.4, -0.6)


def seconds(run: Account, name: str) -> str:
    """Return what each rank's time went into: computing, waiting, messages and mixing."""
    rows = run.record.ranks
    compute, wait, wall = (np.array([row[key] for row in rows]) for key in ("compute_s", "wait_s", "wall_s"))
    other = np.maximum(wall - compute - wait, 0.0)

    def fill(axes: Axes) -> None:
        ranks = [int(row["rank"]) for row in rows]
        left = np.zeros(len(rows))
        for values, color, label in (
            (compute, STATES[State.WORKING][0], "computing"),
            (wait, STATES[State.WAITING][0], "waiting"),
            (other, "#8d99a6", "messages, mixing"),
        ):
            axes.barh(ranks, values, left=left, color=color, label=label, height=0.8 if len(rows) <= NAMED else 1.0)
            left = left + values
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds")
        _label_ranks(axes, max(ranks) + 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, columnspacing=1.0, handlelength=1.2)

    return draw(name, fill, WIDTH, min(1.2 + 0.19 * len(rows), 5.0))


def completion(run: Account, name: str) -> str:
    """Return which part of its rounds each rank finished a gradient in."""
    rates = run.completion
    ranks = [int(row["rank"]) for row in run.record.ranks]

    def fill(axes: Axes) -> None:
        axes.barh(ranks, rates, color=SERIES[0], height=0.8 if len(ranks) <= NAMED else 1.0)
        axes.set_xlim(0.0, 1.0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("gradients finished a round")
        _label_ranks(axes, max(ranks) + 1)

    return draw(name, fill, WIDTH, min(1.0 + 0.19 * len(ranks), 5.0))


def old_values(runs: Sequence[Account]) -> str:
    """Return which part of the neighbours' vectors was how old when it was mixed."""
    shown = [(place, run.age_shares) for place, run in enumerate(runs)]
    longest = max((int(np.flatnonzero(found[0])[-1]) + 1 for _, found in shown if found and found[0].any()), default=1)
    groups = [(0, 0), (1, 1), (2, 2), *((2**k + 1, 2 ** (k + 1)) for k in range(1, 12))]
    groups = [group for group in groups if group[0] < longest] or groups[:1]
    names = [f"{low}" if low == high else f"{low}-{high}" for low, high in groups] + ["not\nused"]

    def fill(axes: Axes) -> None:
        bars = [(place, found) for place, found in shown if found is not None]
        width = 0.84 / len(bars)
        for number, (place, (shares, unused)) in enumerate(bars):
            heights = [100.0 * shares[low : high + 1].sum() for low, high in groups] + [100.0 * unused]
            at = np.arange(len(heights)) + (number - (len(bars) - 1) / 2.0) * width
            axes.bar(at, heights, width=width, color=style(place)["color"], label=runs[place].name)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(0.0, 130.0)
        axes.set_yticks([0.0, 0.1, 1.0, 10.0, 100.0], ["0", "0.1", "1", "10", "100 %"])
        axes.minorticks_off()
        axes.grid(axis="x", visible=False)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("age in rounds")
        axes.set_ylabel("of all vectors")

    return draw("ages", fill)


def graph(run: Account, name: str) -> str:
    """Return who gossips with whom; the darker a rank, the fewer of its rounds had a gradient; grey: not known."""
    assert run.layout is not None
    topology, n_ranks = run.layout.topology, run.n_ranks
    angles = np.pi / 2.0 - 2.0 * np.pi * np.arange(n_ranks) / n_ranks
    x, y = np.cos(angles), np.sin(angles)
    rates = np.full(n_ranks, np.nan)
    for row, rate in zip(run.record.ranks, run.completion, strict=True):
        rates[int(row["rank"])] = rate

    def fill(axes: Axes) -> None:
        from matplotlib.collections import LineCollection

        ends = np.array(topology.edges[:: -(-len(topology.edges) // EDGES) or 1], dtype=np.intp).reshape(-1, 2)
        lines = np.stack([np.stack([x[ends[:, k]], y[ends[:, k]]], axis=1) for k in (0, 1)], axis=1)
        axes.add_collection(
            LineCollection(list(lines), colors=INK, alpha=0.3 if len(ends) < 200 else 0.08, linewidths=0.8)
        )
        small = n_ranks > 2 * NAMED
        size, known = 12 if small else 190, ~np.isnan(rates)
        look: Any = {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0, "edgecolors": INK, "linewidths": 0.5}
        axes.scatter(x[known], y[known], s=size, c=rates[known], zorder=2, **look)
        axes.scatter(x[~known], y[~known], s=size, c="#b9bfc6", zorder=2, edgecolors=INK, linewidths=0.5)
        if not small:
            for rank in range(n_ranks):
                ink = "white" if rates[rank] < 0.6 else "#101010"
                axes.annotate(str(rank), (x[rank], y[rank]), ha="center", va="center", color=ink, fontsize=7.5)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.margins(0.12)

    return draw(name, fill, WIDTH, 3.0)


def placement(run: Account, name: str) -> str:
    """Return who holds which shard, and below how many holders of it finish in a round on average."""
    assert run.layout is not None
    held = run.layout.placement.held

    def fill(axes: Axes) -> None:
        from matplotlib.colors import ListedColormap

        axes.imshow(held, cmap=ListedColormap(["none", SERIES[0]]), aspect="auto", interpolation="none", vmin=0, vmax=1)
        axes.grid(False)
        axes.set_xlabel("shard")
        axes.locator_params(axis="x", integer=True)
        _label_ranks(axes, len(held))

    return draw(name, fill, WIDTH, min(1.0 + 0.19 * len(held), 3.6))


def coverage(run: Account, name: str) -> str:
    """Return how many holders of each shard finish their gradient in a round on average."""
    found = run.coverage
    assert found is not None and run.layout is not None
    replication = run.layout.placement.replication

    def fill(axes: Axes) -> None:
        shards = np.arange(len(found))
        axes.bar(shards, replication, color=INK, alpha=0.14, width=0.85, label="holders")
        axes.bar(shards, found, color=SERIES[0], width=0.85, label="that finish")
        axes.set_xlabel("shard")
        axes.set_ylabel("ranks")
        axes.locator_params(axis="x", integer=True)
        axes.locator_params(axis="y", integer=True, nbins=5)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0.0, max(float(replication.max()) * 1.05, 1.0))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.2)

    return draw(name, fill, WIDTH, HEIGHT)
