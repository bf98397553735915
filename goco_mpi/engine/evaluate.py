"""What a run achieved, worked out together after the loop so that it costs no training time."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from goco_mpi.core import metrics
from goco_mpi.core.shares import ModelShare, Share
from goco_mpi.engine.session import Session
from goco_mpi.engine.snapshots import Snapshots

Array = NDArray[np.float64]

CHUNK_BYTES = 16 << 20
"""Parameters of as many rows as fit into this are averaged at a time."""


def history(session: Session, share: Share, snapshots: Snapshots) -> list[dict[str, Any]]:
    """Evaluate the mean of the parameters at every recorded round. Collective.

    A rank that was elsewhere in a round counts with what it had then: its newest older
    snapshot, and so does what it had spent by then. The time of a row is when the median rank had
    come that far.

    Returns
    -------
    list of dict
        Rows of ``history.csv`` in order of rounds, the same on every rank.
    """
    comm, size = session.comm, session.comm.Get_size()
    snapshots.thin(max(comm.allgather(snapshots.every)))
    rounds = sorted(set().union(*comm.allgather(snapshots.rounds)))
    # A rank that went on from a checkpoint in a later round than others was nowhere before.
    newest = np.maximum(np.searchsorted(snapshots.rounds, rounds, side="right") - 1, 0)
    passed = np.searchsorted(snapshots.rounds, rounds, side="left")
    times = np.median(comm.allgather(np.array(snapshots.times_s)[passed]), axis=0)
    # Few collectives, whatever the number of rows: each may cost a time slice where ranks share cores.
    n_rows = max(1, CHUNK_BYTES // snapshots.params[0].nbytes)
    totals = np.zeros((len(rounds), 6))
    totals[:, 4:] = np.array(snapshots.spent)[newest]
    for start in range(0, len(rounds), n_rows):
        params = np.stack([snapshots.params[place] for place in newest[start : start + n_rows]])
        mean = np.empty_like(params)
        comm.Allreduce(params, mean)
        mean /= size
        spread = params - mean
        totals[start : start + n_rows, :4] = [_part(share, *row) for row in zip(mean, spread, strict=True)]
    comm.Allreduce(MPI.IN_PLACE, totals)
    return [
        {
            "round": int(round_),
            "wall_s": float(time_s),
            "loss": float(loss),
            "consensus_distance": float(np.sqrt(squares / size)),
            "test_accuracy": float(n_correct / n_test) if n_test else None,
            "bytes_sent": float(n_bytes / size),
            "shard_gradients": float(n_gradients / size),
        }
        for round_, time_s, (loss, squares, n_correct, n_test, n_bytes, n_gradients) in zip(
            rounds, times, totals, strict=True
        )
    ]


def gradient_dissimilarity(session: Session, share: ModelShare, n_shards: int) -> float | None:
    """Return how far the shards' gradients at 0 differ; see `goco_mpi.core.metrics.gradient_dissimilarity`. Collective.

    Each shard's owner takes its gradient; what is added up is one vector and a number.
    """
    totals = np.zeros(share.n_params + 1)
    for gradient in share.owned_gradients(np.zeros(share.n_params)):
        totals[:-1] += gradient
        totals[-1] += gradient @ gradient
    session.barrier()
    session.comm.Allreduce(MPI.IN_PLACE, totals)
    # They are (1/M) grad f_k, of which the squares are 1/M^2 times as large.
    return metrics.gradient_dissimilarity(n_shards * float(totals[-1]), totals[:-1])


def _part(share: Share, mean: Array, spread: Array) -> tuple[float, float, float, float]:
    """Return what this rank adds to loss, squared distance, right answers and answers at one mean."""
    return (share.loss(mean), float(spread @ spread), *(share.correct(mean) or (0.0, 0)))
