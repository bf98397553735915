"""What time things take in simulated seconds: gradients, messages, an allreduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError, check_one_of

KINDS = ("constant", "shifted_exponential", "pareto", "bimodal", "trace")
PARETO_SHAPE = 2.0
"""Of the Lomax distribution, whose mean is then its scale."""


@dataclass(frozen=True, eq=False)
class CostModel:
    """Seconds of a gradient, and of what travels.

    A gradient over ``rows`` rows takes T, and over others in proportion, with

    ===================  ===========================================================
    constant             T = compute_s
    shifted_exponential  T = compute_s (1 + spread E), E exponential of mean 1
    pareto               T = compute_s (1 + spread L), L Lomax of shape 2 and mean 1
    bimodal              T = compute_s slow_factor with probability slow_p, else compute_s
    trace                T is the next of a worker's recorded times, over and over
    ===================  ===========================================================

    A message takes ``overhead_s`` of its sender's time and of its receiver's; a worker's messages
    go through its link one after the other, ``bytes_per_s`` fast, and arrive ``latency_s`` later.

    Attributes
    ----------
    kind : str
    seed : int
    compute_s, rows : float
        A gradient over ``rows`` rows takes ``compute_s`` seconds where nothing slows it down.
    spread, slow_p, slow_factor : float
        What slows it down; see the table.
    traces : sequence of ndarray
        Seconds; worker i has trace i modulo their number, and where workers share one, each begins at a
        place of its own. An infinite time is that of a worker which never finishes.
    overhead_s, latency_s : float
    bytes_per_s : float

    References
    ----------
    Shifted exponential and Pareto work: Lee et al., "Speeding up distributed machine learning using codes",
    IEEE Trans. IT 2018. Messages: Alexandrov et al., "LogGP", SPAA 1995.

    Examples
    --------
    >>> cost = CostModel("constant", compute_s=0.5, rows=10.0)
    >>> cost.gradient_s(worker=0, number=0, n_rows=20)
    1.0
    """

    kind: str
    seed: int = 0
    compute_s: float = 0.0
    rows: float = 1.0
    spread: float = 0.0
    slow_p: float = 0.0
    slow_factor: float = 1.0
    traces: Sequence[NDArray[np.float64]] = ()
    overhead_s: float = 0.0
    latency_s: float = 0.0
    bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        check_one_of("cost.compute", self.kind, KINDS)
        if self.kind == "trace":
            _check_traces(self.traces)

    def gradient_s(self, worker: int, number: int, n_rows: int) -> float:
        """Return the seconds that gradient ``number`` of a worker takes over ``n_rows`` rows."""
        return self._unscaled_s(worker, number) * n_rows / self.rows if n_rows else 0.0

    def _unscaled_s(self, worker: int, number: int) -> float:
        if self.kind == "constant":
            return self.compute_s
        if self.kind == "trace":
            return self._traced_s(worker, number)
        rng = stream(self.seed, Purpose.COMPUTE_TIME, worker, number)
        if self.kind == "bimodal":
            return self.compute_s * (self.slow_factor if rng.random() < self.slow_p else 1.0)
        excess = rng.exponential() if self.kind == "shifted_exponential" else rng.pareto(PARETO_SHAPE)
        return self.compute_s * (1.0 + self.spread * float(excess))

    def _traced_s(self, worker: int, number: int) -> float:
        trace = self.traces[worker % len(self.traces)]
        first = 0
        if worker >= len(self.traces):  # a copy of another worker, but not in step with it
            first = int(stream(self.seed, Purpose.COMPUTE_TIME, worker).integers(len(trace)))
        return float(trace[(first + number) % len(trace)])

    def sending_s(self, n_bytes: int) -> float:
        """Return how long a message keeps its sender's link."""
        return n_bytes / self.bytes_per_s

    def allreduce_s(self, n_workers: int, n_bytes: int) -> float:
        """Return the seconds of an allreduce once all have come: 2 log2 N latencies, and all bytes twice.

        References
        ----------
        Thakur, Rabenseifner & Gropp, "Optimization of collective communication operations in MPICH", 2005.
        """
        if n_workers == 1:
            return 0.0
        return 2.0 * math.ceil(math.log2(n_workers)) * self.latency_s + 2.0 * n_bytes / self.bytes_per_s


def _check_traces(traces: Sequence[NDArray[np.float64]]) -> None:
    """Refuse times that last no time, and workers that have none."""
    got = "" if traces else "no worker"
    for worker, trace in enumerate(traces):
        wrong = trace[~(trace > 0.0)]
        if wrong.size or not trace.size:
            got = f"{wrong[0]:g} for worker {worker}" if wrong.size else f"none for worker {worker}"
            break
    if got:
        raise InputError(
            f"cost.trace must hold positive numbers of seconds, at least one for each worker. Got {got}. Leave out "
            "what is no duration; inf stands for a gradient that never ends."
        )
