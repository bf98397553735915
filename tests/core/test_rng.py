import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core.rng import Purpose, stream

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
