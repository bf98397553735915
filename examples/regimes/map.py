"""Where gradient coding pays, from the table of examples/regimes/sweep.toml.

    python examples/regimes/map.py runs/regimes --figure regimes.svg

A round costs a rank its shards, d M / N of them, and an overhead of c shard computations (messages, waiting, starting);
a run to the target costs rounds x (c + d M / N). Cells say how many times longer uncoded gossip (d = 1) takes than the
best replication: above 1 coding pays. Every d has its own best step, and, in the second rows, its own best method.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from goco_mpi.errors import GocoError, InputError
from goco_mpi.reporting.comparison import Variant, best, median_cost, read_variants

SHARDS, WORKERS = 100, 20
OVERHEADS = [0, 1, 3, 10, 30, 100]
TARGET = 0.01
CHOICES = {"goco": ("goco",), "the better of goco and push-pull": ("goco", "push-pull")}

Cell = tuple[float, int]
Map = dict[str, list[Cell]]


def maps_of(variants: list[Variant], target: float) -> dict[str, Map]:
    """Return, for every choice of methods and probability of being late, a row of cells for each heterogeneity."""
    chosen = best(variants, "step.scale", target)
    maps: dict[str, Map] = {}
    for choice, names in CHOICES.items():
        rounds: dict[str, dict[str, dict[int, float]]] = {}
        for variant in chosen:
            if variant.name in names:
                late, apart, d = (
                    variant.settings[key] for key in ("stragglers.p", "data.heterogeneity", "placement.replication")
                )
                needed = rounds.setdefault(late, {}).setdefault(apart, {})
                needed[int(d)] = min(needed.get(int(d), math.inf), median_cost(variant, "round", target)[0])
        for late, rows in rounds.items():
            lateness = "nobody late" if float(late) == 0.0 else f"late with probability {late}"
            maps[f"{choice}, {lateness}"] = {
                apart: [cell(needed, overhead) for overhead in OVERHEADS] for apart, needed in rows.items()
            }
    return maps


def cell(needed: dict[int, float], overhead: int) -> Cell:
    """Return the ratio of times and the best coded d, from the rounds that each d needs."""
    times = {d: needed[d] * (overhead + d * SHARDS / WORKERS) for d in needed}
    coded = min((d for d in times if d > 1), key=lambda d: times[d])
    never = math.isinf(times[1]) and math.isinf(times[coded])
    return (math.nan if never else times[1] / times[coded], coded)


def text(cell: Cell) -> str:
    """Return a cell of the map in words."""
    ratio, d = cell
    if math.isnan(ratio):
        return "neither"
    return f"only d={d}" if math.isinf(ratio) else f"{ratio:.1f} (d={d})"


def draw(maps: dict[str, Map], target: float, path: Path) -> None:
    """Draw all maps."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--figure needs matplotlib: pip install 'goco-mpi[report]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "goco_mpi", "font.size": 9})
    figure, grid = plt.subplots(
        len(CHOICES), len(maps) // len(CHOICES), figsize=(10, 5.6), layout="constrained", squeeze=False, sharex=True
    )
    for axes, (title, rows) in zip(grid.flat, maps.items(), strict=True):
        colors = [[math.log2(min(max(ratio, 0.25), 4.0)) for ratio, _ in row] for row in rows.values()]
        axes.imshow(colors, cmap="PuOr", vmin=-2, vmax=2, aspect="auto", origin="lower")
        for y, row in enumerate(rows.values()):
            for x, one in enumerate(row):
                ink = "white" if abs(colors[y][x]) > 1.2 else "black"
                axes.text(x, y, text(one).replace(" ", "\n", 1), color=ink, ha="center", va="center", fontsize=7.5)
        axes.set_xticks(range(len(OVERHEADS)), [str(overhead) for overhead in OVERHEADS])
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title(title, fontsize=9.5)
    figure.supxlabel("overhead of a round (shard computations)")
    figure.supylabel("heterogeneity of the shards")
    figure.suptitle(f"Time of uncoded gossip / time of coded gossip, to a suboptimality of {target:g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    """Print and draw the maps; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="directory of the sweep")
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--figure", type=Path, metavar="FILE")
    options = parser.parse_args()
    maps = maps_of(read_variants([options.sweep]), options.target)
    for title, rows in maps.items():
        print(f"{title}; columns: overhead of a round, {OVERHEADS} shard computations")
        for apart, row in rows.items():
            print(f"  heterogeneity {apart:>4}  " + "".join(f"{text(one):>12}" for one in row))
    if options.figure:
        draw(maps, options.target, options.figure)
        print(f"figure in {options.figure}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GocoError as error:
        sys.exit(f"map: {error}")
