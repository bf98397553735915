"""A sweep file to its members: one experiment changed in many ways.

::

    workers = 8
    base = "experiment.toml"            # or its tables, as [base], [base.data], ...

    [[variant]]                         # keys that change together, under one name
    name = "coded"
    placement.replication = 3
    [[variant]]
    name = "uncoded"
    placement.kind = "uncoded"

    [grid]                              # every combination, of every variant
    data.heterogeneity = [0.0, 1.0]
    seed = [0, 1, 2, 3, 4]

Running them is `goco_mpi.sweeps.running`.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goco_mpi.config import flat, parse_config, put, read_toml, refuse_unknown_keys, resolve_paths, to_dict
from goco_mpi.errors import InputError, check_one_of, check_range
from goco_mpi.schema import RunConfig

MODES = ("simulate", "mpi")
KEYS = ("base", "workers", "mode", "variant", "grid")
RESULTS = "results.csv"
"""The table of a sweep."""
OWN_COLUMNS = ("workers", "seed")
"""Keys that have a column there whether they are in the grid or not."""
DONE, FAILED, MISSING = "done", "failed", "missing"
"""What a member's ``status`` is there."""
WORKERS = "workers"
"""The one key beside an experiment's that a grid or a variant may have."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes
    ----------
    variant : str
        Name of its ``[[variant]]``, empty where there are none.
    settings : dict
        The grid's keys and their values here.
    workers : int
    config : RunConfig or None
        None where the experiment is refused.
    refusal : str
        Why.
    identity : str
        Checksum of config, workers and mode: the name of its run directory. Empty where refused.
    """

    variant: str
    settings: dict[str, Any]
    workers: int
    config: RunConfig | None
    refusal: str
    identity: str

    @property
    def label(self) -> str:
        """The variant and the grid's keys, in one line."""
        parts = [self.variant] if self.variant else []
        return ", ".join([*parts, *(f"{key}={text(value)}" for key, value in self.settings.items())]) or "the base"


@dataclass(frozen=True)
class Sweep:
    """All members of a sweep file.

    Attributes
    ----------
    mode : {'simulate', 'mpi'}
    keys : tuple of str
        The grid's keys.
    members : tuple of Member
    """

    mode: str
    keys: tuple[str, ...]
    members: tuple[Member, ...]


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    A member whose experiment is refused is one all the same, with the reason.

    Raises
    ------
    InputError
        If the file is missing or not TOML, or its form is wrong: a key that is none, an empty grid.
    """
    path = Path(path)
    raw = read_toml(path, "sweep")
    for key in raw:
        check_one_of(f"A key of the sweep file {str(path)!r}", key, KEYS)
    mode = raw.get("mode", "simulate")
    if not isinstance(mode, str):
        raise InputError(f"mode must be one of {', '.join(MODES)}. Got {mode!r}.")
    check_one_of("mode", mode, MODES)
    base = _base(raw.get("base", {}), path.parent)
    if WORKERS in raw:
        base[WORKERS] = raw[WORKERS]
    variants, grid = _variants(raw.get("variant", [])), _grid(raw.get("grid", {}))
    for name, changes in variants:
        for key in changes.keys() & grid.keys():
            raise InputError(f"A key may change by variant or by grid. {key} does both, in variant {name!r}.")
    members = [
        _member(base, name, changes, dict(zip(grid, values, strict=True)), mode, path.parent)
        for name, changes in variants
        for values in itertools.product(*grid.values())
    ]
    return Sweep(mode, tuple(grid), tuple(members))


def text(value: Any) -> str:
    """Return a value of a key as a table shows it.

    Examples
    --------
    >>> text("goco"), text(0.5), text([1, 2])
    ('goco', '0.5', '[1, 2]')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _base(base: Any, directory: Path) -> dict[str, Any]:
    if isinstance(base, str):
        file = directory / base
        tables = read_toml(file, "base experiment")
        resolve_paths(tables, file.parent)
    elif isinstance(base, dict):
        tables = base
    else:
        raise InputError(f"base must be the name of an experiment file, or its tables. Got {base!r}.")
    refuse_unknown_keys(tables)
    return tables


def _variants(tables: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return name and changed keys of every variant; one without either where there are none."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError("variant must be a list of tables: write [[variant]].")
    variants = []
    for place, table in enumerate(tables, 1):
        name = table.get("name")
        if not isinstance(name, str) or not name:
            raise InputError(f"Every [[variant]] must have a name. Number {place} has {name!r}.")
        changes = flat({key: value for key, value in table.items() if key != "name"})
        _refuse_unknown(changes, f"variant {name!r}")
        variants.append((name, changes))
    names = [name for name, _ in variants]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Every [[variant]] must have a name of its own. {name!r} is there twice.")
    return variants or [("", {})]


def _grid(tables: Any) -> dict[str, list[Any]]:
    if not isinstance(tables, dict):
        raise InputError(f"grid must be a table. Got {tables!r}.")
    grid = flat(tables)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{key} must be a list of at least one value. Got {values!r}.")
    _refuse_unknown({key: values[0] for key, values in grid.items()}, "grid")
    return grid


def _refuse_unknown(settings: dict[str, Any], where: str) -> None:
    tables: dict[str, Any] = {}
    for key, value in settings.items():
        if key != WORKERS:
            put(tables, key, value, where)
    refuse_unknown_keys(tables)


def _member(
    base: dict[str, Any], variant: str, changes: dict[str, Any], settings: dict[str, Any], mode: str, directory: Path
) -> Member:
    raw = copy.deepcopy(base)
    for key, value in {**changes, **settings}.items():
        put(raw, key, value, "sweep")
    workers = raw.pop(WORKERS, 8)
    if not isinstance(workers, int) or isinstance(workers, bool):
        raise InputError(f"workers must be a whole number. Got {workers!r}.")
    check_range("workers", workers, 1, 2**31)
    resolve_paths(raw, directory)
    try:
        config = parse_config(raw)
    except InputError as error:
        return Member(variant, settings, workers, None, str(error), "")
    document = {"mode": mode, "workers": workers, "config": to_dict(config)}
    identity = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
    return Member(variant, settings, workers, config, "", identity)
