"""What ``goco bench`` measures.

To add a member, write a function in `goco_mpi.engine.benchmarks` and a row of `MEMBERS`; with a frozen rank in
`goco_mpi.engine.freezing`. Those that train are in `goco_mpi.bench.training`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from goco_mpi.bench import peers, training
from goco_mpi.bench.measuring import Member, Setup


def on_ranks(function: str, *, apart: bool = False, **options: Any) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` that calls a function of `goco_mpi.engine.benchmarks` (or `freezing`) on all ranks.

    The repeats are of one launch, or of a launch each if they are to be ``apart``.
    """

    def sample(setup: Setup) -> list[float]:
        repeats = 1 if apart else setup.repeats
        launches = range(setup.repeats // repeats)
        return [value for _ in launches for value in setup.call_on_ranks(function, repeats=repeats, **options)]

    return sample


def beyond_python(sample: Callable[[Setup], list[float]]) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` of memory, in MiB, less what a Python takes that does nothing."""
    command = [sys.executable, "-c", "from goco_mpi.engine.memory import peak_mib; print(peak_mib())"]

    def less(setup: Setup) -> list[float]:
        bare = float(setup.output(command))
        return [value - bare for value in sample(setup)]

    return less


def loaded(kind: str, n_rows: int, n_features: int) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` of `goco_mpi.bench.load.load`, in this process."""

    def sample(setup: Setup) -> list[float]:
        from goco_mpi.bench import load

        return load.load(setup.repeats, kind, n_rows, n_features)

    return sample


def computed(function: str, **options: Any) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` that calls a function of `goco_mpi.bench.gradient`, in this process."""

    def sample(setup: Setup) -> list[float]:
        from goco_mpi.bench import gradient

        samples: list[float] = getattr(gradient, function)(setup.repeats, **options)
        return samples

    return sample


def simulated(function: str, **options: int) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` that calls a function of `goco_mpi.bench.simulation`, in this process."""

    def sample(setup: Setup) -> list[float]:
        from goco_mpi.bench import simulation

        samples: list[float] = getattr(simulation, function)(setup.repeats, **options)
        return samples

    return sample


def startup(setup: Setup) -> list[float]:
    """Return the wall time of starting our ranks / bare mpi4py's, from the launch to the end of the job.

    Ours is `goco_mpi.engine.benchmarks.startup`, which says what is in it; bare is ``from mpi4py import
    MPI`` and a barrier. In turn, after one of each that is thrown away: it warms the file system's cache.
    """
    ours = setup.on_ranks("-m", "goco_mpi", "bench-rank", "startup", json.dumps({"repeats": 1}))
    bare = setup.on_ranks("-c", "from mpi4py import MPI; MPI.COMM_WORLD.Barrier()")

    def seconds(command: Sequence[str]) -> float:
        start = time.perf_counter()
        setup.output(command)
        return time.perf_counter() - start

    return [seconds(ours) / seconds(bare) for _ in range(setup.repeats + 1)][1:]


def against(peer: str, case: str) -> Callable[[Setup], list[float]]:
    """Return a ``sample`` of a peer's seconds a round / ours; all cases of a peer are measured together."""
    return lambda setup: _compare(peer, setup)[case]


@functools.cache
def _compare(peer: str, setup: Setup) -> dict[str, list[float]]:
    """Launch ours and the peer's program in turn, each for all cases; return the ratios of each case."""
    python = peers.environment(setup.peers_dir)
    peers_command = peers.command(peer, python, setup.n_ranks)
    cases = peers.sizes(setup.n_ranks)
    ratios: dict[str, list[float]] = {case: [] for case in peers.CASES}
    for _ in range(setup.repeats):
        ours = setup.call_on_ranks("exchange_seconds", repeats=1, cases=cases)
        theirs = setup.found(peers_command, peers.variables())
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
    *training.MEMBERS,
    *(
        Member("peers", f"{peer} {case}", against(peer, case), 4.0, at_most=False)
        for peer in peers.PEERS
        for case in peers.CASES
    ),
)
ON_REQUEST = {"peers", "train-2gb"}
"""Measured only where asked for: peers need an environment of their own, 2 GB take minutes and 8 GB of memory."""
