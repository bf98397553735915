import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core.stragglers import DISTRIBUTIONS, KINDS, StragglerModel
from goco_mpi.errors import InputError

ROUNDS = 3000


def five_sigma(p, n=ROUNDS):
    """Five standard deviations of the frequency of an event of probability p in n trials."""
    return 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_bernoulli_workers_miss_rounds_as_often_as_p_says(p):
    model = StragglerModel("bernoulli", 3, seed=1, p=p)
    for worker in range(3):
        late = np.mean([not model.finishes(worker, t) for t in range(ROUNDS)])
        assert abs(late - p) < five_sigma(p)


def test_bernoulli_workers_are_late_independently_of_each_other_and_of_the_past():
    model = StragglerModel("bernoulli", 2, seed=2, p=0.5)
    late = np.array([[model.finishes(i, t) for t in range(ROUNDS)] for i in range(2)])
    assert abs(np.mean(late[0] == late[1]) - 0.5) < five_sigma(0.5)
    assert abs(np.mean(late[0, 1:] == late[0, :-1]) - 0.5) < five_sigma(0.5, ROUNDS - 1)


@pytest.mark.parametrize("link_p", [0.2, 0.7])
def test_links_lose_messages_as_often_as_link_p_says_and_each_direction_on_its_own(link_p):
    model = StragglerModel("none", 3, seed=3, link_p=link_p)
    there = np.array([model.arrives(0, 1, t) for t in range(ROUNDS)])
    back = np.array([model.arrives(1, 0, t) for t in range(ROUNDS)])
    assert abs(np.mean(~there) - link_p) < five_sigma(link_p)
    assert abs(np.mean(~back) - link_p) < five_sigma(link_p)
    alike = link_p**2 + (1 - link_p) ** 2
    assert abs(np.mean(there == back) - alike) < five_sigma(alike)


def test_links_do_not_share_random_numbers_with_workers():
    model = StragglerModel("bernoulli", 4, seed=3, p=0.5, link_p=0.5)
    finishes = np.array([model.finishes(1, t) for t in range(ROUNDS)])
    arrives = np.array([model.arrives(0, 1, t) for t in range(ROUNDS)])  # edge number 1
    assert abs(np.mean(finishes == arrives) - 0.5) < five_sigma(0.5)


UNEQUAL = (0.1, 0.5, 0.8)


def test_each_worker_misses_rounds_as_often_as_its_own_p_says():
    model = StragglerModel("bernoulli", 3, seed=1, p=UNEQUAL)
    late = 1.0 - np.mean([model.finishing(t) for t in range(ROUNDS)], axis=0)
    for worker, p in enumerate(UNEQUAL):
        assert abs(late[worker] - p) < five_sigma(p)
    np.testing.assert_allclose(model.completion_rates(), 1.0 - np.array(UNEQUAL), rtol=1e-15)


def test_each_worker_loses_messages_that_it_sends_as_often_as_its_own_link_p_says():
    model = StragglerModel("none", 3, seed=1, link_p=UNEQUAL)
    source, dest = np.array([0, 1, 2, 0, 1, 2]), np.array([1, 2, 0, 2, 0, 1])
    lost = 1.0 - np.mean([model.arriving(source, dest, t) for t in range(ROUNDS)], axis=0)
    for place, j in enumerate(source):
        assert abs(lost[place] - UNEQUAL[j]) < five_sigma(UNEQUAL[j])
    assert model.lossy
    assert not StragglerModel("none", 3, link_p=(0.0, 0.0, 0.0)).lossy


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_all_workers_at_once_are_late_exactly_as_one_by_one(kind, paired):
    # The simulator asks for all, the engine for its own rank.
    options = {"ranks": (1, 9), "factor": 3.0, "delay_p": 0.5}
    model = StragglerModel(
        kind,
        11,
        seed=4,
        p=tuple(np.linspace(0.0, 1.0, 11)),
        link_p=tuple(np.linspace(0.0, 0.9, 11)),
        paired_links=paired,
        **options,
    )
    source, dest = (index.ravel() for index in np.indices((11, 11)))
    for t in range(40):
        assert model.finishing(t).tolist() == [model.finishes(i, t) for i in range(11)]
        one_by_one = [model.arrives(j, i, t) for j, i in zip(source.tolist(), dest.tolist(), strict=True)]
        assert model.arriving(source, dest, t).tolist() == one_by_one


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_all_workers_at_once_are_in_time_exactly_as_one_by_one(kind):
    n_held = [3, 0, 5, 1, 7, 4]
    model = StragglerModel(kind, 6, seed=4, p=(0.5, 0.5, 1.0, 0.7, 0.9, 0.6), ranks=(4,), factor=3.0)
    worker = np.repeat(np.arange(6), n_held)
    place = np.concatenate([np.arange(n) for n in n_held])
    for t in range(60):
        one_by_one = [
            shard in model.shard_order(i, t, n)[: model.shards_finished(i, t, n)]
            for i, n in enumerate(n_held)
            for shard in range(n)
        ]
        assert model.shards_in_time(worker, place, t).tolist() == one_by_one


