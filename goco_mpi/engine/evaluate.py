"""What a run achieved, worked out together after the loop so that it costs no training time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.objectives import Objective
from goco_mpi.engine.runner import Snapshots
from goco_mpi.engine.session import Session
from goco_mpi.experiment import WorkerRows

Array = NDArray[np.float64]


def history(session: Session, objective: Objective, rows: WorkerRows, snapshots: Snapshots) -> list[dict[str, Any]]:
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
            {
                "round": round_,
                "wall_s": float(np.median(times)),
                **_evaluate_mean(session, objective, rows, mean, params),
            }
        )
    return table


def _evaluate_mean(
    session: Session, objective: Objective, rows: WorkerRows, mean: Array, params: Array
) -> dict[str, Any]:
    right = objective.accuracy(mean, rows.test.features, rows.test.targets)
    spread = params - mean
    mine = np.array(
        [
            objective.loss(mean, rows.owned),
            float(spread @ spread) / session.size,
            0.0 if right is None else float(right.sum()),
        ]
    )
    total = np.empty_like(mine)
    session.comm.Allreduce(mine, total)
    measured = right is not None and rows.n_test > 0
    return {
        "loss": float(total[0]),
        "consensus_distance": float(np.sqrt(total[1])),
        "test_accuracy": float(total[2]) / rows.n_test if measured else None,
    }
