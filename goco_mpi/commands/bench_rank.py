"""What ``goco bench`` starts under mpiexec."""

from __future__ import annotations

import argparse


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    import json

    from goco_mpi.engine.session import Session  # first, as in run

    with Session() as session:
        from goco_mpi.engine import benchmarks, freezing, training

        functions = {**vars(benchmarks), **vars(training), "frozen": freezing.frozen, "recovery": freezing.recovery}
        samples = functions[options.function](session, **json.loads(options.options))
        if session.rank == 0:
            print(json.dumps(samples))
    return 0
