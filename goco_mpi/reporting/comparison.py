"""Variants of an experiment side by side: what each needs to an accuracy, over seeds.

Reads run directories and tables of sweeps; never computes a result anew.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goco_mpi import terminal
from goco_mpi.errors import InputError
from goco_mpi.record import HISTORY, RunRecord, read_run
from goco_mpi.sweeps.file import DONE, FAILED, OWN_COLUMNS, RESULTS

Array = NDArray[np.float64]
History = Mapping[str, Array]

TARGETS = (1e-1, 1e-2, 1e-3, 1e-6)
COSTS = {
    "round": "rounds",
    "wall_s": "seconds",
    "bytes_sent": "MB sent a rank",
    "shard_gradients": "shard gradients a rank",
}
"""What a run costs: columns of its history, as a table calls them."""


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed.

    Attributes
    ----------
    name : str
    settings : dict of str to str
        What else tells it from other variants of the sweep.
    histories : list of dict of str to ndarray
        Of the runs that succeeded.
    n_failed, n_missing : int
        Runs that failed, and that have not been run.
    """

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    histories: list[History] = field(default_factory=list)
    n_failed: int = 0
    n_missing: int = 0

    @property
    def label(self) -> str:
        """Name and settings in one line."""
        parts = [self.name] if self.name else []
        return ", ".join([*parts, *(f"{key}={value}" for key, value in self.settings.items())]) or "the base"


def read_variants(paths: Sequence[Path]) -> list[Variant]:
    """Read run directories and directories of sweeps.

    Runs whose experiments differ only in the seed are one variant, named after the first.

    Raises
    ------
    InputError
        If one is neither, or damaged.
    """
    variants: list[Variant] = []
    runs = []
    for path in paths:
        if (path / RESULTS).is_file():
            variants += _of_sweep(path / RESULTS)
        elif (path / "runs").is_dir():
            raise InputError(
                f"{str(path)!r} is a sweep without its table. Run goco sweep again: it goes on from there."
            )
        else:
            runs.append(read_run(path))
    return variants + _of_runs(runs)


def _of_runs(runs: Sequence[RunRecord]) -> list[Variant]:
    groups: dict[str, Variant] = {}
    for run in runs:
        config = {key: value for key, value in run.run["config"].items() if key != "seed"}
        environment = run.run["environment"]
        same = json.dumps([config, environment.get("n_ranks"), environment.get("simulated")], sort_keys=True)
        name = run.path.resolve().name.replace("_", " ")
        groups.setdefault(same, Variant(name)).histories.append(run.history)
    return list(groups.values())


def _of_sweep(path: Path) -> list[Variant]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from None
    own = ("member", "variant", "run", "status", "reason", *OWN_COLUMNS, *HISTORY)
    if not rows or not {*own} <= {*rows[0]} or any(None in row.values() for row in rows):
        raise InputError(f"{str(path)!r} is not the table of a sweep, or damaged. Run goco sweep again.")
    keys = [key for key in rows[0] if key not in own or key == "workers"]
    varying = [key for key in keys if len({row[key] for row in rows}) > 1]
    members: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        members.setdefault(row["member"], []).append(row)
    groups: dict[tuple[str, ...], list[list[dict[str, str]]]] = {}
    for member in members.values():
        groups.setdefault((member[0]["variant"], *(member[0][key] for key in varying)), []).append(member)
    try:
        return [
            Variant(
                name,
                dict(zip(varying, values, strict=True)),
                [
                    {column: np.array([float(row[column] or "nan") for row in member]) for column in HISTORY}
                    for member in group
                    if member[0]["status"] == DONE
                ],
                sum(member[0]["status"] == FAILED for member in group),
                sum(member[0]["status"] not in (DONE, FAILED) for member in group),
            )
            for (name, *values), group in groups.items()
        ]
    except ValueError as error:
        raise InputError(f"{str(path)!r} is damaged: {error}. Run goco sweep again.") from None


def measure(variants: Sequence[Variant]) -> str:
    """Return by what the variants can be compared: ``suboptimality`` where all know it, or ``loss``."""
    known = all(np.isfinite(history["suboptimality"]).all() for v in variants for history in v.histories)
    return "suboptimality" if known else "loss"


def relative(history: History, column: str) -> Array:
    """Return suboptimality, or the loss, as a fraction of the start's."""
    values = history[column]
    return values if column == "suboptimality" else values / values[0]


