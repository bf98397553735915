"""What a run achieved, worked out together after the loop so that it costs no training time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.shares import Share
from goco_mpi.engine.runner import Snapshots
from goco_mpi.engine.session import Session

Array = NDArray[np.float64]


def history(session: Session, share: Share, snapshots: Snapshots) -> list[dict[str, Any]]:
    """Evaluate the mean of the parameters at every recorded round. Collective.

    A rank that was elsewhere in a round counts with what it had then: its newest older
    snapshot. The time of a row is when the median rank had come that far.

    Returns
    -------
    list of dict
        Rows of ``history.csv`` in order of rounds, the same on every rank.
    """
    comm = session.comm
    snapshots.thin(max(comm.allgather(snapshots.every)))
    table = []
    for round_ in sorted(set().union(*comm.allgather(snapshots.rounds))):
        place = int(np.searchsorted(snapshots.rounds, round_, side="right")) - 1
        params = snapshots.params[place]
        mean = np.empty_like(params)
        comm.Allreduce(params, mean)
        mean /= session.size
        passed = int(np.searchsorted(snapshots.rounds, round_, side="left"))
        times = comm.allgather(snapshots.times_s[passed])
        table.append(
            {"round": round_, "wall_s": float(np.median(times)), **_evaluate_mean(session, share, mean, params)}
        )
    return table


def _evaluate_mean(session: Session, share: Share, mean: Array, params: Array) -> dict[str, Any]:
    correct = share.correct(mean)
    spread = params - mean
    mine = np.array([share.loss(mean), float(spread @ spread) / session.size, *(correct or (0.0, 0))])
    total = np.empty_like(mine)
    session.comm.Allreduce(mine, total)
    loss, variance, n_correct, n_test = total
    return {
        "loss": float(loss),
        "consensus_distance": float(np.sqrt(variance)),
        "test_accuracy": float(n_correct / n_test) if n_test else None,
    }
