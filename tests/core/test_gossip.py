import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import gossip, mixing, topology
from goco_mpi.core.gossip import Received

SEEDS = st.integers(0, 2**32)


def random_case(seed, degree=4, n_params=3):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(degree + 1))[:degree]
    inbox = [
        Received(None if rng.random() < 0.2 else rng.standard_normal(n_params), int(rng.integers(-1, 6)))
        for _ in range(degree)
    ]
    return rng.standard_normal(n_params), weights, inbox


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 6))
def test_mix_takes_usable_neighbors_and_keeps_the_weight_of_the_others(seed, max_age):
    own, weights, inbox = random_case(seed)
    before = own.copy()
    out = np.full(3, np.nan)
    used = gossip.mix(own, weights, inbox, max_age, out)
    expected = own.copy()
    for weight, received in zip(weights, inbox, strict=True):
        if received.value is None or received.age > max_age:
            continue
        expected += weight * (received.value - own)
    assert used == [r.value is not None and r.age <= max_age for r in inbox]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(own, before)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 6))
def test_result_lies_in_the_hull_of_what_was_mixed(seed, max_age):
    own, weights, inbox = random_case(seed)
    out = np.empty(3)
    gossip.mix(own, weights, inbox, max_age, out)
    heard = [r.value for r in inbox if r.value is not None and r.age <= max_age]
    stacked = np.array([own, *heard])
    # One rounding a term.
    assert (out >= stacked.min(axis=0) - 1e-14).all()
    assert (out <= stacked.max(axis=0) + 1e-14).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(mixing.KINDS), st.integers(0, 20))
def test_with_everyone_fresh_it_is_the_row_of_the_mixing_matrix(seed, kind, max_age):
    graph = topology.exponential(9)
    matrix = mixing.build(kind, graph)
    vectors = np.random.default_rng(seed).standard_normal((9, 4))
    expected = matrix @ vectors
    for worker in range(9):
        out = np.empty(4)
        inbox = [Received(vectors[j], 0) for j in graph.neighbors(worker)]
        weights = mixing.neighbor_weights(matrix, graph, worker)
        assert gossip.mix(vectors[worker], weights, inbox, max_age, out) == [True] * len(inbox)
        np.testing.assert_allclose(out, expected[worker], rtol=0, atol=1e-14)


def test_fold_takes_this_rounds_vectors_only_and_stale_older_ones_up_to_the_limit():
    own, other = np.array([0.0]), np.array([1.0])
    weights = np.array([0.25])

    def result(rule, age):
        out = np.empty(1)
        gossip.mix(own, weights, [Received(other, age)], gossip.age_limit(rule, 5), out)
        return out[0]

    assert [result("fold", age) for age in (-1, 0, 1, 5, 6)] == [0.25, 0.25, 0.0, 0.0, 0.0]
    assert [result("stale", age) for age in (-1, 0, 1, 5, 6)] == [0.25, 0.25, 0.25, 0.25, 0.0]


def test_a_neighbor_never_heard_of_counts_for_nothing_whatever_its_age():
    out = np.empty(1)
    assert gossip.mix(np.array([3.0]), np.array([0.5]), [Received(None, 0)], 20, out) == [False]
    assert out[0] == 3.0


def test_without_neighbors_the_own_vector_remains():
    out = np.empty(2)
    assert gossip.mix(np.array([1.0, 2.0]), np.empty(0), [], 20, out) == []
    assert out.tolist() == [1.0, 2.0]


def test_weights_and_inbox_of_different_lengths_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        gossip.mix(np.zeros(1), np.array([0.5]), [], 0, np.empty(1))
