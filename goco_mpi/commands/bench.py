"""``goco bench``: measure on this machine."""

from __future__ import annotations

import argparse
import shlex


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi import bench, bench_peers

    mpiexec = shlex.split(options.mpiexec or bench.default_mpiexec())
    setup = bench.Setup(tuple(mpiexec), options.peers_dir or bench_peers.default_dir())
    bounds_hold = bench.run(options.names, setup, options.json, options.peers)
    return 1 if options.strict and not bounds_hold else 0
