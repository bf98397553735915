"""Coded table Newton on a rook's graph: rows and columns of workers, for more than a complete graph serves.

A worker hears of its row's workers from themselves, and of every other row from its column mate there, as one entry:

    row entry   (stamp, w, z, g)    stamp = sum of the stamps, w = sum_j w_j, z = sum_j w_j z_j / w, g = sum_j g_j
                                    over the sender's table of its own row

The means over a table of such entries are those over all workers. A message is twice as long, and a worker has
rows + columns - 2 neighbours instead of n_workers - 1. News takes two rounds to everybody, so that a gradient is
taken in every other round: in its own round it goes along the row, in the next along the columns. (A gradient in
every round would be one at a point that the others' gradients are not known for yet, and take more of them.)
Slow workers are not left out: only its mates see who is slow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goco_mpi.core import topology
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods.base import Array, Gradient, Place
from goco_mpi.core.methods.table import ENTRY
from goco_mpi.core.methods.table_newton import DECLARATION, TableNewton, TableNewtonState


@dataclass(kw_only=True)
class RookState(TableNewtonState):
    """With the workers of the own row, itself included."""

    row: tuple[int, ...]


class RookTableNewton(TableNewton):
    """See the module."""

    survives = False  # who was heard of through the dead would not be heard of any more

    def message_size(self, n_params: int) -> int:
        """Return the length of a message of the complete graph, and a row entry."""
        return super().message_size(n_params) + ENTRY + 2 * n_params

    def needs_gradient(self, state: TableNewtonState, round_: int) -> bool:
        """Every other round; odd ones, in which scripted stragglers that finish every so often do finish."""
        return round_ % 2 == 1

    def start(self, params: Array, place: Place) -> RookState:
        """Find the row of the worker.

        Raises
        ------
        InputError
            If the loss is not convex at the start.
        """
        plain = super().start(params, dataclasses.replace(place, all_weights=None))
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        columns = topology.rook_columns(place.n_workers, place.worker, place.neighbors)
        first = place.worker - place.worker % columns
        return RookState(**fields, row=tuple(range(first, first + columns)))

    def send(
        self, state: TableNewtonState, gradient: Gradient | None, step_size: float, round_: int, out: Array
    ) -> None:
        """Send the own entry, and the row's."""
        assert isinstance(state, RookState)  # from `start`
        size = super().message_size(state.params.size)
        super().send(state, gradient, step_size, round_, out[:size])
        table, row, n = state.table, list(state.row), state.params.size
        entry = out[size:]
        entry[:ENTRY] = table.stamps[row].sum(), round_, 0.0, table.weights[row].sum()
        if entry[3] == 0.0:
            entry[ENTRY:] = 0.0
        else:
            entry[ENTRY : ENTRY + n] = table.weights[row] @ table.points[row] / entry[3]
            entry[ENTRY + n :] = table.gradients[row].sum(axis=0)

    def receive(
        self, state: TableNewtonState, own: Array, inbox: Sequence[Received], mixing: Mixing, step_size: float
    ) -> None:
        """Take row mates at their own entries, and column mates at their rows'."""
        assert isinstance(state, RookState)  # from `start`
        size = super().message_size(state.params.size)
        heard = []
        for received, j in zip(inbox, state.place.neighbors, strict=True):
            value = received.value
            if value is not None:
                value = value[:size] if j in state.row else np.concatenate([value[:DECLARATION], value[size:]])
            heard.append(Received(value, received.age))
        super().receive(state, own[:size], heard, mixing, step_size)


TABLE_NEWTON_ROOK = RookTableNewton()
