"""Where gradient coding pays, from the table of examples/regimes/sweep.toml.

    python examples/regimes/map.py runs/regimes --figure regimes.svg

A round costs a rank its shards, d M / N of them, and an overhead of c shard computations (messages, waiting, starting);
a run to the target costs rounds x (c + d M / N). Cells say how many times longer uncoded gossip (d = 1) takes than the
best replication, each at its own best step: above 1 coding pays.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from goco_mpi.comparison import best, median_cost, read_variants
from goco_mpi.errors import GocoError, InputError

SHARDS, WORKERS = 100, 20
OVERHEADS = [0, 1, 3, 10, 30, 100]
TARGET = 0.01

Cell = tuple[float, int]


def ratios(sweep: Path, target: float) -> dict[str, dict[str, list[Cell]]]:
    """Return for every probability of being late and heterogeneity a row of cells: the ratio, and the best coded d."""
    rounds: dict[str, dict[str, dict[int, float]]] = {}
    for variant in best(read_variants([sweep]), "step.scale", target):
        late, apart, d = (
            variant.settings[key] for key in ("stragglers.p", "data.heterogeneity", "placement.replication")
        )
        rounds.setdefault(late, {}).setdefault(apart, {})[int(d)] = median_cost(variant, "round", target)[0]

    def cell(needed: dict[int, float], overhead: int) -> Cell:
        times = {d: needed[d] * (overhead + d * SHARDS / WORKERS) for d in needed}
        coded = min((d for d in times if d > 1), key=lambda d: times[d])
        never = math.isinf(times[coded])
        return (math.nan if never and math.isinf(times[1]) else times[1] / times[coded], coded)

    return {
        late: {apart: [cell(needed, overhead) for overhead in OVERHEADS] for apart, needed in rows.items()}
        for late, rows in rounds.items()
    }


def text(cell: Cell) -> str:
    """Return a cell of the map in words."""
    ratio, d = cell
    if math.isnan(ratio):
        return "neither"
    return f"only d={d}" if math.isinf(ratio) else f"{ratio:.1f} (d={d})"


def draw(maps: dict[str, dict[str, list[Cell]]], target: float, path: Path) -> None:
    """Draw one map for every probability of being late."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--figure needs matplotlib: pip install 'goco-mpi[report]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "goco_mpi", "font.size": 9})
    figure, axes_of = plt.subplots(1, len(maps), figsize=(5.2 * len(maps), 3.2), layout="constrained", squeeze=False)
    for axes, (late, rows) in zip(axes_of[0], maps.items(), strict=True):
        colors = [[math.log2(min(max(ratio, 0.25), 4.0)) for ratio, _ in row] for row in rows.values()]
        axes.imshow(colors, cmap="PuOr", vmin=-2, vmax=2, aspect="auto", origin="lower")
        for y, row in enumerate(rows.values()):
            for x, cell in enumerate(row):
                axes.text(x, y, text(cell).replace(" ", "\n", 1), ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(OVERHEADS)), [str(overhead) for overhead in OVERHEADS])
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_xlabel("overhead of a round (shard computations)")
        axes.set_ylabel("heterogeneity of the shards")
        axes.set_title("nobody late" if float(late) == 0.0 else f"each gradient late with probability {late}")
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
    maps = ratios(options.sweep, options.target)
    for late, rows in maps.items():
        print(f"probability of being late: {late}; columns: overhead of a round, {OVERHEADS} shard computations")
        for apart, row in rows.items():
            print(f"  heterogeneity {apart:>4}  " + "".join(f"{text(cell):>12}" for cell in row))
    if options.figure:
        draw(maps, options.target, options.figure)
        print(f"figure in {options.figure}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GocoError as error:
        sys.exit(f"map: {error}")
