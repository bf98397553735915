"""``goco sweep``: all members of a grid of experiments."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from goco_mpi.commands import launcher
from goco_mpi.errors import RunError, check_range


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.sweeps.file import RESULTS, read_sweep
    from goco_mpi.sweeps.member import write_member
    from goco_mpi.sweeps.running import run_sweep

    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.jobs is not None:
        check_range("--jobs", options.jobs, 1, 2**15)
        jobs = options.jobs
    sweep = read_sweep(options.sweep)
    file = Path(options.sweep).resolve()
    out = options.out or Path("runs") / (file.parent.name if file.stem == "sweep" else file.stem)
    if options.member is not None:
        print(write_member(sweep, out, options.member))
        return 0

    def say(line: str) -> None:
        if not options.quiet:
            print(line, flush=True)

    n_failed = run_sweep(sweep, out, jobs, launcher.words(options.mpiexec), say, options.collect)
    say(f"table in {out / RESULTS}; goco report {out} compares the variants")
    if n_failed:
        raise RunError(f"{n_failed} of {len(sweep.members)} members failed. Their reasons are in {out / RESULTS}.")
    return 0
