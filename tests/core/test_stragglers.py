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
    assert StragglerModel("none", 2, ranks=(7,)).completion_rates().tolist() == [1.0, 1.0]
