"""A recorded run as a trace for Perfetto or chrome://tracing: what each rank did when.

References
----------
"Trace Event Format", the JSON that Chrome's tracing reads; https://ui.perfetto.dev opens it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import parse_config
from goco_mpi.core.events import NONE, Events
from goco_mpi.core.topology import Topology
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.record import RunRecord, read_tables

OFFERED, WAITED, MIXED = range(3)
"""Columns of a rank's table of times; then one for each neighbour's newest arrival, then one for suspects."""


def trace(run: RunRecord) -> dict[str, Any]:
    """Return the trace of a run: one row a rank, messages that were used as arrows.

    Raises
    ------
    InputError
        If the run was made without ``record.timeline`` or ``record.events``.
    """
    times = read_tables(run.path, "timeline")
    topology = lay_out(parse_config(run.run["config"]), len(times)).topology
    if run.run["config"]["method"]["kind"] == "allreduce":
        topology = Topology(len(times), ())  # its messages are MPI's own
    events = [
        Events(table, len(topology.neighbors(rank))) for rank, table in enumerate(read_tables(run.path, "events"))
    ]
    start = min((float(table[0, OFFERED]) for table in times if len(table)), default=0.0)
    start -= max((float(row["compute_s"]) / max(row["rounds"], 1.0) for row in run.ranks), default=0.0)
    hosts = run.run["environment"]["hosts"]
    # Of a run that went on from a checkpoint the tables begin there, and its steps are counted on.
    first_steps = [int(row["rounds"]) - len(table) for row, table in zip(run.ranks, times, strict=True)]
    found: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": f"goco run {run.path.name}"}}
    ]
    for rank, table in enumerate(times):
        name = {"name": f"rank {rank} ({hosts[rank]})"}
        found.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": name})
        found.extend(_slices(rank, table, events[rank], topology.neighbors(rank), first_steps[rank], start))
    found.extend(_arrows(times, events, topology, first_steps, start))
    return {"traceEvents": found, "displayTimeUnit": "ms"}


def write(run: RunRecord, path: Path) -> None:
    """Write the trace of a run as JSON.

    Raises
    ------
    InputError
        As `trace`, or if the file cannot be written.
    """
    text = json.dumps(trace(run), separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise InputError(f"--timeline {str(path)!r} cannot be written: {error.strerror}.") from None


def _slices(
    rank: int, times: NDArray[np.float64], events: Events, neighbors: tuple[int, ...], first_step: int, start: float
) -> Iterator[dict[str, Any]]:
    """Yield what a rank did: compute up to the offer, wait, mix."""
    degree = len(neighbors)
    before = start
    for step, row in enumerate(times):
        offered, waited, mixed = (float(t) for t in row[:3])
        round_, point = int(events.rounds[step]), int(events.points[step])
        suspects = [j for j, suspect in zip(neighbors, row[3 + degree :], strict=True) if suspect]
        used = {str(j): int(s) for j, s in zip(neighbors, events.used[step], strict=True) if s != NONE}
        details = {"round": round_, "step": first_step + step}
        yield _slice("compute", rank, before, offered, start, {**details, "gradient taken at step": point})
        yield _slice("wait", rank, offered, waited, start, {**details, "suspects": suspects})
        yield _slice("mix", rank, waited, mixed, start, {**details, "steps used of ranks": used})
        before = mixed


def _slice(name: str, rank: int, begin: float, end: float, start: float, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": name,
        "pid": 0,
        "tid": rank,
        "ts": (ts := _microseconds(begin, start)),
        # Of the rounded ends: Perfetto drops slices that overlap by as little as the rounding.
        "dur": max(round(_microseconds(end, start) - ts, 1), 0.0),
        "args": details,
    }


def _arrows(
    times: list[NDArray[np.float64]],
    events: list[Events],
    topology: Topology,
    first_steps: list[int],
    start: float,
) -> Iterator[dict[str, Any]]:
    """Yield an arrow for every vector that was mixed, from when it was offered to when it arrived."""
    number = 0
    for rank, table in enumerate(events):
        last_used = dict.fromkeys(topology.neighbors(rank), NONE)
        for step, row in enumerate(times[rank]):
            for place, source in enumerate(topology.neighbors(rank)):
                sent = int(table.used[step, place])
                # One that is mixed again makes no arrow, nor one without times: the goodbye, or of before a resumption.
                row_sent = sent - first_steps[source]
                if sent in (NONE, last_used[source]) or not 0 <= row_sent < len(times[source]):
                    continue
                last_used[source] = sent
                number += 1
                arrow = {"name": "message", "cat": "message", "pid": 0, "id": number}
                offered = _microseconds(float(times[source][row_sent, OFFERED]), start)
                yield {**arrow, "ph": "s", "tid": source, "ts": offered}
                yield {**arrow, "ph": "f", "bp": "e", "tid": rank, "ts": _microseconds(float(row[3 + place]), start)}


def _microseconds(time_s: float, start: float) -> float:
    return round((time_s - start) * 1e6, 1)
