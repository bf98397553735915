"""What the facts about a job say: is it fit for a run, and what to do about it if not. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "advice", "problem"]

COARSE_TICK_S = 1e-4
"""Deadlines are fractions of a millisecond: a clock that moves in larger steps is of no use."""
LARGE_OFFSET_S = 5.0
"""Clocks of nodes this far apart make limits of the scheduler arrive early or late."""
SLOW_LINK_S = 2e-4
"""Between nodes an interconnect takes a few microseconds, and plain Ethernet less than this."""
OUTLIER = 5.0
"""A link this many times slower than the median one is worth a look."""


@dataclass(frozen=True)
class RankFacts:
    """What one rank knows of itself.

    Attributes
    ----------
    host : str
    ranks_on_node : int
        As MPI counts those that share its memory.
    threads : int
        Of its linear algebra.
    cores, node_cores : int
        It may run on, and there are.
    software, mpi : str
        Versions.
    tick_s : float
        Smallest step of its clock.
    wall_offset_s : float
        How far its calendar clock is ahead of rank 0's.
    """

    host: str
    ranks_on_node: int
    threads: int
    cores: int
    node_cores: int
    software: str
    mpi: str
    tick_s: float
    wall_offset_s: float


@dataclass(frozen=True)
class Link:
    """What was measured between two ranks, while all others measured too: one way.

    Attributes
    ----------
    ranks : tuple of int
    latency_s : float
        Of a message of one number.
    bytes_per_s : float
        In a message of 1 MiB.
    """

    ranks: tuple[int, int]
    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Facts:
    """What the ranks of a job have found together.

    Attributes
    ----------
    ranks : sequence of RankFacts
    launcher : str
    launched : int or None
        Ranks that the launcher says it started.
    expected : int or None
        Ranks that the user asked for.
    outlives : bool or None
        Whether the job goes on when a rank dies; None where MPI could, and was not started for it.
    place : str
        Directory in which a run directory would be.
    refusal : str
        Why rank 0 cannot write there; empty if it can.
    blind : sequence of str
        Hosts that did not see what rank 0 wrote there, or cannot write.
    batch : bool
        Whether this is a scheduler's job.
    left_s : float or None
        Seconds until the scheduler ends the job, where it says.
    margin_s : float
        How long before that a run stops.
    links : sequence of Link
        Along the ring of ranks.
    """

    ranks: Sequence[RankFacts]
    launcher: str
    launched: int | None
    expected: int | None
    outlives: bool | None
    place: str
    refusal: str
    blind: Sequence[str]
    batch: bool
    left_s: float | None
    margin_s: float
    links: Sequence[Link]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table, with the way out where there is need of one."""

    what: str
    found: str
    level: Level = "ok"
    advice: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Return what the facts say, a finding for each thing that was looked at.

    Examples
    --------
    >>> rank = RankFacts("node1", 1, 4, 4, 4, "goco_mpi 0.1.0", "MPICH 5.0", 1e-7, 0.0)
    >>> facts = Facts([rank], "srun", 4, None, False, "/scratch", "", [], False, None, 120.0, [])
    >>> [finding.what for finding in examine(facts) if finding.level == "problem"]
    ['world size']
    """
    return [finding for check in CHECKS for finding in check(facts)]


def _world(facts: Facts) -> Iterator[Finding]:
    size = len(facts.ranks)
    found = f"{size} rank{'s' * (size > 1)}, launcher: {facts.launcher}"
    if facts.launched not in (None, size):
        yield Finding(
            "world size",
            f"{facts.launched} ranks were started, and each of them is alone",
            "problem",
            f"The launcher ({facts.launcher}) does not belong to the MPI library in use ({facts.ranks[0].mpi}). Use "
            "that library's own mpiexec, or under Slurm a fitting srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI).",
        )
    elif facts.expected not in (None, size):
        advice = f"--ranks asks for {facts.expected}. Start as many."
        yield Finding("world size", found, "problem", advice)
    else:
        yield Finding("world size", found)


def _nodes(facts: Facts) -> Iterator[Finding]:
    n_nodes = round(sum(1 / rank.ranks_on_node for rank in facts.ranks))
    most = max(rank.ranks_on_node for rank in facts.ranks)
    found = f"{n_nodes} node{'s' * (n_nodes > 1)}, {_span([rank.ranks_on_node for rank in facts.ranks])} a node"
    if n_nodes > 1 and most > 1:
        yield Finding(
            "ranks on nodes",
            found,
            "advice",
            "Ranks of one node are slow and die together, and copies of a shard among them help little: start one rank "
            "a node (srun --ntasks-per-node=1, mpiexec -ppn 1 or --map-by ppr:1:node) and leave it all cores.",
        )
    else:
        yield Finding("ranks on nodes", found)


def _cores(facts: Facts) -> Iterator[Finding]:
    found = (
        f"{_span([rank.threads for rank in facts.ranks])} threads a rank on "
        f"{_span([rank.cores for rank in facts.ranks])} of {_span([rank.node_cores for rank in facts.ranks])} cores"
    )
    crowded = [rank for rank in facts.ranks if rank.ranks_on_node > rank.node_cores]
    too_many = [
        rank
        for rank in facts.ranks
        if rank.threads > 1 and rank.threads > min(rank.cores, rank.node_cores // rank.ranks_on_node)
    ]
    idle = [rank for rank in facts.ranks if 2 * rank.ranks_on_node * rank.threads <= rank.node_cores]
    if too_many:
        yield Finding(
            "threads",
            found,
            "problem",
            f"On {too_many[0].host} there are more threads than cores for them, which was measured seven times slower: "
            "leave OMP_NUM_THREADS out, or lower it.",
        )
    elif crowded:
        yield Finding(
            "threads",
            found,
            "advice",
            f"{crowded[0].ranks_on_node} ranks of {crowded[0].host} take turns on its {crowded[0].node_cores} cores: "
            "good for trying things out, and its times mean little.",
        )
    elif idle:
        yield Finding(
            "threads",
            found,
            "advice",
            f"On {idle[0].host} half of the cores or more have nothing to do: give ranks more of them (srun "
            "--cpus-per-task, mpiexec --bind-to none) and leave OMP_NUM_THREADS out.",
        )
    else:
        yield Finding("threads", found)


def _software(facts: Facts) -> Iterator[Finding]:
    for what, versions in (
        ("MPI", {rank.mpi: rank.host for rank in facts.ranks}),
        ("software", {rank.software: rank.host for rank in facts.ranks}),
    ):
        if len(versions) > 1:
            found = "; ".join(f"{version} (on {host})" for version, host in versions.items())
            yield Finding(what, found, "problem", "Nodes differ: use one environment that all of them see.")
        else:
            yield Finding(what, next(iter(versions)))


def _death(facts: Facts) -> Iterator[Finding]:
    if facts.outlives is None:
        yield Finding(
            "death of a rank",
            "ends the job, though this MPI could go on",
            "advice",
            "Start with mpiexec --with-ft ulfm for a job that outlives its ranks.",
        )
    else:
        yield Finding("death of a rank", "the others go on (ULFM)" if facts.outlives else "ends the job (no ULFM)")


def _directory(facts: Facts) -> Iterator[Finding]:
    if facts.refusal:
        advice = "Choose another directory with --out."
        yield Finding("run directory", f"{facts.place}: {facts.refusal}", "problem", advice)
    elif facts.blind:
        yield Finding(
            "run directory",
            f"{facts.place}: {len(facts.blind)} of {len({rank.host for rank in facts.ranks})} nodes do not share it: "
            + ", ".join(facts.blind),
            "problem",
            "Checkpoints need a directory that all nodes see and write to: choose a shared file system with --out.",
        )
    else:
        yield Finding("run directory", f"{facts.place}: all nodes see it")


def _clocks(facts: Facts) -> Iterator[Finding]:
    tick = max(rank.tick_s for rank in facts.ranks)
    if tick > COARSE_TICK_S:
        advice = "Deadlines are shorter than that: set deadline.gossip_s and deadline.compute_s by hand."
        yield Finding("clock", f"moves in steps of {_seconds(tick)}", "problem", advice)
    else:
        yield Finding("clock", f"moves in steps of {_seconds(tick)}")
    worst = max(facts.ranks, key=lambda rank: abs(rank.wall_offset_s))
    if abs(worst.wall_offset_s) > LARGE_OFFSET_S:
        yield Finding(
            "time of day",
            f"{worst.host} is {worst.wall_offset_s:+.1f} s off rank 0's node",
            "advice",
            "The scheduler's end of the job is told in the time of day: have the clocks set, or raise stop.margin_s.",
        )
    elif len({rank.host for rank in facts.ranks}) > 1:
        yield Finding("time of day", f"the same within {_seconds(abs(worst.wall_offset_s))}")


def _limit(facts: Facts) -> Iterator[Finding]:
    if facts.left_s is None and facts.batch:
        advice = "Let the job script export GOCO_JOB_END_TIME, in Unix seconds, or ask for a signal before the end."
        yield Finding("time limit", "the scheduler does not tell when it ends the job", "advice", advice)
    elif facts.left_s is None:
        yield Finding("time limit", "none is known")
    elif facts.left_s < 2 * facts.margin_s:
        advice = "Ask for more time, or lower stop.margin_s."
        yield Finding("time limit", f"the job ends in {facts.left_s:.0f} s", "advice", advice)
    else:
        yield Finding("time limit", f"the job ends in {facts.left_s:.0f} s, a run {facts.margin_s:g} s before that")


def _network(facts: Facts) -> Iterator[Finding]:
    hosts = [rank.host for rank in facts.ranks]
    crowded = any(rank.ranks_on_node > rank.node_cores for rank in facts.ranks)
    for what, between in (("within a node", False), ("between nodes", True)):
        links = [link for link in facts.links if (hosts[link.ranks[0]] != hosts[link.ranks[1]]) == between]
        if not links:
            continue
        latency = statistics.median(link.latency_s for link in links)
        rate = statistics.median(link.bytes_per_s for link in links)
        found = f"{_seconds(latency)}, {rate / 1e6:.3g} MB/s (medians of {len(links)})"
        if between and latency > SLOW_LINK_S and not crowded:
            yield Finding(
                what,
                found,
                "advice",
                "This is slower than plain Ethernet. Where the site has an interconnect, its own MPI module uses it: "
                "install mpi4py against that.",
            )
        else:
            yield Finding(what, found)
        worst = max(links, key=lambda link: max(link.latency_s / latency, rate / link.bytes_per_s))
        first, second = worst.ranks
        found = (
            f"{_seconds(worst.latency_s)}, {worst.bytes_per_s / 1e6:.3g} MB/s: ranks {first} ({hosts[first]}) and "
            f"{second} ({hosts[second]})"
        )
        if max(worst.latency_s / latency, rate / worst.bytes_per_s) > OUTLIER and not crowded:
            advice = "A run does not wait for that node, and a repair would still pay."
            yield Finding(f"slowest {what}", found, "advice", advice)
        elif between and len(links) > 1:
            yield Finding(f"slowest {what}", found)


CHECKS: Sequence[Callable[[Facts], Iterator[Finding]]] = (
    _world,
    _nodes,
    _cores,
    _software,
    _death,
    _directory,
    _clocks,
    _limit,
    _network,
)


def _span(values: Sequence[int]) -> str:
    """Write numbers that are mostly the same as one, or as a range.

    Examples
    --------
    >>> _span([4, 4, 4]), _span([1, 4, 2])
    ('4', '1 to 4')
    """
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _seconds(value: float) -> str:
    """Write a short time in a fitting unit.

    Examples
    --------
    >>> _seconds(3.2e-6), _seconds(0.0041), _seconds(2e-7), _seconds(1.5)
    ('3.2 us', '4.1 ms', '200 ns', '1.5 s')
    """
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1.0:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"
