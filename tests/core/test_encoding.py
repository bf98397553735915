import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import encoding, placement
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError

EPS = np.finfo(float).eps


@st.composite
def layouts(draw):
    n_workers = draw(st.integers(1, 12))
    placed = placement.pairwise_balanced(
        n_workers, draw(st.integers(1, 20)), draw(st.integers(1, n_workers)), draw(st.integers(0, 999))
    )
    return placed, np.random.default_rng(draw(st.integers(0, 2**32))).uniform(0.05, 1.0, n_workers)


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_coverage_weights_are_unbiased_for_any_completion_rates(layout):
    placed, rates = layout
    weights = encoding.build("coverage", placed, rates)
    np.testing.assert_allclose(rates @ weights, 1.0, rtol=20 * EPS)


@settings(max_examples=40, deadline=None)
@given(layouts(), st.floats(0.01, 1.0))
def test_paper_weights_are_unbiased_for_equal_completion_rates(layout, rate):
    placed, _ = layout
    rates = np.full(placed.n_workers, rate)
    np.testing.assert_allclose(rates @ encoding.build("paper", placed, rates), 1.0, rtol=20 * EPS)


def test_paper_weights_use_the_mean_rate_and_are_biased_when_rates_differ():
    placed = placement.uncoded(2, 2, seed=0)
    rates = np.array([0.5, 1.0])
    weights = encoding.paper(placed, rates)
    assert weights[placed.held] == pytest.approx([1 / 0.75, 1 / 0.75])
    assert sorted(rates @ weights) == pytest.approx([0.5 / 0.75, 1.0 / 0.75])


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_plain_weights_ignore_lateness(layout):
    placed, rates = layout
    weights = encoding.build("plain", placed, rates)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, rtol=20 * EPS)
    np.testing.assert_array_equal(weights, encoding.plain(placed, np.ones_like(rates)))


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_own_weights_are_unbiased_for_any_completion_rates_above_zero(layout):
    placed, rates = layout
    np.testing.assert_allclose(rates @ encoding.build("own", placed, rates), 1.0, rtol=20 * EPS)


def test_own_weights_lose_the_part_of_a_worker_that_never_finishes_and_coverage_gives_it_to_the_others():
    placed = placement.Placement(np.ones((3, 2), dtype=bool))
    rates = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(encoding.own(placed, rates)[:, 0], [0.0, 4 / 3, 1 / 3], rtol=4 * EPS)
    np.testing.assert_allclose(rates @ encoding.own(placed, rates), 2 / 3, rtol=4 * EPS)
    np.testing.assert_allclose(rates @ encoding.coverage(placed, rates), 1.0, rtol=4 * EPS)


@settings(max_examples=40, deadline=None)
@given(layouts(), st.sampled_from(sorted(encoding.KINDS)))
def test_only_holders_have_weights_and_but_for_own_ones_those_of_a_shard_share_one_value(layout, kind):
    placed, rates = layout
    weights = encoding.build(kind, placed, rates)
    np.testing.assert_array_equal(weights > 0.0, placed.held)
    for shard in range(placed.n_shards):
        holders = placed.holders(shard)
        factors = rates[holders] if kind == "own" else np.ones(len(holders))
        np.testing.assert_allclose(
            weights[holders, shard] * factors, weights[holders[0], shard] * factors[0], rtol=9e-16
        )


def test_all_kinds_agree_when_nobody_is_late():
    placed = placement.pairwise_balanced(5, 7, 3, seed=1)
    made = [encoding.build(kind, placed, np.ones(5)) for kind in sorted(encoding.KINDS)]
    for other in made[1:]:
        np.testing.assert_allclose(made[0], other, rtol=4 * EPS)


def _coded(placed, weights, gradients):
    """g_i = (N/M) sum_k a_ik g_k, one row a worker."""
    return placed.n_workers / placed.n_shards * weights @ gradients


def _problem(seed, n_workers=7, n_shards=10, replication=3):
    rng = np.random.default_rng(seed)
    placed = placement.pairwise_balanced(n_workers, n_shards, replication, seed)
    return placed, rng.standard_normal((n_shards, 4)), rng.uniform(0.2, 1.0, n_workers)


