"""``goco bench``: measure on this machine."""

from __future__ import annotations

import argparse
import shlex


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.bench import peers
    from goco_mpi.bench.measuring import Setup, default_mpiexec
    from goco_mpi.bench.run import run as measure_and_print

    mpiexec = shlex.split(options.mpiexec or default_mpiexec())
    setup = Setup(tuple(mpiexec), options.peers_dir or peers.default_dir())
    bounds_hold = measure_and_print(options.names, setup, options.json, options.peers)
    return 1 if options.strict and not bounds_hold else 0
