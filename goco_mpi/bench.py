"""``goco bench``: figures measured against a raw limit, a promise, or a peer, in one and the same run.

A figure is the median of repeats with their spread. Bounds are what the product aims at;
they inform people and fail nobody, unless ``--strict`` asks for it.

To add a member, write a function in `goco_mpi.engine.benchmarks` and a row of `MEMBERS`; with a frozen rank in
`goco_mpi.engine.freezing`. Those that train are in `goco_mpi.bench_training`.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from goco_mpi import bench_peers, bench_training
from goco_mpi.errors import InputError, RunError

N_RANKS = 8
REPEATS = 5
WIDTH = 180
"""Columns of a table in a log or a pipe."""
LIMIT_S = 600.0
"""How long one launch may take."""


@dataclass(frozen=True)
class Setup:
    """What members are measured with.

    Attributes
    ----------
    mpiexec : tuple of str
        The launcher, and what else its command begins with.
    peers_dir : Path
        Where the peers' environment is, or is to be made.
    """

    mpiexec: tuple[str, ...]
    peers_dir: Path

    def on_ranks(self, *arguments: str) -> str:
        """Run this Python on all ranks, and return the last line that is printed."""
        return output(_on_ranks(self, *arguments)).splitlines()[-1]

    def alone(self, *arguments: str) -> str:
        """Run this Python once, and return the last line that it prints."""
        return output([sys.executable, *arguments]).splitlines()[-1]


@dataclass(frozen=True)
class Member:
    """One thing to measure.

    Attributes
    ----------
    name, case : str
        What, and of which kind or size.
    sample : callable (Setup) -> list of float
        Measures it: one sample a repeat.
    bound : float or None
        What is aimed at.
    at_most : bool
        Whether the bound is an upper one.
    unit : str
    """

    name: str
    case: str
    sample: Callable[[Setup], list[float]]
    bound: float | None = None
    at_most: bool = True
    unit: str = "ratio"


def on_ranks(function: str, *, apart: bool = False, **options: Any) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` that calls a function of `goco_mpi.engine.benchmarks` (or `freezing`) on all ranks.

    The repeats are of one launch, or of a launch each if they are to be ``apart``.
    """

    def sample(setup: Setup) -> list[float]:
        repeats = 1 if apart else REPEATS
        command = _on_ranks(
            setup, "-m", "goco_mpi", "bench-rank", function, json.dumps({"repeats": repeats, **options})
        )
        return [value for _ in range(REPEATS // repeats) for value in json.loads(output(command).splitlines()[-1])]

    return sample


def beyond_python(sample: Callable[[Setup], list[float]]) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` of memory, in MiB, less what a Python takes that does nothing."""
    command = [sys.executable, "-c", "from goco_mpi.engine.memory import peak_mib; print(peak_mib())"]

    def less(setup: Setup) -> list[float]:
        bare = float(output(command))
        return [value - bare for value in sample(setup)]

    return less


def loaded(kind: str, n_rows: int, n_features: int) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` of `goco_mpi.bench_load.load`, in this process."""

    def sample(setup: Setup) -> list[float]:
        from goco_mpi import bench_load

        return bench_load.load(REPEATS, kind, n_rows, n_features)

    return sample


def computed(function: str, **options: Any) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` that calls a function of `goco_mpi.bench_gradient`, in this process."""

    def sample(setup: Setup) -> list[float]:
        from goco_mpi import bench_gradient

        samples: list[float] = getattr(bench_gradient, function)(REPEATS, **options)
        return samples

    return sample


def simulated(function: str, **options: int) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` that calls a function of `goco_mpi.bench_simulation`, in this process."""

    def sample(setup: Setup) -> list[float]:
        from goco_mpi import bench_simulation

        samples: list[float] = getattr(bench_simulation, function)(REPEATS, **options)
        return samples

    return sample


def startup(setup: Setup) -> list[float]:
    """Return the wall time of starting our ranks / bare mpi4py's, from the launch to the end of the job.

    Ours is `goco_mpi.engine.benchmarks.startup`, which says what is in it; bare is ``from mpi4py import
    MPI`` and a barrier. In turn, after one of each that is thrown away: it warms the file system's cache.
    """
    ours = _on_ranks(setup, "-m", "goco_mpi", "bench-rank", "startup", json.dumps({"repeats": 1}))
    bare = _on_ranks(setup, "-c", "from mpi4py import MPI; MPI.COMM_WORLD.Barrier()")

    def seconds(command: Sequence[str]) -> float:
        start = time.perf_counter()
        output(command)
        return time.perf_counter() - start

    return [seconds(ours) / seconds(bare) for _ in range(REPEATS + 1)][1:]


def against(peer: str, case: str) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` of a peer's seconds a round / ours; all cases of a peer are measured together."""
    return lambda setup: _compare(peer, setup)[case]


@functools.cache
def _compare(peer: str, setup: Setup) -> dict[str, list[float]]:
    """Launch ours and the peer's program in turn, each for all cases; return the ratios of each case."""
    python = bench_peers.environment(setup.peers_dir)
    peers_command = bench_peers.command(peer, python, N_RANKS)
    options = json.dumps({"repeats": 1, "cases": bench_peers.sizes(N_RANKS)})
    our_command = _on_ranks(setup, "-m", "goco_mpi", "bench-rank", "exchange_seconds", options)
    ratios: dict[str, list[float]] = {case: [] for case in bench_peers.CASES}
    for _ in range(REPEATS):
        ours = json.loads(output(our_command).splitlines()[-1])
        theirs = json.loads(output(peers_command, bench_peers.variables()).splitlines()[-1])
        for case, our_s, their_s in zip(ratios, ours, theirs, strict=True):
            ratios[case].append(their_s / our_s)
    return ratios


def _exchange(kind: str, n_params: int, bound: float | None = None) -> Member:
    return Member("exchange", f"{kind} {n_params}", on_ranks("exchange", kind=kind, n_params=n_params), bound)


MEMBERS = (
    _exchange("ring", 1000, 2.0),
    _exchange("ring", 100_000, 1.1),
    _exchange("ring", 1_000_000),
    _exchange("exponential", 1000),
    _exchange("exponential", 100_000),
    _exchange("exponential", 1_000_000),
    Member(
        "isolation",
        "one rank 10 times slower",
        on_ranks("isolation", rank=3, factor=10.0, rounds=150),
        0.95,
        at_most=False,
    ),
    Member("isolation", "rank frozen for 5 s", on_ranks("frozen", rank=3, frozen_s=5.0), 0.2, unit="s"),
    Member(
        "memory",
        "rounds 200 to 2000, one rank 10 times slower",
        on_ranks("memory", apart=True, rank=3, factor=10.0, from_round=200, rounds=2000),
        2.0,
        unit="MiB",
    ),
    Member(
        "memory",
        "rank over bare Python, its shards and vectors",
        beyond_python(on_ranks("over_shards", apart=True, n_samples=32_000, n_features=500, rounds=20)),
        60.0,
        unit="MiB",
    ),
    Member("gradient", "dense, bytes/s to reading's", computed("dense", against="reading"), 0.8, at_most=False),
    Member(
        "gradient", "dense, numpy's two products to it", computed("dense", against="two_products"), 1.5, at_most=False
    ),
    Member("gradient", "dense, float64 to float32", computed("dense", against="float64", dtype="float32")),
    *(
        Member(
            "gradient",
            f"CSR, {rows}, {kind}, scipy's to it",
            computed("csr", kind=kind, **options),
            bound,
            at_most=False,
        )
        for rows, options, bound in (
            ("like a9a", {}, 1.2),
            ("20 times a9a", {"times": 20}, 1.2),
            ("any values", {"ones": False}, None),
        )
        for kind in ("least_squares", "logistic")
    ),
    Member("gradient", "coded over 3 shards to one shard", computed("coded", n_shards=3), 1.05),
    Member("load", "shard store, to a bare read", loaded("store", 20_000, 500), 2.5),
    Member("load", ".npy, to a bare read", loaded("npy", 20_000, 500), 2.5),
    *([Member("load", "HDF5, to a bare read", loaded("hdf5", 20_000, 500), 3.5)] if find_spec("h5py") else []),
    Member("load", "svmlight like a9a, to scikit-learn", loaded("svmlight", 32_561, 123), 2.5),
    Member("startup", "ours to bare mpi4py", startup),
    Member("recovery", "rank frozen for 1 s", on_ranks("recovery", rank=3, frozen_s=1.0), 5.0, unit="rounds"),
    *(
        Member("simulate", f"1024 workers of {n} rows, to bare", simulated("overhead", n_workers=1024, n_rows=n), 1.5)
        for n in (24, 96)
    ),
    Member(
        "simulate",
        "a worker of 16384 to one of 1024",
        simulated("growth", n_workers=16384, than=1024, n_rows=96),
        1.5,
    ),
    *(Member("train", *row) for row in bench_training.ROWS),
    *(
        Member("peers", f"{peer} {case}", against(peer, case), 4.0, at_most=False)
        for peer in bench_peers.PEERS
        for case in bench_peers.CASES
    ),
)
"""Those named ``peers`` are measured only where they are asked for: they need an environment of their own."""


@dataclass(frozen=True)
class Figure:
    """A measured member; ``ok`` is None where there is no bound."""

    name: str
    case: str
    value: float
    unit: str
    bound: float | None
    ok: bool | None
    median: float
    min: float
    max: float
    repeats: int


def figure(member: Member, samples: Sequence[float]) -> Figure:
    """Turn the samples of one member into its figure.

    Examples
    --------
    >>> figure(Member("exchange", "ring 1000", on_ranks("exchange"), 2.0), [1.5, 1.0, 9.0]).ok
    True
    """
    median = statistics.median(samples)
    ok = None if member.bound is None else (median <= member.bound if member.at_most else median >= member.bound)
    return Figure(
        member.name,
        member.case,
        median,
        member.unit,
        member.bound,
        ok,
        median,
        min(samples),
        max(samples),
        len(samples),
    )


def measure(member: Member, setup: Setup) -> Figure:
    """Measure one member.

    Raises
    ------
    InputError
        If there is no such launcher, or the peers' environment cannot be made.
    RunError
        If the measurement failed.
    """
    what = f"bench {member.name} ({member.case})"
    try:
        return figure(member, member.sample(setup))
    except FileNotFoundError as error:
        raise InputError(f"--mpiexec {error.filename!r} does not exist. Name your MPI's launcher.") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{what} did not end within {LIMIT_S:g} s.") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"{what} failed with exit code {error.returncode}.") from None


def output(command: Sequence[str], variables: dict[str, str] | None = None) -> str:
    """Run a command and return what it prints.

    Raises
    ------
    FileNotFoundError, subprocess.TimeoutExpired, subprocess.CalledProcessError
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        try:
            printed, _ = process.communicate(timeout=LIMIT_S)
        except BaseException:
            process.terminate()  # a launcher that is killed would leave its ranks behind
            try:
                process.wait(timeout=20.0)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return printed


def _on_ranks(setup: Setup, *arguments: str) -> list[str]:
    """Return the command that starts this Python on all ranks."""
    return [*setup.mpiexec, "-n", str(N_RANKS), sys.executable, *arguments]


def default_mpiexec() -> str:
    """Return the launcher beside this Python, where an MPI wheel put it, or the one on the path."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else "mpiexec"


def run(names: Sequence[str], setup: Setup, as_json: bool, peers: bool = False) -> bool:
    """Measure and print the members of ``names`` (all but peers, if empty), and ``peers`` beside them.

    Returns
    -------
    bool
        Whether every bound holds.

    Raises
    ------
    InputError
        For a name that is no member, and as `measure`.
    """
    known = dict.fromkeys(member.name for member in MEMBERS)
    unknown = set(names) - set(known)
    if unknown:
        raise InputError(f"There is no bench member {min(unknown)!r}. Known: {', '.join(known)}.")
    wanted = set(names) or set(known) - {"peers"}
    if peers:
        wanted.add("peers")
    if "peers" in wanted:
        bench_peers.environment(setup.peers_dir)  # before anything is measured: it may fail
    chosen = [member for member in MEMBERS if member.name in wanted]
    figures = []
    for member in chosen:
        figures.append(measure(member, setup))
        if as_json:
            print(json.dumps(asdict(figures[-1])), flush=True)
    if not as_json:
        _print_table(chosen, figures)
    return all(found.ok is not False for found in figures)


def _print_table(members: Sequence[Member], figures: Sequence[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="medians; a ratio is ours / raw limit, a peer's is theirs / ours", header_style="bold")
    for title in ("figure", "case", "median", "min", "max", "unit", "repeats", "bound", ""):
        table.add_column(title)
    for member, found in zip(members, figures, strict=True):
        table.add_row(
            found.name,
            found.case,
            f"{found.median:.2f}",
            f"{found.min:.2f}",
            f"{found.max:.2f}",
            found.unit,
            str(found.repeats),
            "-" if found.bound is None else f"{'<=' if member.at_most else '>='} {found.bound:g}",
            "" if found.ok is None else ("ok" if found.ok else "missed"),
        )
    # Where there is no terminal there is no width to fit into either.
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(table)
