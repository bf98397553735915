"""``goco bench``: every figure a ratio to a raw limit, or to a peer, measured in the same run.

A figure is the median of repeats after a warm-up, with their spread. Bounds are what the
product aims at; they inform people and fail nobody, unless ``--strict`` asks for it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from goco_mpi.errors import InputError, RunError

N_RANKS = 8
REPEATS = 5


@dataclass(frozen=True)
class Member:
    """One thing to measure.

    Attributes
    ----------
    name, case : str
        What, and of which kind or size.
    bound : float or None
        What is aimed at.
    at_most : bool
        Whether the bound is an upper one.
    """

    name: str
    case: str
    bound: float | None = None
    at_most: bool = True


MEMBERS = (
    Member("exchange", "ring 1000", 2.0),
    Member("exchange", "ring 100000", 1.1),
    Member("exchange", "ring 1000000"),
    Member("exchange", "exponential 1000"),
    Member("exchange", "exponential 100000"),
    Member("isolation", "one rank 10 times slower", 0.95, at_most=False),
)


@dataclass(frozen=True)
class Figure:
    """A measured member; ``ok`` is None where there is no bound."""

    name: str
    case: str
    value: float
    unit: str
    bound: float | None
    ok: bool | None
    median: float
    min: float
    max: float
    repeats: int


def figure(member: Member, samples: Sequence[float]) -> Figure:
    """Turn the samples of one member into its figure.

    Examples
    --------
    >>> figure(Member("exchange", "ring 1000", 2.0), [1.5, 1.0, 9.0]).ok
    True
    """
    median = statistics.median(samples)
    ok = None if member.bound is None else (median <= member.bound if member.at_most else median >= member.bound)
    return Figure(
        member.name, member.case, median, "ratio", member.bound, ok, median, min(samples), max(samples), len(samples)
    )


def measure(member: Member, mpiexec: Sequence[str]) -> Figure:
    """Run one member under ``mpiexec`` and return its figure.

    Raises
    ------
    InputError
        If there is no such launcher.
    RunError
        If the measurement failed.
    """
    command = [*mpiexec, "-n", str(N_RANKS), sys.executable, "-m", "goco_mpi", "bench-rank"]
    try:
        done = subprocess.run([*command, member.name, member.case], stdout=subprocess.PIPE, text=True, timeout=600)
    except FileNotFoundError:
        raise InputError(f"--mpiexec {mpiexec[0]!r} does not exist. Name your MPI's launcher.") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"bench {member.name} ({member.case}) did not end within 600 s.") from None
    if done.returncode:
        raise RunError(f"bench {member.name} ({member.case}) failed with exit code {done.returncode}.")
    return figure(member, json.loads(done.stdout.splitlines()[-1]))


def samples_here(name: str, case: str) -> None:
    """Measure on this rank together with the others; rank 0 prints the samples. Collective."""
    from goco_mpi.engine import session as engine_session

    with engine_session.Session() as session:
        from goco_mpi.config import parse_config
        from goco_mpi.engine import benchmarks

        if name == "exchange":
            kind, n_params = case.split()
            samples = benchmarks.exchange(session, kind, int(n_params), REPEATS)
        else:
            config = parse_config(
                {
                    "rounds": 150,
                    "data": {"partition": "by_label", "standardize": True},
                    "placement": {"replication": 3},
                    "stragglers": {"kind": "slow", "ranks": [3], "factor": 10.0, "work_s": 0.01},
                    "record": {"every": 150},
                }
            )
            samples = benchmarks.isolation(session, config, REPEATS)
        if session.rank == 0:
            print(json.dumps(samples))


def default_mpiexec() -> str:
    """Return the launcher beside this Python, where an MPI wheel put it, or the one on the path."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else "mpiexec"


def run(names: Sequence[str], mpiexec: Sequence[str], as_json: bool) -> bool:
    """Measure and print the members of ``names`` (all, if empty).

    Returns
    -------
    bool
        Whether every bound holds.

    Raises
    ------
    InputError
        For a name that is no member.
    """
    known = {member.name for member in MEMBERS}
    unknown = set(names) - known
    if unknown:
        raise InputError(f"There is no bench member {min(unknown)!r}. Known: {', '.join(sorted(known))}.")
    figures = []
    for member in MEMBERS:
        if not names or member.name in names:
            figures.append(measure(member, mpiexec))
            if as_json:
                print(json.dumps(asdict(figures[-1])), flush=True)
    if not as_json:
        _print_table(figures)
    return all(found.ok is not False for found in figures)


def _print_table(figures: Sequence[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ours / raw limit; medians", header_style="bold")
    for title in ("figure", "case", "median", "min", "max", "repeats", "bound", ""):
        table.add_column(title)
    by_member = {(member.name, member.case): member for member in MEMBERS}
    for found in figures:
        sign = "<=" if by_member[found.name, found.case].at_most else ">="
        table.add_row(
            found.name,
            found.case,
            f"{found.median:.2f}",
            f"{found.min:.2f}",
            f"{found.max:.2f}",
            str(found.repeats),
            "-" if found.bound is None else f"{sign} {found.bound:g}",
            "" if found.ok is None else ("ok" if found.ok else "missed"),
        )
    Console().print(table)
