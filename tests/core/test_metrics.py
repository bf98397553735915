from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import metrics


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 10), st.integers(1, 6))
def test_consensus_distance_is_the_root_mean_squared_distance_from_the_mean(seed, n_workers, n_params):
    x = np.random.default_rng(seed).standard_normal((n_workers, n_params))
    expected = np.sqrt(sum(np.linalg.norm(row - x.mean(axis=0)) ** 2 for row in x) / n_workers)
    distance = metrics.consensus_distance(x)
    assert distance == pytest.approx(expected, abs=1e-14)
    # Where everyone stands does not matter, only how far apart; both scale as a distance does.
    assert metrics.consensus_distance(3.0 * x + 5.0) == pytest.approx(3.0 * distance, abs=1e-13)


def test_consensus_is_a_distance_of_zero():
    assert metrics.consensus_distance(np.ones((5, 3))) == 0.0


def test_suboptimality_is_one_at_the_start_zero_at_the_optimum_and_above_one_beyond_the_start():
    assert metrics.suboptimality(8.0, 8.0, 3.0) == 1.0
    assert metrics.suboptimality(3.0, 8.0, 3.0) == 0.0
    assert metrics.suboptimality(4.0, 8.0, 3.0) == pytest.approx(0.2)
    assert metrics.suboptimality(13.0, 8.0, 3.0) == 2.0


def test_suboptimality_of_a_start_at_the_optimum_does_not_end_the_run():
    # All-zero targets: F(0) = F*. The run is over before it starts, not an error.
    assert metrics.suboptimality(3.0, 3.0, 3.0) == 0.0
    # Gradients of some shards or rows lead away from there, by no part of anything.
    assert metrics.suboptimality(3.5, 3.0, 3.0) is None
    assert metrics.suboptimality(3.5, 3.0, 3.0 + 1e-15) is None  # an optimum that rounding puts above the start


def test_gradient_dissimilarity_is_the_mean_squared_distance_from_the_mean_relative_to_its_square():
    gradients = np.random.default_rng(1).standard_normal((7, 4)) + 1.0
    mean = gradients.mean(axis=0)
    expected = np.mean([np.sum((g - mean) ** 2) for g in gradients]) / np.sum(mean**2)
    squares = float(np.mean(np.sum(gradients**2, axis=1)))
    assert metrics.gradient_dissimilarity(squares, mean) == pytest.approx(expected, rel=1e-13)
    assert metrics.gradient_dissimilarity(9.0 * squares, 3.0 * mean) == pytest.approx(expected, rel=1e-13)


def test_shards_that_are_alike_or_cancel_have_a_dissimilarity_or_none():
    alike = np.full(3, 0.1)
    assert metrics.gradient_dissimilarity(float(alike @ alike) * (1 - 1e-16), alike) == 0.0
    assert metrics.gradient_dissimilarity(1.0, np.zeros(3)) is None


def test_means_of_some_shards_differ_as_much_as_is_expected():
    gradients = np.random.default_rng(2).standard_normal((6, 4)) + 1.0
    mean = gradients.mean(axis=0)
    whole = metrics.gradient_dissimilarity(float(np.mean(np.sum(gradients**2, axis=1))), mean)
    for size in (1, 2, 4, 6):
        means = [gradients[list(some)].mean(axis=0) for some in combinations(range(6), size)]
        expected = np.mean([np.sum((g - mean) ** 2) for g in means]) / np.sum(mean**2)
        assert metrics.sampled_dissimilarity(whole, 6, size) == pytest.approx(expected, rel=1e-12, abs=1e-15)
