"""``goco info``: what goco finds here."""

from __future__ import annotations

import argparse
from typing import Any


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from collections import Counter

    from goco_mpi.engine.session import LAUNCH, Session
    from goco_mpi.record import software

    def summary(value: Any) -> str:
        """Write a list of one value a rank as counts, and a dict as words."""
        if isinstance(value, list):
            return ", ".join(f"{item} ({count} ranks)" for item, count in Counter(map(str, value)).items())
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    with Session(guard=False) as session:
        environment = {**software(), **session.environment()}
        del environment["command"]
        matches = LAUNCH.n_ranks in (None, session.size)
        environment["launcher_match"] = (
            "yes" if matches else f"NO: {LAUNCH.n_ranks} ranks were started and this process sees {session.size}"
        )
        if session.rank == 0 and (matches or LAUNCH.rank == 0):
            for name, value in environment.items():
                print(f"{name:>15}  {summary(value)}")
    return 0 if matches else 2
