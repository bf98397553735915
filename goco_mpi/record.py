"""A run directory: what was run, where, and what came of it.

- ``run.json``: schema version (`goco_mpi.record_schema`), whole config, environment, result
- ``history.csv``: loss and cost of every recorded round: the columns ``HISTORY``
- ``ranks.csv``: counts of every rank
- ``params.npy``: parameters of every rank, shape (n_ranks, n_params)
- ``events.npz``: what decided each rank's every vector (`goco_mpi.core.events`)
- ``timeline.npz``: when, with ``record.timeline``
- ``first_params.npy``: everybody's first parameters, where they are not zero (``--warm-start``)
- ``start``: the checkpoint that the run went on from (``--resume``): there its events begin

The directory appears whole or not at all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from goco_mpi import directories, record_schema
from goco_mpi.config import to_dict
from goco_mpi.core import metrics
from goco_mpi.core.survivors import DISCONNECTED, LOST_SHARD, ranks_text
from goco_mpi.errors import InputError, RunError, worse_than_nothing
from goco_mpi.outcome import Outcome, Rows
from goco_mpi.pairings import has_own_steps
from goco_mpi.schema import RunConfig
from goco_mpi.software import software

FIRST_PARAMS = "first_params.npy"
START = "start"

HISTORY = (
    "round",
    "wall_s",
    "loss",
    "suboptimality",
    "consensus_distance",
    "test_accuracy",
    "bytes_sent",
    "shard_gradients",
)
"""Columns of ``history.csv``; the last two are what a rank has spent by then, the mean over all ranks."""

ASKED_TO_STOP = {
    "signal": "asked to by a signal",
    "stop_file": "asked to by the stop file",
    "scheduler": "before the scheduler ends the job",
}
"""Values of ``stopped_by`` of a run that was cut short from outside, with what there is to say."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run directory read back.

    Attributes
    ----------
    path : Path
    run : dict
        ``run.json``, as the newest schema has it.
    history : dict of str to ndarray
        Columns of ``history.csv``; NaN where a cell is empty, or the record older than the column.
    ranks : list of dict
        Rows of ``ranks.csv`` of those who lived to the end; numbers as float.
    """

    path: Path
    run: dict[str, Any]
    history: dict[str, NDArray[np.float64]]
    ranks: list[dict[str, Any]]


def refuse_existing(out: Path, force: bool) -> None:
    """Refuse to run when the result could not be written, or would destroy an earlier one.

    Raises
    ------
    InputError
        If ``out`` exists and ``force`` is not given, or is no run directory at all, or its place
        cannot be written to.
    """
    directories.refuse_existing(out, force, name="--out", what="run", mark="run.json")


def stop_file(out: Path) -> Path:
    """Return the file that asks the run of a directory to end.

    Examples
    --------
    >>> stop_file(Path("/runs/mine"))
    PosixPath('/runs/mine.stop')
    """
    return Path(f"{out.absolute()}.stop")


def refuse_stop_file(out: Path) -> None:
    """Refuse to start a run that somebody has asked to end.

    Removing the file instead would overrule whoever put it there while the job was waiting in its queue.

    Raises
    ------
    InputError
        If the stop file is there.
    """
    if stop_file(out).exists():
        raise InputError(
            f"The stop file {str(stop_file(out))!r} is there: somebody asked this run to end. Remove it to start."
        )


def write_run(
    out: Path, config: RunConfig, environment: dict[str, Any], outcome: Outcome, force: bool
) -> dict[str, Any]:
    """Write a run directory, replacing an earlier one only once the new one is complete.

    Parameters
    ----------
    out : Path
    config : RunConfig
    environment : dict
        Where it ran; versions of the software are added.
    outcome : Outcome
    force : bool
        Whether an earlier run may be replaced.

    Returns
    -------
    dict
        The result part of ``run.json``.

    Raises
    ------
    InputError
        If there is an earlier run by now, and not ``force``.
    RunError
        If it cannot be written; nothing is left behind then, and an earlier run is as it was.
    """
    refuse_existing(out, force)
    loss_start = outcome.history[0]["loss"] if outcome.loss_start is None else outcome.loss_start
    history = _with_suboptimality(outcome.history, loss_start, outcome.loss_optimum)
    resumed = outcome.resumed_from
    result = {
        **{name: history[-1][name] for name in ("loss", "suboptimality", "consensus_distance", "test_accuracy")},
        "loss_start": loss_start,
        "loss_optimum": outcome.loss_optimum,
        "rounds": [row["rounds"] for row in outcome.ranks],
        "wall_s": outcome.wall_s,
        "step_size": outcome.step_size,
        "momentum": outcome.momentum,
        "gradient_dissimilarity": outcome.gradient_dissimilarity,
        "stopped_by": outcome.stopped_by,
        "resumed_from": None if resumed is None else {"checkpoint": resumed.path.name, "rounds": resumed.rounds},
        "events_sha256": None if outcome.events is None else events_checksum(outcome.events),
    }
    if outcome.deaths:
        result |= {"deaths": [death.as_dict() for death in outcome.deaths], "lost": outcome.lost}
    document = {
        "schema_version": record_schema.VERSION,
        "config": to_dict(config),
        "environment": {**software(), **environment},
        "result": result,
    }
    try:
        with directories.written_whole(out) as fresh:
            (fresh / "run.json").write_text(json.dumps(document, indent=2) + "\n")
            _write_csv(fresh / "history.csv", history)
            _write_csv(fresh / "ranks.csv", _with_dead(outcome))
            np.save(fresh / "params.npy", outcome.stacked_params)
            for name, tables in (("events", outcome.events), ("timeline", outcome.timeline)):
                if tables is not None:
                    arrays: dict[str, Any] = {f"rank{rank}": table for rank, table in enumerate(tables)}
                    np.savez_compressed(fresh / f"{name}.npz", **arrays)
            if outcome.first_params is not None:
                np.save(fresh / FIRST_PARAMS, outcome.first_params)
            if resumed is not None:
                shutil.copytree(resumed.path, fresh / START)
    except OSError as error:
        raise RunError(
            f"The run directory {str(out)!r} cannot be written: {error.strerror or error}. Choose another --out."
        ) from None
    return result


def refuse_losses(outcome: Outcome, out: Path) -> None:
    """Refuse a recorded run that deaths have stopped.

    Raises
    ------
    RunError
        If data were lost with the dead, or the living cannot reach each other.
    """
    if outcome.stopped_by not in (LOST_SHARD, DISCONNECTED):
        return
    who = ranks_text([death.rank for death in outcome.deaths])
    if outcome.stopped_by == LOST_SHARD:
        text = (
            f"{who} died, and with that the last copies of {outcome.lost}. Go on from the last "
            "checkpoint with --resume; or start again with a higher placement.replication, or without these data: "
            "stop.on_lost_shard = 'continue'."
        )
    else:
        text = (
            f"{who} died, and the others are no connected graph any more: they would end in different parameters. "
            "Go on from the last checkpoint with --resume, or start again with a topology.kind of more edges, such as "
            "'exponential'."
        )
    raise RunError(f"{text[0].upper()}{text[1:]} The record of the run until then is in {out}.")


def refuse_worse(config: RunConfig, result: dict[str, Any], out: Path) -> None:
    """Refuse the result of a recorded run that is worse than no training, unless it was cut short.

    Raises
    ------
    RunError
        If the loss is higher than at the start.
    """
    if result["stopped_by"] not in ASKED_TO_STOP and not result["loss"] <= result["loss_start"]:
        advice = worse_than_nothing(None if has_own_steps(config) else result["step_size"])
        raise RunError(
            f"The run did not converge: the loss went from {result['loss_start']:.4g} to {result['loss']:.4g}. "
            f"{advice} The record is in {out}."
        )


def _with_dead(outcome: Outcome) -> Rows:
    """Return the rows of ``ranks.csv``: where ranks died, these too, with the round in which that was noticed."""
    if not outcome.deaths:
        return outcome.ranks
    alive = [{**row, "died": ""} for row in outcome.ranks]
    unknown = dict.fromkeys(alive[0], "")
    dead = [
        {**unknown, "rank": death.rank, "died": death.as_dict()["round"] or "at the end"} for death in outcome.deaths
    ]
    return sorted([*alive, *dead], key=lambda row: int(row["rank"]))


def _write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises
    ------
    InputError
        If it is none, or of a version that this goco does not know. Older ones are read.
    """
    try:
        run = json.loads((path / "run.json").read_text())
        run = record_schema.upgraded(run if isinstance(run, dict) else {}, str(path))
        for table in ("config", "environment", "result"):
            if not isinstance(run.get(table), dict):
                raise ValueError(f"run.json has no table {table}")
        with (path / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with (path / "ranks.csv").open(newline="") as file:
            rows_read = list(csv.DictReader(file))
            ranks = [{key: _number(value) for key, value in row.items()} for row in rows_read if not row.get("died")]
        history = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
        if not {"round", "loss"} <= set(history) or any(None in row.values() for row in rows):
            raise ValueError("history.csv is incomplete")
        for name in HISTORY:
            history.setdefault(name, np.full(len(rows), np.nan))
    except OSError as error:
        raise InputError(f"{str(path)!r} is not a run directory: {error.filename}: {error.strerror}.") from None
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}.") from None
    return RunRecord(path, run, history, ranks)


