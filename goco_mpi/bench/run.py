"""``goco bench``: measure some members, or all, and print what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from goco_mpi import terminal
from goco_mpi.bench import peers as peer_programs
from goco_mpi.bench.measuring import Figure, Member, Setup, measure
from goco_mpi.bench.members import MEMBERS, ON_REQUEST
from goco_mpi.errors import InputError


def run(names: Sequence[str], setup: Setup, as_json: bool, peers: bool = False) -> bool:
    """Measure and print the members of ``names`` (all but those on request, if empty), and ``peers`` beside them.

    Returns
    -------
    bool
        Whether every bound holds.

    Raises
    ------
    InputError
        For a name that is no member, and as `measure`.
    """
    known = dict.fromkeys(member.name for member in MEMBERS)
    unknown = set(names) - set(known)
    if unknown:
        raise InputError(f"There is no bench member {min(unknown)!r}. Known: {', '.join(known)}.")
    wanted = set(names) or set(known) - ON_REQUEST
    if peers:
        wanted.add("peers")
    if "peers" in wanted:
        peer_programs.environment(setup.peers_dir)  # before anything is measured: it may fail
    chosen = [member for member in MEMBERS if member.name in wanted]
    figures = []
    for member in chosen:
        figures.append(measure(member, setup))
        if as_json:
            print(json.dumps(asdict(figures[-1])), flush=True)
    if not as_json:
        _print_table(chosen, figures)
    return all(found.ok is not False for found in figures)


def _print_table(members: Sequence[Member], figures: Sequence[Figure]) -> None:
    from rich.table import Table

    table = Table(title="medians; a ratio is ours / raw limit, a peer's is theirs / ours", header_style="bold")
    for title in ("figure", "case", "median", "min", "max", "unit", "repeats", "bound", ""):
        table.add_column(title)
    for member, found in zip(members, figures, strict=True):
        table.add_row(
            found.name,
            found.case,
            f"{found.median:.2f}",
            f"{found.min:.2f}",
            f"{found.max:.2f}",
            found.unit,
            str(found.repeats),
            "-" if found.bound is None else f"{'<=' if member.at_most else '>='} {found.bound:g}",
            "" if found.ok is None else ("ok" if found.ok else "missed"),
        )
    terminal.console(width=180).print(table)