def test_a_pair_of_links_loses_both_messages_or_neither_also_where_only_one_end_is_bad():
    model = StragglerModel("none", 2, seed=4, link_p=(0.0, 0.6), paired_links=True)
    there, back = (np.array([model.arrives(j, 1 - j, t) for t in range(ROUNDS)]) for j in range(2))
    assert (there == back).all()
    assert abs(np.mean(~there) - 0.6) < five_sigma(0.6)


def test_a_dead_worker_finishes_nothing_not_even_a_part():
    model = StragglerModel("bernoulli", 3, seed=1, p=(0.0, 1.0, 0.5))
    assert not any(model.finishes(1, t) for t in range(200))
    assert {model.shards_finished(1, t, 6) for t in range(200)} == {0}
    assert model.completion_rates()[1] == 0.0
    np.testing.assert_allclose(model.completion_rates(np.array([5, 5, 5])), [1.0, 0.0, 0.5 + 0.5 * 2 / 5], rtol=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63 - 1), st.randoms(use_true_random=False))
def test_draws_do_not_depend_on_the_order_of_asking(seed, shuffler: random.Random):
    model = StragglerModel("delays", 4, seed, p=0.5, delay_p=0.5, delay_s=1.0, link_p=0.5)
    logical = StragglerModel("bernoulli", 4, seed, p=0.5)
    asked = [(i, t) for i in range(4) for t in range(5)]

    def answers(order):
        return {
            (i, t): (logical.finishes(i, t), model.arrives(i, (i + 1) % 4, t), model.duration_s(i, t)) for i, t in order
        }

    expected = answers(asked)
    shuffled = asked.copy()
    shuffler.shuffle(shuffled)
    assert answers(shuffled) == expected


def test_draws_do_not_depend_on_the_number_of_workers():
    few = StragglerModel("bernoulli", 4, seed=5, p=0.5)
    many = StragglerModel("bernoulli", 64, seed=5, p=0.5)
    assert [few.finishes(3, t) for t in range(100)] == [many.finishes(3, t) for t in range(100)]
    few = StragglerModel("delays", 4, seed=5, delay_p=0.5, delay_s=1.0)
    many = StragglerModel("delays", 64, seed=5, delay_p=0.5, delay_s=1.0)
    assert [few.duration_s(3, t) for t in range(100)] == [many.duration_s(3, t) for t in range(100)]


def test_lost_messages_do_not_depend_on_the_number_of_workers():
    few = StragglerModel("none", 4, seed=5, link_p=0.5)
    many = StragglerModel("none", 64, seed=5, link_p=0.5)
    assert [few.arrives(2, 3, t) for t in range(100)] == [many.arrives(2, 3, t) for t in range(100)]


