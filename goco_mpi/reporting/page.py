"""Runs as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goco_mpi import __version__
from goco_mpi.errors import InputError
from goco_mpi.record import ASKED_TO_STOP
from goco_mpi.reporting import sections, table
from goco_mpi.reporting.account import Account, changed_keys
from goco_mpi.reporting.findings import find
from goco_mpi.reporting.svg import style

if TYPE_CHECKING:
    from markupsafe import Markup

NOT_KNOWN = "-"
"""What stands in a table for it."""
LABELS = {"goco_mpi": "goco_mpi", "n_ranks": "ranks", "mpi_library": "MPI library", "mpi_standard": "MPI standard"}
"""Names of facts of the environment that are not theirs with blanks in them."""
CODE = re.compile(r"`([^`]*)`")


def build(runs: Sequence[Account], gap: float) -> str:
    """Return the page of some runs.

    Parameters
    ----------
    runs : sequence of Account
    gap : float
        The suboptimality whose time is shown.

    Raises
    ------
    InputError
        If what it is made with is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise InputError("--html needs matplotlib and jinja2: pip install 'goco-mpi[report]'.") from None
    templates = Environment(
        loader=PackageLoader("goco_mpi.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["code"] = _code
    return templates.get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        version=__version__,
        gap=f"{gap:g}",
        runs=[
            {
                "name": run.name,
                "color": style(place)["color"],
                "path": str(run.path),
                "lede": _lede(run),
                "summary": _summary(run, gap),
                "resources": _resources(run),
                "findings": find(run.facts()),
                "ranks": _ranks(run),
            }
            for place, run in enumerate(runs)
        ],
        notes=_notes(runs),
        progress=sections.progress(runs),
        activity=[sections.activity(run, place) for place, run in enumerate(runs)],
        ages=sections.ages(runs),
        layouts=sections.layouts(runs),
        keys=_keys(runs),
        environment=_environment(runs),
    )


def write(text: str, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        fresh = Path(name)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        raise InputError(f"--html {str(path)!r} cannot be written: {error.strerror}.") from None
    finally:
        if fresh is not None:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)  # gone if all went well


def _code(text: str) -> Markup:
    """Return text in which what stands between backquotes is code."""
    from markupsafe import Markup, escape

    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


def _lede(run: Account) -> str:
    """Return in one sentence what the run was."""
    config, result = run.record.run["config"], run.result
    what = f"{config.get('method', {}).get('kind', 'a method')} on {config.get('data', {}).get('source', 'data')}"
    who = f"{run.n_ranks} {'simulated workers' if run.simulated else 'ranks'}"
    rounds = f"{run.record.history['round'][-1]:.0f} rounds"
    took = f" in {result['wall_s']:.3g}{' simulated' if run.simulated else ''} s" if run.timed else ""
    return f"{what}, {who}, {rounds}{took}; {_ended(run)}."


def _ended(run: Account) -> str:
    stopped_by = run.result.get("stopped_by", "rounds")
    deaths = [death["rank"] for death in run.result.get("deaths", [])]
    words = {
        "rounds": "all rounds done",
        "target_loss": "target loss reached",
        "gradient_norm": "gradient norm reached",
        "time_limit_s": "stopped by its time limit",
        "callback": "stopped by a callback",
        **{name: f"stopped, {text}" for name, text in ASKED_TO_STOP.items()},
    }
    ended = words.get(stopped_by, str(stopped_by).replace("_", " "))
    return ended + (f"; died: {', '.join(f'rank {rank}' for rank in deaths)}" if deaths else "")


def _summary(run: Account, gap: float) -> list[str]:
    """Return a run's row of the first table, in the order of its template's columns."""
    result, record = run.result, run.record
    facts = run.facts()
    rounds, seconds = table.rounds_to_gap(record, gap), table.time_to_gap(record, gap)
    known = run.measure == "suboptimality"
    return [
        str(run.n_ranks),
        f"{record.history['round'][-1]:.0f}",
        _number(result.get("wall_s"), "{:.3g} s"),
        _number(result.get("loss"), "{:.6g}"),
        _suboptimality(result.get("suboptimality")),
        ("not reached" if rounds is None else str(rounds)) if known else NOT_KNOWN,
        ("not reached" if rounds is None else _number(seconds, "{:.3g} s")) if known and run.timed else NOT_KNOWN,
        _number(result.get("consensus_distance"), "{:.2g}"),
        _number(None if result.get("test_accuracy") is None else 100 * result["test_accuracy"], "{:.1f} %"),
        _number(100 * facts.waiting, "{:.0f} %"),
        _number(1.0 / facts.seconds_a_round if facts.seconds_a_round > 0.0 else None, "{:.3g}"),
    ]


def _resources(run: Account) -> str:
    """Return in one sentence what the data and the memory took; empty where the record does not say."""
    rows = [row for row in run.record.ranks if {"bytes_read", "load_s", "peak_mib"} <= row.keys()]
    if not rows:
        return ""
    read, load_s, peak = (max(float(row[key]) for row in rows) for key in ("bytes_read", "load_s", "peak_mib"))
    reading = f"read up to {read / 1e6:.3g} MB and " if read >= 1e4 else ""
    return f"A rank {reading}was ready after up to {load_s:.2g} s; its memory was at most {peak:.0f} MiB."


def _suboptimality(value: float | None) -> str:
    return "0" if value is not None and value <= 0.0 else _number(value, "{:.1e}")


def _number(value: float | None, form: str) -> str:
    return NOT_KNOWN if value is None or value != value else form.format(value)


def _notes(runs: Sequence[Account]) -> list[str]:
    """Return what records do not hold, and why: what several lack is said once, with their names unless all do."""
    lacking: dict[str, list[str]] = {}
    for run in runs:
        for note in _lacks(run):
            lacking.setdefault(note, []).append(run.name)
    return [
        note if len(names) == len(runs) else f"{', '.join(names)}: {note[0].lower()}{note[1:]}"
        for note, names in lacking.items()
    ]


def _lacks(run: Account) -> list[str]:
    names = {
        "seconds": "Seconds",
        "layout": "Graph and shards",
        "events": "Events",
        "timeline": "Times of steps",
    }
    _ = run.activity, run.age_shares  # which look for them
    notes = [f"{names[key]}: {why}" for key, why in run.missing.items() if key in names]
    if run.measure == "loss":
        notes.append("Suboptimality: the optimum was not looked for (record.optimum = true).")
    notes += [
        f"{name}: the record is older than that column."
        for column, name in (("bytes_sent", "Bytes sent"), ("shard_gradients", "Gradients of shards"))
        if (run.record.history[column] != run.record.history[column]).all()
    ]
    return notes


def _ranks(run: Account) -> dict[str, Any]:
    """Return the table of a run's ranks."""
    rows = run.record.ranks
    columns = list(rows[0]) if rows else []
    return {
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [[_cell(row.get(column)) for column in columns] for row in rows],
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return "" if value is None else str(value)


def _keys(runs: Sequence[Account]) -> list[dict[str, Any]]:
    """Return all keys of the experiments, those first that are not everywhere the default."""
    configs = [changed_keys(run.record.run["config"]) for run in runs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    found = []
    for name in names:
        cells = [config.get(name) for config in configs]
        texts = [NOT_KNOWN if cell is None else _value(cell[0]) for cell in cells]
        changed = any(cell is not None and cell[1] for cell in cells)
        found.append({"name": name, "values": texts, "changed": changed, "differs": len(set(texts)) > 1})
    return sorted(found, key=lambda key: not (key["changed"] or key["differs"]))


def _environment(runs: Sequence[Account]) -> list[dict[str, Any]]:
    """Return where the runs were made."""
    names = list(dict.fromkeys(name for run in runs for name in run.environment))
    return [
        {"name": LABELS.get(name, name.replace("_", " ")), "values": [_fact(name, run.environment) for run in runs]}
        for name in names
    ]


def _fact(name: str, environment: Mapping[str, Any]) -> str:
    value = environment.get(name)
    return shlex.join(map(str, value)) if name == "command" and isinstance(value, list) else _value(value)


def _value(value: Any) -> str:
    """Return a value of a config or an environment as text.

    Examples
    --------
    >>> _value([2, 2, 2]), _value([1, 2]), _value(True), _value(None), _value({"numpy": "2.0"})
    ('2 (each of 3)', '1, 2', 'true', '-', 'numpy 2.0')
    """
    if isinstance(value, list):
        if len(value) > 2 and all(one == value[0] for one in value):
            return f"{_value(value[0])} (each of {len(value)})"
        return ", ".join(_value(one) for one in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return NOT_KNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)
