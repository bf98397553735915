"""Counter-based random streams, so that no generator state travels between workers.

Every draw is a function of (seed, purpose, worker, round): the same on one process and on
many, whatever the number of workers and whoever asks first.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for; two purposes never share random numbers."""

    TOPOLOGY = 1
    PLACEMENT = 2
    PARTITION = 3
    SPLIT = 4
    SYNTHETIC = 5
    STRAGGLER = 6
    DELAY = 7
    LINK = 8
    CURVATURE = 9
    SHARD_ORDER = 10
    COMPUTE_TIME = 30


def stream(seed: int, purpose: Purpose, worker: int = 0, round_: int = 0) -> np.random.Generator:
    """Return the generator of one (seed, purpose, worker, round).

    Parameters
    ----------
    seed : int
        The experiment's seed, non-negative.
    purpose : Purpose
        What the numbers are for.
    worker, round_ : int
        Position of the stream; both non-negative.

    Returns
    -------
    numpy.random.Generator
        On a Philox bit generator: key (seed, purpose), counter starting at (worker, round).

    References
    ----------
    Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> a = stream(1, Purpose.STRAGGLER, worker=3, round_=7).random()
    >>> a == stream(1, Purpose.STRAGGLER, worker=3, round_=7).random()
    True
    """
    # Drawing advances the two low counter words; the position sits in the high ones.
    return np.random.Generator(np.random.Philox(key=[seed, int(purpose)], counter=[0, 0, worker, round_]))
