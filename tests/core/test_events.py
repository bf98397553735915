import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core.events import NONE, EventLog

LARGEST = 2**31 - 1
NUMBERS = st.integers(NONE, LARGEST)


@st.composite
def histories(draw, max_shards=100):
    """Degree, number of shards, and steps as the round loop has them."""
    degree, n_shards = draw(st.integers(0, 6)), draw(st.integers(0, max_shards))
    step = st.tuples(
        st.integers(0, LARGEST),
        NUMBERS,
        st.lists(NUMBERS, min_size=degree, max_size=degree),
        st.sets(st.integers(0, n_shards - 1)) if n_shards else st.just(set()),
    )
    return degree, n_shards, draw(st.lists(step, max_size=12))


@settings(max_examples=100, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_what_was_taken_down_is_read_back(history, shuffler):
    degree, n_shards, steps = history
    log = EventLog(degree, n_shards)
    for round_, point, used, shards in steps:
        in_any_order = list(shards)
        shuffler.shuffle(in_any_order)
        log.append(round_, point, used, in_any_order)
    events = log.events()
    assert events.degree == degree
    assert events.rounds.tolist() == [step[0] for step in steps]
    assert events.points.tolist() == [step[1] for step in steps]
    assert events.used.tolist() == [step[2] for step in steps]
    assert events.used.shape == (len(steps), degree)
    for step, (_, _, _, shards) in enumerate(steps):
        assert events.finished_shards(step) == (sorted(shards) if n_shards else None)


@settings(max_examples=100, deadline=None)
@given(histories())
def test_a_step_takes_the_bytes_that_are_promised(history):
    degree, n_shards, steps = history
    log = EventLog(degree, n_shards)
    for step in steps:
        log.append(*step)
    table = log.events().table
    assert table.dtype == np.int32
    assert table.shape[0] == len(steps)
    assert table.nbytes == len(steps) * log.bytes_a_step


@given(st.integers(0, 10**6))
def test_whole_gradients_take_less_than_16_bytes_a_step_and_8_a_neighbour(degree):
    assert EventLog(degree).bytes_a_step < 16 + 8 * degree


@pytest.mark.parametrize("n_shards", [1, 31, 32, 62, 63, 100])
def test_partial_gradients_take_one_bit_a_shard_in_words_of_31(n_shards):
    more = EventLog(2, n_shards).bytes_a_step - EventLog(2).bytes_a_step
    assert more == 4 * -(-n_shards // 31)


@pytest.mark.parametrize("shard", [0, 30, 31, 61, 62, 99])
def test_every_shard_has_its_own_bit(shard):
    log = EventLog(0, 100)
    log.append(0, 0, [], [shard])
    log.append(1, 1, [], set(range(100)) - {shard})
    events = log.events()
    assert events.finished_shards(0) == [shard]
    assert events.finished_shards(1) == [k for k in range(100) if k != shard]


def test_a_log_goes_on_after_it_was_read():
    log = EventLog(1)
    log.append(0, 0, [NONE])
    first = log.events()
    log.append(1, NONE, [0])
    assert first.table.tolist() == [[0, 0, NONE]]
    assert log.events().table.tolist() == [[0, 0, NONE], [1, NONE, 0]]


def test_an_empty_log_is_a_table_without_rows():
    events = EventLog(3, 40).events()
    assert events.table.shape == (0, 7)
    assert events.used.shape == (0, 3)
