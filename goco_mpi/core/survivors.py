"""What is left of a layout when workers die: their shards' weights, and their part of the loss, go to others.

With D the dead, of N workers and M shards, and a_ik(D) the encoding weights on the placement without them:

    g_i = ((N - |D|) / M) sum_k a_ik(D) grad f_k(x_i)

so that the mean over the living still estimates grad F. A shard that nobody living ever finishes is lost, and F goes
on without its term. Everybody works this out alone, from who is dead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core import encoding
from goco_mpi.core.placement import Placement
from goco_mpi.core.topology import Topology

Array = NDArray[np.float64]

LOST_SHARD = "lost_shard"
DISCONNECTED = "disconnected"
"""By what deaths stop a run: a shard has no living holder, or the living are no connected graph."""


@dataclass(frozen=True, eq=False)
class Survivors:
    """The living, and what they do for the dead.

    Attributes
    ----------
    alive : ndarray of bool, shape (n_workers,)
    lost_shards : tuple of int
        Shards without a living holder that ever finishes.
    weights : ndarray of shape (n_workers, n_shards)
        ((N - |D|) / M) a_ik(D); zero for the dead and the lost.
    connected : bool
        Whether every living worker can hear of every other one.
    step_scale : float
        In (0, 1]: how much shorter a step has to be that was as long as the workers' own curvatures allow. Those
        grow with the weights: L_i(D) <= L_i max_k w_ik(D) / w_ik.
    """

    alive: NDArray[np.bool_]
    lost_shards: tuple[int, ...]
    weights: Array
    connected: bool
    step_scale: float

    def owned(self, worker: int, held: Collection[int]) -> NDArray[np.bool_]:
        """Return which of the shards that ``worker`` holds it answers for in the loss: each has one living owner."""
        owner = (self.weights > 0.0).argmax(axis=0)
        return np.array([owner[k] == worker and self.weights[worker, k] > 0.0 for k in held], dtype=bool)


def survivors(
    kind: str,
    placement: Placement,
    completion_rates: Array,
    weights: Array,
    topology: Topology,
    dead: Collection[int],
) -> Survivors:
    """Return what is left without the ``dead``.

    Parameters
    ----------
    kind : str
        Of the encoding weights; a key of `goco_mpi.core.encoding.KINDS`.
    placement : Placement
        Of all workers.
    completion_rates : ndarray of shape (n_workers,)
    weights : ndarray of shape (n_workers, n_shards)
        a_ik of all workers.
    topology : Topology
    dead : collection of int
        Not all of the workers.

    Examples
    --------
    >>> from goco_mpi.core.topology import complete
    >>> three = Placement(np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=bool))
    >>> left = survivors("plain", three, np.ones(3), three.held / 2, complete(3), dead=[1])
    >>> left.weights.round(3).tolist(), left.lost_shards, round(left.step_scale, 3)
    ([[0.667, 0.0, 0.333], [0.0, 0.0, 0.0], [0.0, 0.667, 0.333]], (), 0.75)
    """
    n_workers, n_shards = placement.n_workers, placement.n_shards
    alive = np.ones(n_workers, dtype=bool)
    alive[list(dead)] = False
    kept = np.flatnonzero((completion_rates * alive) @ placement.held > 0.0)
    after = np.zeros((n_workers, n_shards))
    if kept.size:
        rows = np.flatnonzero(alive)
        left = Placement(placement.held[np.ix_(rows, kept)])
        after[np.ix_(rows, kept)] = encoding.build(kind, left, completion_rates[rows])
    n_alive = int(alive.sum())
    growth = n_alive / n_workers * np.divide(after, weights, out=np.zeros_like(after), where=weights > 0.0)
    first = int(np.flatnonzero(alive)[0])
    return Survivors(
        alive=alive,
        lost_shards=tuple(int(k) for k in np.setdiff1d(np.arange(n_shards), kept)),
        weights=after * (n_alive / n_shards),
        connected=len(topology.without(dead).reachable_from(first)) == n_alive,
        step_scale=1.0 / max(float(growth.max()), 1.0),
    )


def ranks_text(ranks: Sequence[int]) -> str:
    """Return who, for a message.

    Examples
    --------
    >>> ranks_text([3]), ranks_text([3, 5, 9])
    ('rank 3', 'ranks 3, 5 and 9')
    """
    return _listed("rank", ranks)


def shards_text(shards: Sequence[int], sizes: Sequence[int] | None = None) -> str:
    """Return which shards, and of how many rows where all shards' ``sizes`` are known, for a message.

    Examples
    --------
    >>> shards_text([2]), shards_text([2, 5], [9, 9, 8, 8, 8, 8])
    ('shard 2', 'shards 2 and 5 (16 of 50 rows)')
    """
    text = _listed("shard", shards)
    return text if sizes is None else f"{text} ({sum(sizes[k] for k in shards)} of {sum(sizes)} rows)"


def _listed(what: str, numbers: Sequence[int]) -> str:
    *others, last = (str(number) for number in numbers)
    return f"{what}s {', '.join(others)} and {last}" if others else f"{what} {last}"
