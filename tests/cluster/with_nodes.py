"""Run a command whose MPI jobs are to be on emulated nodes, one rank each, all of whose links are slow.

    python tests/cluster/with_nodes.py --latency 0.02 --mpiexec mpiexec -- COMMAND --mpiexec {mpiexec}

``{mpiexec}`` stands for the launcher with all that puts rank i on node i. As root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys

from nodes import OPEN_MPI, Nodes, NodesError


def main() -> int:
    """Run the command line; the exit code is the command's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of every message")
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
    try:
        with Nodes(options.nodes) as nodes:
            if options.latency:
                for node in range(options.nodes):
                    nodes.impair(node, delay_s=options.latency / 2.0)
            launcher = shlex.join(nodes.launcher(shlex.split(options.mpiexec)))
            command = [word.replace("{mpiexec}", launcher) for word in options.command]
            return subprocess.run(command, env={**os.environ, **OPEN_MPI, "OMP_NUM_THREADS": "1"}).returncode
    except NodesError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