def test_other_seeds_workers_and_rounds_draw_otherwise():
    def pattern(seed, worker, start):
        model = StragglerModel("bernoulli", 4, seed, p=0.5)
        return tuple(model.finishes(worker, t) for t in range(start, start + 100))

    assert len({pattern(0, 0, 0), pattern(1, 0, 0), pattern(0, 1, 0), pattern(0, 0, 100)}) == 4


@pytest.mark.parametrize(("factor", "period"), [(1.0, 1), (2.0, 2), (10.0, 10), (2.6, 3)])
def test_persistent_stragglers_finish_every_factor_th_round_and_others_all(factor, period):
    model = StragglerModel("persistent", 3, ranks=(1,), factor=factor)
    finished = [t for t in range(60) if model.finishes(1, t)]
    assert finished == list(range(period - 1, 60, period))
    assert all(model.finishes(worker, t) for worker in (0, 2) for t in range(60))


def test_slow_workers_last_factor_times_the_work_and_others_the_work():
    model = StragglerModel("slow", 3, ranks=(2,), factor=8.0, work_s=0.25)
    assert [model.duration_s(i, 0) for i in range(3)] == [0.25, 0.25, 2.0]
    # Real stragglers are late by the clock, not by decree.
    assert all(model.finishes(i, t) for i in range(3) for t in range(20))


@pytest.mark.parametrize("kind", ["none", "bernoulli", "persistent"])
def test_logical_stragglers_take_no_time_beyond_the_work(kind):
    model = StragglerModel(kind, 2, p=0.5, ranks=(0,), factor=5.0, work_s=0.5, delay_p=1.0, delay_s=9.0)
    assert {model.duration_s(i, t) for i in range(2) for t in range(20)} == {0.5}


def delays(distribution, delay_p=0.4, kind="delays"):
    model = StragglerModel(
        kind, 1, seed=6, work_s=1.0, delay_p=delay_p, delay_s=2.0, distribution=distribution, factor=1.0
    )
    return np.array([model.duration_s(0, t) for t in range(ROUNDS)]) - 1.0


