"""The optimum, found after a run: rank 0 searches, and all ranks add up the loss of their shards for it."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core.optimum import minimize_sum
from goco_mpi.core.shares import ModelShare
from goco_mpi.engine.session import Session
from goco_mpi.problem import Problem

Array = NDArray[np.float64]

LONGEST_PAUSE_S = 1e-3
"""Between two looks whether the others are ready."""


def optimum(session: Session, share: ModelShare, problem: Problem | None) -> float | None:
    """Return F at its optimum, on `Session.root`; None on the others. Collective.

    Who has all samples anyway finds it alone: they are few, and each of several hundred steps together would take
    longer where ranks share cores.

    Parameters
    ----------
    session : Session
    share : ModelShare
        With the part of F that this rank answers for; all ranks' add up to F.
    problem : Problem or None
        All samples, where this rank has them.
    """
    if session.comm.bcast(problem is not None):
        loss = problem.optimum() if session.root and problem is not None else None
        session.barrier()
        return loss
    asked = np.empty(share.n_params + 1)  # the parameters, and whether there are any
    mine, total = np.empty_like(asked), np.empty_like(asked)

    def evaluate() -> None:
        mine[0], mine[1:] = share.loss_and_gradient(asked[1:])
        _reduce(session, mine, total)

    def on_all(params: Array) -> tuple[float, Array]:
        asked[0], asked[1:] = 1.0, params
        _bcast(session, asked)
        evaluate()
        return float(total[0]), total[1:].copy()

    if session.root:
        _, loss = minimize_sum(on_all, share.n_params)
        asked[0] = 0.0
        _bcast(session, asked)
        return loss
    while True:
        _bcast(session, asked)
        if not asked[0]:
            return None
        evaluate()


def _bcast(session: Session, values: Array) -> None:
    if session.survives:  # the blocking ones are those that tell of deaths
        session.comm.Bcast(values)
    else:
        _wait(session.comm.Ibcast(values))


def _reduce(session: Session, values: Array, total: Array) -> None:
    if session.survives:
        session.comm.Reduce(values, total)
    else:
        _wait(session.comm.Ireduce(values, total))


def _wait(request: MPI.Request) -> None:
    """Wait without taking the core from a rank that computes, where they share cores."""
    pause_s = 1e-5
    while not request.Test():
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
