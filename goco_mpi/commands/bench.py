"""``goco bench``: measure on this machine."""

from __future__ import annotations

import argparse

from goco_mpi.commands import launcher


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.bench import peers
    from goco_mpi.bench.measuring import Setup
    from goco_mpi.bench.run import run as measure_and_print

    setup = Setup(tuple(launcher.words(options.mpiexec)), options.peers_dir or peers.default_dir())
    bounds_hold = measure_and_print(options.names, setup, options.json, options.peers)
    return 1 if options.strict and not bounds_hold else 0