@pytest.mark.parametrize("kind", ["delays", "slow"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_delays_strike_as_often_as_delay_p_says(distribution, kind):
    drawn = delays(distribution, kind=kind)
    assert (drawn >= 0.0).all()
    assert abs(np.mean(drawn > 0.0) - 0.4) < five_sigma(0.4)


def test_exponential_delays_have_their_mean_and_deviation():
    drawn = delays("exponential", delay_p=1.0)
    # The standard deviation of an exponential is its mean, and that of its sample variance 3 mean^2 / sqrt(n).
    assert abs(drawn.mean() - 2.0) < 5 * 2.0 / math.sqrt(ROUNDS)
    assert abs(drawn.var() - 4.0) < 5 * math.sqrt(8) * 4.0 / math.sqrt(ROUNDS)


def test_pareto_delays_have_the_tail_of_shape_two_whose_mean_is_delay_s():
    # Lomax of shape 2 and scale s: P(X > s x) = (1 + x)^-2, mean s. Its variance is infinite,
    # so the tail is compared, not the mean.
    drawn = delays("pareto", delay_p=1.0) / 2.0
    for x in (0.5, 1.0, 4.0):
        tail = (1 + x) ** -2
        assert abs(np.mean(drawn > x) - tail) < five_sigma(tail)


def test_constant_delays_are_constant():
    assert set(delays("constant")) == {0.0, 2.0}


@pytest.mark.parametrize("kind", KINDS)
def test_completion_rates_are_the_frequencies_of_the_scripted_model(kind):
    model = StragglerModel(kind, 3, seed=7, p=0.3, ranks=(1,), factor=4.0, delay_p=0.2, delay_s=1.0)
    scripted = model.scripted()
    for worker, rate in enumerate(model.completion_rates()):
        frequency = np.mean([scripted.finishes(worker, t) for t in range(ROUNDS)])
        assert abs(frequency - rate) <= five_sigma(rate)


@pytest.mark.parametrize("kind", KINDS)
def test_scripting_keeps_links_and_is_idempotent(kind):
    model = StragglerModel(kind, 3, seed=7, p=0.3, ranks=(1,), factor=4.0, delay_p=0.2, delay_s=1.0, link_p=0.4)
    scripted = model.scripted()
    assert scripted.scripted() == scripted
    assert [scripted.arrives(0, 1, t) for t in range(50)] == [model.arrives(0, 1, t) for t in range(50)]
    assert {scripted.duration_s(i, t) for i in range(3) for t in range(20)} == {0.0}


def test_scripting_names_the_logical_model():
    slow = StragglerModel("slow", 4, seed=2, ranks=(3,), factor=10.0).scripted()
    assert [t for t in range(30) if slow.finishes(3, t)] == [9, 19, 29]
    late = StragglerModel("delays", 4, seed=2, delay_p=0.25).scripted()
    assert (late.kind, late.p, late.seed) == ("bernoulli", 0.25, 2)
    for kind in ("none", "bernoulli", "persistent"):
        model = StragglerModel(kind, 4, p=0.1, ranks=(0,), factor=3.0)
        assert model.scripted() is model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.0}, "stragglers.p must be at least 0 and below 1. Got 1"),
        ({"p": -0.1}, "stragglers.p must be at least 0 and below 1. Got -0.1"),
        ({"p": math.nan}, "stragglers.p must be at least 0 and below 1. Got nan"),
        ({"link_p": 1.0}, "stragglers.link_p must be at least 0 and below 1. Got 1"),
        ({"link_p": math.nan}, "stragglers.link_p must be at least 0 and below 1. Got nan"),
        ({"p": (0.1, 0.2)}, "stragglers.p must be one number or one for each worker, and there are 4 workers. Got 2"),
        ({"p": (0.1, 0.2, 0.3, 1.5)}, "stragglers.p must be at least 0 and below 1. Got 1.5.* 1 is one that never"),
        ({"p": (0.1, 0.2, math.nan, 0.3)}, "stragglers.p must be at least 0 and below 1. Got nan"),
        ({"link_p": ()}, "stragglers.link_p must be one number or one for each worker.* Got 0 numbers"),
        ({"link_p": (0.1, 0.2, 0.3, 1.0)}, "stragglers.link_p must be at least 0 and below 1. Got 1"),
        ({"delay_p": 1.5}, "stragglers.delay_p must be between 0 and 1. Got 1.5"),
        ({"delay_p": math.nan}, "stragglers.delay_p must be between 0 and 1. Got nan"),
        ({"kind": "slow", "ranks": (0, 4)}, "stragglers.ranks must be between 0 and 3. Got 4. There are 4 workers"),
        ({"kind": "persistent", "ranks": (-1,)}, "stragglers.ranks must be between 0 and 3. Got -1"),
    ],
)
def test_impossible_lateness_is_refused_with_rule_and_value(options, message):
    with pytest.raises(InputError, match=message):
        StragglerModel(**{"kind": "bernoulli", "n_workers": 4, **options})


def test_ranks_that_the_kind_does_not_slow_are_not_looked_at():
    # So that stragglers.kind = "none" turns an experiment's stragglers off, on any number of workers.
    model = StragglerModel("none", 2, ranks=(7,), p=(0.5, 0.5, 0.5))
    assert model.completion_rates().tolist() == [1.0, 1.0]
    assert model.finishing(0).all()


def test_whoever_finishes_finishes_all_its_shards():
    prompt = StragglerModel("none", 3)
    assert {prompt.shards_finished(i, t, 7) for i in range(3) for t in range(50)} == {7}
    late = StragglerModel("bernoulli", 3, seed=8, p=0.5)
    for t in range(200):
        assert (late.shards_finished(1, t, 7) == 7) == late.finishes(1, t)


def test_whoever_misses_a_round_was_stopped_anywhere_on_the_way():
    model = StragglerModel("bernoulli", 1, seed=8, p=0.9)
    finished = [model.shards_finished(0, t, 4) for t in range(ROUNDS) if not model.finishes(0, t)]
    assert set(finished) == {0, 1, 2, 3}
    for n_finished in range(4):
        assert abs(np.mean(np.array(finished) == n_finished) - 0.25) < five_sigma(0.25, len(finished))


