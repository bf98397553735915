"""The peers that ``goco bench --peers`` compares our exchange to, and the environment they run in.

Their programs are the scripts of ``goco_mpi/bench/peer_programs``, which import nothing of ours. Each gets a list of
(neighbours of each rank, doubles, rounds) as JSON, goes through a tenth of the rounds as a warm-up and then
through all of them, and prints the seconds a round of the slowest rank, for each case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from goco_mpi.core import topology
from goco_mpi.errors import InputError

PEERS = ("gloo", "disropt")
KINDS = ("ring", "exponential")
N_PARAMS = (1000, 100_000, 1_000_000)
CASES = tuple(f"{kind} {n_params}" for kind in KINDS for n_params in N_PARAMS)
MESSAGE_BYTES = 64 << 20
"""How much a rank sends for one case, within 10 to 400 rounds."""

# A pin without a local version takes a wheel for CPUs alone where the registry has one.
# disropt asks for solvers that its exchange does not use, and old ones: it comes alone.
REQUIREMENTS = ("torch==2.13.0", "numpy", "mpi4py", "mpich", "scipy", "dill", "autograd", "cvxopt")
ALONE = ("disropt==0.1.9",)
_MARK = "goco-peers.json"


def default_dir() -> Path:
    """Return where the environment is unless ``--peers-dir`` says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "goco_mpi" / "peers"


def environment(path: Path) -> Path:
    """Return the Python of the peers' environment; make it, once.

    Raises
    ------
    InputError
        If it cannot be made.
    """
    path = path.absolute()
    python = path / "bin" / "python"
    mark = path / _MARK
    contents = json.dumps({"python": sys.version.split()[0], "packages": [*REQUIREMENTS, *ALONE]})
    try:
        if python.exists() and mark.exists() and mark.read_text() == contents:
            return python
        print(f"making the peers' environment in {path} (once; torch is large) ...", file=sys.stderr, flush=True)
        _call(sys.executable, "-m", "venv", str(path))
        install = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _call(*install, *REQUIREMENTS)
        _call(*install, "--no-deps", *ALONE)
        mark.write_text(contents)
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"The peers' environment cannot be made in {str(path)!r}: {_cause(error)}. Name a directory to write to "
            "with --peers-dir, and have pip reach a registry with torch and disropt; or leave out the peers."
        ) from None
    return python


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _cause(error: Exception) -> str:
    """Return the last line that says what went wrong."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in f"{error.stdout}\n{error.stderr}".splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:") or "Error:" in line]
        return (errors or lines or [f"exit code {error.returncode}"])[-1].removeprefix("ERROR: ").rstrip(".")
    return str(error)


def sizes(n_ranks: int) -> list[tuple[str, int, int]]:
    """Return (graph, doubles, rounds) of every case, for our side."""
    found = []
    for kind in KINDS:
        degree = max(1, max(topology.build(kind, n_ranks).degrees))
        for n_params in N_PARAMS:
            found.append((kind, n_params, int(max(10, min(400, MESSAGE_BYTES // (8 * n_params * degree))))))
    return found


def command(peer: str, python: Path, n_ranks: int) -> list[str]:
    """Return the command that measures a peer in all cases, on ranks of this node."""
    cases = []
    for kind, n_params, rounds in sizes(n_ranks):
        graph = topology.build(kind, n_ranks)
        neighbors = [[int(j) for j in graph.neighbors(rank)] for rank in range(n_ranks)]
        cases.append((neighbors, n_params, rounds))
    script = str(Path(__file__).with_name("peer_programs") / f"{peer}_exchange.py")
    if peer == "gloo":
        launcher = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
        return [*launcher, script, json.dumps(cases)]
    return [str(python.with_name("mpiexec")), "-n", str(n_ranks), str(python), script, json.dumps(cases)]


def variables() -> dict[str, str]:
    """Return the environment variables of a peer: one thread a rank, as ours, and nothing else of this Python's."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return inherited | threads
