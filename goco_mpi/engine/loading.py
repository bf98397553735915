"""The data of a run: every rank reads its own shards, or is given them by rank 0 where only one can read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from goco_mpi.core.shares import ModelShare
from goco_mpi.data.crew import Crew
from goco_mpi.data.readers import open_source
from goco_mpi.data.source import Source
from goco_mpi.engine.session import Session
from goco_mpi.errors import InputError
from goco_mpi.experiment import Layout
from goco_mpi.problem import Problem, load_share, problem_of


@dataclass(frozen=True)
class Loading:
    """What getting the data took, and how they are cut.

    Attributes
    ----------
    sizes : list of int or None
        Rows of every shard, where that is known.
    bytes_read : int
        Of files, by this rank.
    load_s : float
        Seconds.
    problem : Problem or None
        All of the data, on rank 0, where it has read them for the others and is to find the optimum.
    """

    sizes: list[int] | None = None
    bytes_read: int = 0
    load_s: float = 0.0
    problem: Problem | None = None


def load(session: Session, layout: Layout) -> tuple[ModelShare, Loading]:
    """Return what this rank computes. Collective.

    Raises
    ------
    InputError
        If the data cannot be read, or do not fit the config; the same on every rank.
    """
    start = time.perf_counter()
    config, crew = layout.config, _crew(session)
    try:
        with open_source(config.data, config.seed, crew) as source:
            problem: Problem | None = None
            if source.whole:
                share, sizes, problem = _hand_out(session, layout, source)
            else:
                share, sizes = load_share(source, layout, session.rank, crew)
            kept = problem if config.record.optimum else None
            return share, Loading(sizes, source.bytes_read, time.perf_counter() - start, kept)
    except InputError as error:  # they are raised together
        raise session.agreed(error) from None


def _crew(session: Session) -> Crew:
    def gather(part: object) -> list[Any]:
        session.barrier()  # politely: some have more to read than others
        return session.comm.allgather(part)

    return Crew(session.rank, session.size, gather)


def _hand_out(session: Session, layout: Layout, source: Source) -> tuple[ModelShare, list[int], Problem | None]:
    """Let rank 0, which has all of it, give every rank the rows of its shards. Collective."""
    problem = session.agree(lambda: problem_of(layout.config, source) if session.rank == 0 else None)
    sizes: list[int] = session.comm.bcast(None if problem is None else problem.sizes)
    if problem is None:
        share: ModelShare = session.comm.recv(source=0)
        return share, sizes, None
    for dest in range(1, session.size):
        session.comm.send(problem.share(layout, dest), dest)
    return problem.share(layout, 0), sizes, problem