def test_a_persistent_straggler_has_nothing_ready_until_it_is_done():
    model = StragglerModel("persistent", 3, ranks=(1,), factor=4.0)
    assert [model.shards_finished(1, t, 5) for t in range(8)] == [0, 0, 0, 5, 0, 0, 0, 5]
    assert {model.shards_finished(i, t, 5) for i in (0, 2) for t in range(8)} == {5}


@pytest.mark.parametrize("kind", ["none", "bernoulli", "persistent"])
def test_a_worker_without_shards_finishes_none(kind):
    model = StragglerModel(kind, 2, p=0.5, ranks=(0,), factor=3.0)
    assert {model.shards_finished(i, t, 0) for i in range(2) for t in range(50)} == {0}
    assert model.shard_order(0, 0, 0) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 100))
def test_the_order_of_shards_is_a_permutation_of_seed_worker_and_round_alone(seed, worker, round_, n_held):
    order = StragglerModel("none", 1001, seed).shard_order(worker, round_, n_held)
    assert sorted(order) == list(range(n_held))
    other = StragglerModel("bernoulli", 2000, seed, p=0.5, ranks=(0,), factor=9.0, link_p=0.5)
    other.finishes(worker, round_)
    other.shards_finished(worker, round_, n_held)
    assert other.shard_order(worker, round_, n_held) == order


def test_other_seeds_workers_and_rounds_take_shards_in_another_order():
    def order(seed, worker, round_):
        return tuple(StragglerModel("none", 2, seed).shard_order(worker, round_, 30))

    assert len({order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)}) == 4


def test_every_shard_comes_first_equally_often_and_however_many_are_finished():
    # Else some shards would count more often than others, and coded gradients would be biased.
    model = StragglerModel("bernoulli", 1, seed=9, p=0.9)
    orders = np.array([model.shard_order(0, t, 4) for t in range(ROUNDS)])
    n_finished = np.array([model.shards_finished(0, t, 4) for t in range(ROUNDS)])
    for chosen in (n_finished >= 0, n_finished == 1, n_finished == 3):
        n = int(chosen.sum())
        assert n > ROUNDS / 10
        for shard in range(4):
            assert abs(np.mean(orders[chosen, 0] == shard) - 0.25) < five_sigma(0.25, n)


@pytest.mark.parametrize("kind", KINDS)
def test_completion_rates_of_shards_are_the_frequencies_of_the_scripted_model(kind):
    n_held = np.array([1, 5, 8, 2])
    model = StragglerModel(kind, 4, seed=11, p=0.6, ranks=(1,), factor=4.0, delay_p=0.4, delay_s=1.0)
    scripted = model.scripted()
    rates = model.completion_rates(n_held)
    np.testing.assert_allclose(scripted.completion_rates(n_held), rates, rtol=1e-15)
    for worker, held in enumerate(n_held):
        last = held - 1
        done = [
            last in scripted.shard_order(worker, t, held)[: scripted.shards_finished(worker, t, held)]
            for t in range(ROUNDS)
        ]
        assert abs(np.mean(done) - rates[worker]) <= five_sigma(rates[worker])


def test_completion_rates_of_shards_by_hand():
    # Missed with p = 0.4; of 5 shards 0, 1, 2, 3 or 4 are done then, 2 on average: a shard in 2 of 5 cases.
    rates = StragglerModel("bernoulli", 3, p=0.4).completion_rates(np.array([5, 1, 0]))
    np.testing.assert_allclose(rates, [0.6 + 0.4 * 2 / 5, 0.6, 0.6], rtol=1e-15)
    rates = StragglerModel("persistent", 3, p=0.4, ranks=(2,), factor=10.0).completion_rates(np.array([5, 5, 5]))
    np.testing.assert_allclose(rates, [0.76, 0.76, 0.1], rtol=1e-15)
