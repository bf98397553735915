"""``goco plan``: which method, replication, graph and deadlines."""

from __future__ import annotations

import argparse
import sys

from goco_mpi.errors import InputError


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.config import read_config
    from goco_mpi.planning import plan
    from goco_mpi.planning.planner import Planner
    from goco_mpi.record import read_run
    from goco_mpi.simulation.calibration import calibrate

    def progress(words: str) -> None:
        if sys.stderr.isatty():
            print(f"trying {words}", file=sys.stderr, flush=True)

    if options.source.is_dir():
        if options.set:
            raise InputError("--set changes an experiment file, and a recorded run is what it is. Give its experiment.")
        found = calibrate(read_run(options.source))
        config, n_workers, cost = found.config, found.n_workers, found.cost
    else:
        config, n_workers, cost = read_config(options.source, options.set), 8, None
    if options.nodes is not None:
        n_workers = options.nodes
    made = Planner(config, n_workers, cost, options.gap, progress).plan()
    if options.json:
        print(plan.to_json(made))
    else:
        plan.print_plan(made)
    return 0
