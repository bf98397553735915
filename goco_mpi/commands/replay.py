"""``goco replay``: compute runs once more from their events."""

from __future__ import annotations

import argparse

from goco_mpi.errors import RunError


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.record import read_run
    from goco_mpi.replay import TOLERANCE, replay

    agree = True
    for path in options.runs:
        found = replay(read_run(path))
        agree &= found.agrees
        worst = int(found.differences.argmax())
        print(
            f"{path}: {found.n_steps} steps of {len(found.differences)} ranks replayed; the largest difference is "
            f"{found.differences[worst]:.2g} (rank {worst}), {'within' if found.agrees else 'beyond'} "
            f"{found.tolerance:.2g}{', to which rounding may have grown' if found.tolerance > TOLERANCE else ''}"
        )
    if not agree:
        raise RunError(
            "A run and its replay differ: its events, its data or this version of goco are not the run's own."
        )
    return 0
