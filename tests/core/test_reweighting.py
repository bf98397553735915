"""Who is slow, who can be left out, and the weights of the others then."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from goco_mpi.core.reweighting import MOST_WORKERS, Pace, Reweighting, members, patience


def bits(*workers):
    return sum(1 << worker for worker in workers)


@st.composite
def weights(draw, most=7):
    """Weights of up to seven workers; every shard has a holder, some workers may hold nothing."""
    n_workers, n_shards = draw(st.integers(1, most)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = rng.uniform(0.2, 3.0, (n_workers, n_shards)) * (rng.random((n_workers, n_shards)) < 0.4)
    for shard in np.flatnonzero(~found.any(axis=0)):
        found[rng.integers(n_workers), shard] = 1.0
    return found


@st.composite
def changes(draw):
    """A reweighting, and who is left out after some sets of slow workers in turn."""
    first = draw(weights())
    reweighting, out = Reweighting(first), 0
    history = []
    for _ in range(draw(st.integers(1, 5))):
        slow = draw(st.integers(0, 2 ** len(first) - 1))
        before, out = out, reweighting.choose(out, slow)
        history.append((before, slow, out))
    return first, reweighting, history


@given(changes())
def test_every_shard_keeps_its_weight_whoever_is_left_out(case):
    first, reweighting, history = case
    for _, _, out in history:
        rows = np.stack([reweighting.row(i, out) for i in range(len(first))])
        np.testing.assert_allclose(rows.sum(axis=0), first.sum(axis=0), rtol=1e-14)
        assert not rows[members(out, len(first))].any()
        assert ((rows > 0.0) <= (first > 0.0)).all()
        assert (rows.any(axis=1) == reweighting.needed(out)).all()
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(reweighting.own_row(i, out), row[first[i] > 0.0])


@given(changes())
def test_nobody_waits_for_a_new_gradient_of_a_slow_worker(case):
    first, reweighting, history = case
    for before, slow, out in history:
        for worker in range(len(first)):
            if slow >> worker & 1 and not out >> worker & 1:
                assert reweighting.unchanged(worker, before, out)
            if (before ^ out) >> worker & 1:
                assert first[worker].any()  # moving who holds nothing changes nothing


@given(changes())
def test_who_can_be_left_out_is_and_who_is_fast_again_comes_back(case):
    first, reweighting, history = case
    holds = first > 0.0
    for before, slow, out in history:
        left_out, lazy = members(out, len(first)), members(slow, len(first))
        stays = holds[lazy & ~left_out].any(axis=0)
        for worker in np.flatnonzero((left_out != lazy) & holds.any(axis=1)):
            shares_with_one = (holds[worker] & stays).any()
            sole = (
                holds[worker] & ~(holds & ~left_out[:, None] & (np.arange(len(first)) != worker)[:, None]).any(0)
            ).any()
            assert shares_with_one or sole, (before, slow, out, worker)
        assert reweighting.choose(out, slow) == out  # and once is enough


@given(weights(), st.data())
def test_unchanged_means_the_same_weights_bit_for_bit(first, data):
    reweighting = Reweighting(first)
    any_set = st.integers(0, 2 ** len(first) - 1)
    sets = [reweighting.choose(0, data.draw(any_set)) for _ in range(2)]
    for worker in range(len(first)):
        if reweighting.unchanged(worker, *sets):
            np.testing.assert_array_equal(reweighting.row(worker, sets[0]), reweighting.row(worker, sets[1]))
        elif sets[0] == 0:
            assert (reweighting.row(worker, 0) != reweighting.row(worker, sets[1])).any()


def test_two_slow_workers_go_if_they_share_nothing_and_both_stay_if_they_do():
    ring = Reweighting((np.eye(8) + np.roll(np.eye(8), 1, axis=1)) / 2.0)  # worker i holds shards i and i + 1
    assert ring.choose(0, bits(1, 5)) == bits(1, 5)
    assert ring.choose(0, bits(1, 2)) == 0
    # Who is out stays out when its neighbour becomes slow, whose weights stay what they are.
    assert ring.choose(bits(1), bits(1, 2)) == bits(1)
    assert ring.choose(bits(1), bits(2, 3)) == bits(1)  # and cannot come back meanwhile
    assert ring.choose(bits(1), bits(2)) == bits(2)  # but it can take its neighbour's place
    assert ring.choose(bits(1, 5), bits(5)) == bits(5)
    triple = Reweighting(sum(np.roll(np.eye(8), k, axis=1) for k in range(3)) / 3.0)
    assert triple.choose(0, bits(1, 2)) == bits(1, 2)
    assert triple.choose(0, bits(1, 2, 3)) == 0


def test_with_one_copy_of_every_shard_nobody_can_be_left_out():
    assert Reweighting(np.eye(4)).choose(0, bits(0, 2)) == 0


def test_the_largest_set_is_a_float64():
    everyone = 2**MOST_WORKERS - 1
    assert int(float(everyone)) == everyone
    assert members(int(float(everyone)), MOST_WORKERS).all()


# Pace ------------------------------------------------------------------------------------------------------------


def noted(n_workers, every, rounds, heard=lambda worker, round_: True):
    """Return the pace of workers that have a gradient every so many rounds."""
    pace = Pace(n_workers)
    for round_ in range(rounds):
        for worker in range(n_workers):
            ready = (round_ + 1) // every[worker]
            if ready and heard(worker, round_):
                pace.note(worker, ready, ready * every[worker] - 1)
    return pace


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(40, 80), st.integers(0, 1000))
def test_a_steady_worker_has_its_own_pace_whatever_is_lost_on_the_way(every, rounds, seed):
    lost = np.random.default_rng(seed).random((len(every), rounds)) < 0.5
    lost[:, -1] = False
    pace = noted(len(every), every, rounds, lambda worker, round_: not lost[worker, round_])
    np.testing.assert_allclose(pace.intervals(rounds - 1), every, rtol=1e-15)


def test_an_older_or_repeated_message_is_no_news():
    pace = noted(2, [1, 2], 12)
    before = pace.intervals(11).tolist()
    for stamp, round_ in ((3, 5), (6, 11), (1, 1)):
        pace.note(1, stamp, round_)
    assert pace.intervals(11).tolist() == before == [1.0, 2.0]


def test_the_last_five_intervals_count():
    pace = Pace(1)
    for stamp, round_ in enumerate((9, 10, 11, 12, 13), 1):
        pace.note(0, stamp, round_)
    assert pace.intervals(13)[0] == 14 / 5
    pace.note(0, 6, 14)
    assert pace.intervals(14)[0] == 1.0
    # And one that has not ended, once it is longer.
    assert pace.intervals(17)[0] == 8 / 6


def test_slow_is_above_five_medians_and_no_longer_below_three():
    for interval, first, later in ((2, 0, 0), (4, 0, 8), (5, 0, 8), (6, 8, 8)):
        pace = noted(4, [1, 1, 1, interval], 60)
        assert pace.slow(59, before=0) == first
        assert pace.slow(59, before=8) == later
    # Three medians are not below three.
    assert noted(4, [1, 1, 1, 3], 60).slow(59, before=8) == 8
    # It is the median that counts: where most are as slow, nobody is.
    assert noted(4, [1, 10, 10, 10], 60).slow(59, before=0) == 0
    # Half of them may be slow, one of two too.
    assert noted(4, [1, 10, 1, 10], 60).slow(59, before=0) == bits(1, 3)
    assert noted(2, [1, 10], 60).slow(59, before=0) == bits(1)


def test_unheard_of_in_the_first_round_is_slow_for_a_quarter_of_them_at_most():
    for every, expected in (([1] * 7 + [99], bits(7)), ([1] * 6 + [99] * 2, bits(6, 7)), ([1] * 5 + [99] * 3, 0)):
        assert noted(8, every, 1).slow(0, before=0) == expected
        assert noted(8, every, 3).slow(2, before=0) == expected


def test_silent_for_more_than_ten_medians_is_slow_however_fast_before():
    pace = Pace(4)
    for round_ in range(100):
        for worker in range(4):
            if worker < 3 or round_ < 50:
                pace.note(worker, round_ + 1, round_)
        assert pace.slow(round_, before=0) == (8 if round_ > 59 else 0), round_


def test_declarations_come_less_and_less_often():
    waits = [patience(number) for number in range(1, 60)]
    assert waits == sorted(waits)
    assert (patience(0), waits[0], waits[-1]) == (0, 4, 64)
