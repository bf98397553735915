"""``goco simulate``: the same experiment in one process."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from goco_mpi.commands import experiments
from goco_mpi.errors import check_range

if TYPE_CHECKING:
    from goco_mpi.outcome import Outcome
    from goco_mpi.progress import Progress
    from goco_mpi.schema import RunConfig


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.progress import Progress
    from goco_mpi.simulation.rounds import simulate_experiment

    check_range("--workers", options.workers, 1, 2**31)
    config, out = experiments.prepare(options)
    environment = {"simulated": True, "n_ranks": options.workers}
    with Progress(config.rounds, options.quiet) as progress:
        if options.time:
            outcome, environment["simulator"] = _simulate_in_time(config, options.workers, progress)
        else:
            outcome = simulate_experiment(config, options.workers, progress)
    experiments.finish(options, out, config, outcome, environment)
    if options.time and not options.quiet:
        print(
            "simulated {rounds} rounds of workers in {seconds:.1f} s: {rate:.0f} a second".format(
                **environment["simulator"]
            )
        )
    return 0


def _simulate_in_time(config: RunConfig, n_workers: int, progress: Progress) -> tuple[Outcome, dict[str, Any]]:
    """Return the outcome in simulated seconds, and how quickly it was simulated."""
    import time

    from goco_mpi.simulation.seconds import simulate_in_time

    start = time.perf_counter()
    found = simulate_in_time(config, n_workers, progress)
    seconds = time.perf_counter() - start
    n_rounds = int(sum(row["rounds"] for row in found.outcome.ranks))
    return found.outcome, {
        "rounds": n_rounds,
        "events": found.n_events,
        "seconds": seconds,
        "rate": n_rounds / seconds,
    }
