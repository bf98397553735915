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
    assert not metrics.suboptimality(3.0, 3.0, 3.0) > 0.0