def read_params(path: Path) -> NDArray[np.float64]:
    """Read the parameters of every rank from a run directory, shape (n_ranks, n_params).

    Raises
    ------
    InputError
        If they are missing or damaged.
    """
    params: NDArray[np.float64] = _load(path / "params.npy", lambda file: np.load(file, allow_pickle=False))
    return params


def read_first_params(path: Path) -> NDArray[np.float64] | None:
    """Read everybody's first parameters from a run directory, shape (n_params,); None where they are zero.

    Raises
    ------
    InputError
        If they are damaged.
    """
    file = path / FIRST_PARAMS
    if not file.exists():
        return None
    params: NDArray[np.float64] = _load(file, lambda stream: np.load(stream, allow_pickle=False))
    return params


def read_tables(path: Path, name: str) -> list[NDArray[Any]]:
    """Read every rank's table of ``events`` or ``timeline`` from a run directory.

    Raises
    ------
    InputError
        If the run did not keep them, or they are damaged.
    """
    file = path / f"{name}.npz"
    if not file.exists():
        raise InputError(f"{str(path)!r} has no {name}: it was run with record.{name} = false, or simulated.")

    def read(file: BinaryIO) -> list[NDArray[Any]]:
        with np.load(file, allow_pickle=False) as tables:
            return [tables[f"rank{rank}"] for rank in range(len(tables.files))]

    return _load(file, read)


def _load(file: Path, read: Callable[[BinaryIO], T]) -> T:
    try:
        with file.open("rb") as stream:  # numpy leaves a damaged archive open
            return read(stream)
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # a damaged archive fails in a dozen ways
        raise InputError(f"{str(file)!r} is damaged: {error}.") from None


def events_checksum(tables: Sequence[NDArray[np.int32]]) -> str:
    """Return the SHA-256 of all ranks' event tables."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(repr(table.shape).encode())
        digest.update(np.ascontiguousarray(table, dtype="<i4").tobytes())
    return digest.hexdigest()


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _with_suboptimality(history: Rows, loss_start: float, loss_optimum: float | None) -> Rows:
    """Return the rows with a column ``suboptimality`` behind ``loss``."""

    def value(row: dict[str, Any]) -> float | None:
        if loss_optimum is None:
            return None
        return metrics.suboptimality(row["loss"], loss_start, loss_optimum)

    place = list(history[0]).index("loss") + 1
    return [
        dict([*list(row.items())[:place], ("suboptimality", value(row)), *list(row.items())[place:]]) for row in history
    ]
