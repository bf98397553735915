"""``goco info``: what goco finds here, and whether it is fit for a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goco_mpi import terminal
from goco_mpi.errors import InputError

if TYPE_CHECKING:
    from goco_mpi.doctor import Finding
    from goco_mpi.engine.session import Session


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.engine.session import Session

    with Session(guard=False) as session:
        if not options.check and (options.out is not None or options.ranks is not None):
            raise session.agreed(InputError("--out and --ranks are for the check alone. Add --check."))
        return _check(session, options) if options.check else _tell(session)


def _tell(session: Session) -> int:
    """Print what there is. Collective."""
    from goco_mpi.engine.session import LAUNCH
    from goco_mpi.software import software

    environment = {**software(), **session.environment()}
    del environment["command"]
    matches = LAUNCH.n_ranks in (None, session.size)
    environment["launcher_match"] = (
        "yes" if matches else f"NO: {LAUNCH.n_ranks} ranks were started and this process sees {session.size}"
    )
    if session.rank == 0 and (matches or LAUNCH.rank == 0):
        for name, value in environment.items():
            print(f"{name:>15}  {_summary(value)}")
    return 0 if matches else 2


def _summary(value: Any) -> str:
    """Write a list of one value a rank as counts, and a dict as words."""
    from collections import Counter

    if isinstance(value, list):
        return ", ".join(f"{item} ({count} ranks)" for item, count in Counter(map(str, value)).items())
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _check(session: Session, options: argparse.Namespace) -> int:
    """Examine the job and print what is found; return 1 if it is not fit. Collective."""
    from goco_mpi import doctor
    from goco_mpi.engine import doctor as engine
    from goco_mpi.engine.session import LAUNCH
    from goco_mpi.schema import StopConfig

    if LAUNCH.n_ranks not in (None, session.size) and LAUNCH.rank > 0:
        return 1  # as many jobs of one rank: one of them says so
    facts = engine.examine(session, options.out or Path("runs") / "run", options.ranks, StopConfig().margin_s)
    findings = None if facts is None else doctor.examine(facts)
    if findings is not None:
        _print(findings)
    fit = findings is None or all(finding.level != "problem" for finding in findings)
    return 0 if session.comm.bcast(fit) else 1


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "advice": "yellow", "problem": "bold red"}
    table = Table(header_style="bold")
    for title in ("what", "found", ""):
        table.add_column(title)
    for finding in findings:
        table.add_row(finding.what, Text(finding.found), Text(finding.level, style=style[finding.level]))
    console = terminal.console()
    console.print(table)
    for finding in findings:
        if finding.advice:
            console.print(Text(f"{finding.level}, {finding.what}: {finding.advice}"), soft_wrap=True)
