"""The gradient of a round on the clock: injected work lasts without using the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.methods import Encoding
from goco_mpi.core.pace.work import Work

Array = NDArray[np.float64]

SLICE_S = 5e-4
"""How long injected work sleeps between two looks at the messages."""


class GradientWork(Work):
    """The work of `goco_mpi.core.pace.work`, lasting at least as long as the straggler model says."""

    _began = 0.0
    _lasts_s = 0.0

    def start(self, params: Array, round_: int, step: int, encoding: Encoding | None = None) -> Iterator[None]:
        """Begin the gradient at ``params``, now; see `Work.start`."""
        self._began = time.perf_counter()
        self._lasts_s = self._stragglers.duration_s(self._rank, round_)
        return super().start(params, round_, step, encoding)

    def _lasts(self, done: float) -> Iterator[None]:
        return _sleep(self._began + self._lasts_s * done)


def _sleep(until: float) -> Iterator[None]:
    """Yield between slices of sleep: work that lasts without using the machine."""
    while (left := until - time.perf_counter()) > 0.0:
        time.sleep(min(SLICE_S, left))
        yield