@pytest.mark.parametrize("seed", range(3))
def test_mean_and_variance_of_the_coded_update_over_all_outcomes_are_those_derived(seed):
    placed, gradients, rates = _problem(seed)
    coded = _coded(placed, encoding.coverage(placed, rates), gradients)
    mean, second = np.zeros(4), 0.0
    for finished in itertools.product([0.0, 1.0], repeat=placed.n_workers):
        on = np.array(finished)
        probability = float(np.prod(np.where(on == 1.0, rates, 1.0 - rates)))
        update = on @ coded / placed.n_workers
        mean += probability * update
        second += probability * float(update @ update)
    # 128 exact outcomes: nothing but rounding.
    np.testing.assert_allclose(mean, gradients.mean(axis=0), atol=1e-13)
    bernoulli = rates * (1 - rates) / placed.n_workers**2
    assert second - mean @ mean == pytest.approx(bernoulli @ np.sum(coded**2, axis=1), rel=1e-11)


def test_variance_averaged_over_placements_is_the_formula_in_the_design():
    # p / ((1-p) N^2) [ |sum g_k|^2 / N + sum_k (1/d - 1/N) |g_k|^2 ]  in units where g_i = sum_k a_ik g_k,
    # that is times (N/M)^2 in ours. It takes pairs to meet on d^2/N workers; balanced loads of
    # dM/N shards make that d (dM/N - 1) / (M - 1).
    n, m, d, p = 6, 12, 3, 0.4
    gradients = np.random.default_rng(5).standard_normal((m, 4)) + 0.5
    variances = []
    for seed in range(400):
        placed = placement.pairwise_balanced(n, m, d, seed)
        coded = _coded(placed, encoding.paper(placed, np.full(n, 1 - p)), gradients)
        variances.append(p * (1 - p) / n**2 * np.sum(coded**2))
    total, own = np.sum(gradients.sum(axis=0) ** 2), np.sum(gradients**2)
    met = d * (d * m / n - 1) / (m - 1)
    scale = p / (1 - p) / m**2
    exact = scale * (met / d**2 * (total - own) + own / d)
    error = np.std(variances) / np.sqrt(len(variances))
    assert abs(np.mean(variances) - exact) < 5 * error
    # And the published form differs only by that overlap.
    published = scale * (total / n + (1 / d - 1 / n) * own)
    assert published - exact == pytest.approx(scale * (1 / n - met / d**2) * (total - own), rel=1e-12)
    assert published == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "options"), [("bernoulli", {"p": 0.5}), ("persistent", {"ranks": (0, 2), "factor": 4.0})]
)
def test_coded_gradients_average_to_the_full_gradient_over_the_rounds_of_a_straggler_model(kind, options):
    placed, gradients, _ = _problem(3)
    stragglers = StragglerModel(kind, placed.n_workers, seed=4, **options)
    rates = stragglers.completion_rates()
    coded = _coded(placed, encoding.build("coverage", placed, rates), gradients)
    rounds = 1000
    finished = np.array([[stragglers.finishes(i, t) for i in range(placed.n_workers)] for t in range(rounds)])
    mean = finished.mean(axis=0) @ coded / placed.n_workers
    # Persistent stragglers follow a pattern: no chance, no error. Otherwise five standard deviations.
    variance = rates * (1 - rates) / placed.n_workers**2 @ np.sum(coded**2, axis=1) if kind == "bernoulli" else 0.0
    assert np.linalg.norm(mean - gradients.mean(axis=0)) < 5 * np.sqrt(variance / rounds) + 1e-12


@pytest.mark.parametrize("kind", sorted(encoding.KINDS))
def test_a_shard_whose_holders_never_finish_is_refused(kind):
    placed = placement.Placement(np.array([[True, False], [False, True]]))
    with pytest.raises(InputError, match="No holder of shard 1"):
        encoding.build(kind, placed, np.array([0.5, 0.0]))


def test_unknown_weights_are_refused():
    with pytest.raises(InputError, match=r"method.weights must be one of paper, own, coverage, plain. Got 'ema'"):
        encoding.build("ema", placement.uncoded(2, 2), np.ones(2))
