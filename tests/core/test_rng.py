import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core.rng import Purpose, edge_uniforms, stream, uniform, uniforms

COUNTERS = st.integers(0, 2**62)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.sampled_from(Purpose), COUNTERS, COUNTERS)
def test_a_stream_is_a_function_of_its_position(seed, purpose, worker, round_):
    first, second = (stream(seed, purpose, worker, round_).random(5).tolist() for _ in range(2))
    assert first == second


def test_neighbouring_positions_share_no_numbers_however_much_is_drawn():
    positions = itertools.product([0, 1], [Purpose.TOPOLOGY, Purpose.PLACEMENT], [0, 1, 2], [0, 1, 2])
    drawn = [stream(*position).random(200) for position in positions]
    # 7200 numbers of 53 bits: an accidental repetition has probability 3e-9.
    assert len(np.unique(np.concatenate(drawn))) == 36 * 200


def test_purposes_have_numbers_of_their_own():
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose.__members__)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.integers(1, 200))
def test_a_worker_has_one_number_a_round_however_many_workers_there_are(seed, round_, n_workers):
    drawn = uniforms(seed, Purpose.STRAGGLER, round_, n_workers)
    assert drawn.tolist() == [uniform(seed, Purpose.STRAGGLER, round_, worker) for worker in range(n_workers)]


def splitmix64(start, place):
    """The number at a place of a SplitMix64 sequence, in whole numbers of any size."""
    z = (start + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_numbers_of_edges_are_those_of_splitmix64():
    # Known answers of the published generator.
    assert [splitmix64(1234567, place) for place in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    ends = [0, 1, 5, 2**20, 2**32 - 1]
    source, dest = (np.array(column) for column in zip(*itertools.product(ends, ends), strict=True))
    for round_ in (0, 1, 10**6):
        start = int(stream(3, Purpose.LINK, 1, round_).bit_generator.random_raw())
        expected = [(splitmix64(start, (j << 32) + i) >> 11) / 2**53 for j, i in itertools.product(ends, ends)]
        assert edge_uniforms(3, Purpose.LINK, round_, source, dest).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_edges_are_uniform_and_independent_across_edges_and_rounds(seed):
    source, dest = (index.ravel() for index in np.indices((50, 50)))
    drawn = np.array([edge_uniforms(seed, Purpose.LINK, t, source, dest) for t in range(50)])
    counts = np.histogram(drawn, bins=20, range=(0.0, 1.0))[0]
    expected = drawn.size / 20
    # Chi squared with 19 degrees of freedom: mean 19, variance 38.
    assert abs(np.sum((counts - expected) ** 2) / expected - 19) < 5 * np.sqrt(38)
    grid = drawn.reshape(50, 50, 50) - 0.5
    pairs = {
        "next round": (grid[1:], grid[:-1]),
        "next source": (grid[:, 1:], grid[:, :-1]),
        "next receiver": (grid[:, :, 1:], grid[:, :, :-1]),
        "other direction": (grid, grid.transpose(0, 2, 1) * ~np.eye(50, dtype=bool)),
    }
    for name, (one, other) in pairs.items():
        # A product of two has the standard deviation 1/12.
        assert abs(np.mean(one * other)) < 5 / 12 / np.sqrt(one.size / 2), name
