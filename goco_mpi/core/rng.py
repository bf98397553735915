"""Counter-based random streams, so that no generator state travels between workers.

Every draw is a function of (seed, purpose, worker, round): the same on one process and on
many, whatever the number of workers and whoever asks first.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


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
    COMPRESSION = 20
    BATCH = 21
    COMPUTE_TIME = 30
    GENERATED = 40


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


_PER_COUNT = 4
"""Numbers that Philox draws from one value of its counter."""


def uniforms(seed: int, purpose: Purpose, round_: int, n_workers: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each worker in a round, from one stream of the round.

    Cheaper by far than a stream for each worker, and independent of how many workers there are.

    Examples
    --------
    >>> few, many = (uniforms(1, Purpose.STRAGGLER, 7, n) for n in (3, 100))
    >>> bool((few == many[:3]).all())
    True
    """
    return stream(seed, purpose, 0, round_).random(n_workers)


def uniform(seed: int, purpose: Purpose, round_: int, worker: int) -> float:
    """Return the number of one worker out of `uniforms`, without drawing those of the workers before it.

    Examples
    --------
    >>> uniform(1, Purpose.STRAGGLER, 7, 42) == float(uniforms(1, Purpose.STRAGGLER, 7, 100)[42])
    True
    """
    count, place = divmod(worker, _PER_COUNT)
    bits = np.random.Philox(key=[seed, int(purpose)], counter=[count, 0, 0, round_])
    return float(np.random.Generator(bits).random(place + 1)[-1])


def edge_uniforms(
    seed: int, purpose: Purpose, round_: int, source: NDArray[np.int64], dest: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each directed edge in a round, shaped like ``source`` and ``dest``.

    Both ends are below 2^32. An edge's number is the one at place ``source 2^32 + dest`` of the SplitMix64
    sequence that starts where a stream of the round says: any place of it costs the same, so that all edges
    of a large sparse graph are a few array operations, and none depends on which others there are.

    References
    ----------
    Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Examples
    --------
    >>> edge_uniforms(1, Purpose.LINK, 7, np.array([3]), np.array([5])).round(6).tolist()
    [0.712111]
    """
    start = stream(seed, purpose, 1, round_).bit_generator.random_raw()  # beside the stream of `uniforms`
    place = (source.astype(np.uint64) << np.uint64(32)) + dest.astype(np.uint64)
    # Arithmetic modulo 2^64, which unsigned arrays do by themselves.
    z = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)