def cost_to(history: History, cost: str, target: float, column: str = "suboptimality") -> float:
    """Return what had been spent at the first recorded round at or below ``target``; inf if never, NaN if unknown.

    Examples
    --------
    >>> history = {"round": np.array([0.0, 5.0, 10.0]), "suboptimality": np.array([1.0, 0.2, 0.05])}
    >>> cost_to(history, "round", 0.1), cost_to(history, "round", 0.01)
    (10.0, inf)
    """
    reached = np.flatnonzero(relative(history, column) <= target)
    if np.isnan(history[cost]).all():
        return float("nan")
    return float(history[cost][reached[0]]) if reached.size else float("inf")


def median_cost(variant: Variant, cost: str, target: float, column: str = "suboptimality") -> tuple[float, int]:
    """Return the median over seeds of what is spent to a target, and how many seeds got there.

    A run that failed or never got there counts as infinitely expensive.
    """
    costs = [cost_to(history, cost, target, column) for history in variant.histories]
    costs += [float("inf")] * variant.n_failed
    if not costs:
        return float("inf"), 0
    # Of an even number the lower of the middle two: a mean with infinity would say nothing.
    middle = float("nan") if np.isnan(costs).any() else sorted(costs)[(len(costs) - 1) // 2]
    return middle, sum(value < float("inf") for value in costs)


def best(variants: Sequence[Variant], key: str, target: float) -> list[Variant]:
    """Return of all variants that differ only in ``key`` the one with the fewest rounds to ``target``.

    Among equals, and where none gets there, the one with the lowest last value counts.

    Raises
    ------
    InputError
        If no variant has such a key.
    """
    if not any(key in variant.settings for variant in variants):
        known = sorted({name for variant in variants for name in variant.settings})
        raise InputError(f"--best must name a key that varies in the sweep: {', '.join(known) or 'there is none'}.")
    column = measure(variants)
    groups: dict[tuple[object, ...], list[Variant]] = {}
    for variant in variants:
        rest = tuple(item for item in variant.settings.items() if item[0] != key)
        groups.setdefault((variant.name, rest), []).append(variant)

    def rank(variant: Variant) -> tuple[float, float]:
        ends = [float(relative(history, column)[-1]) for history in variant.histories]
        ends += [float("inf")] * variant.n_failed
        return median_cost(variant, "round", target, column)[0], sorted(ends)[(len(ends) - 1) // 2] if ends else np.inf

    return [min(group, key=rank) for group in groups.values()]


def print_costs(variants: Sequence[Variant], targets: Sequence[float], best_of: str | None = None) -> None:
    """Print what every variant needs to each target: medians over seeds.

    Parameters
    ----------
    variants : sequence of Variant
    targets : sequence of float
    best_of : str, optional
        A key of which each variant gets, target by target, its `best` value.
    """
    from rich.table import Table

    column = measure(variants)
    what = "suboptimality" if column == "suboptimality" else "loss, relative to the start"
    costs = [cost for cost in COSTS if not all(np.isnan(h[cost]).all() for v in variants for h in v.histories)]
    table = Table(header_style="bold", title=f"To a {what} of at most ...: medians over seeds", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("variant", overflow="fold")
    for cost in costs:
        table.add_column(COSTS[cost], justify="right")
    table.add_column("reached by", justify="right", no_wrap=True)
    for target in targets:
        for place, variant in enumerate(variants if best_of is None else best(variants, best_of, target)):
            medians = [median_cost(variant, cost, target, column)[0] for cost in costs]
            n_reached = median_cost(variant, "round", target, column)[1]
            cells = [_figure(cost, value) for cost, value in zip(costs, medians, strict=True)]
            total = len(variant.histories) + variant.n_failed
            table.add_row("" if place else f"{target:g}", variant.label, *cells, f"{n_reached} of {total}")
        table.add_section()
    console = terminal.console()
    console.print(table)
    for word, numbers in (
        ("failed: they count as never there", [variant.n_failed for variant in variants]),
        ("have not been run, and are left out", [variant.n_missing for variant in variants]),
    ):
        if sum(numbers):
            console.print(f"{sum(numbers)} runs {word}.")


def _figure(cost: str, value: float) -> str:
    if np.isinf(value):
        return "never"
    if np.isnan(value):
        return "-"
    if cost == "wall_s":
        return f"{value:.2f}"
    return f"{value / 1e6:.3g}" if cost == "bytes_sent" else f"{value:.0f}"
