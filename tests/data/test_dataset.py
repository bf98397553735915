import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data.dataset import (
    Dataset,
    add_intercept,
    check_usable,
    encode_labels,
    standardize,
    train_test_split,
)
from goco_mpi.errors import InputError


def dense(array):
    return array.toarray() if sp.issparse(array) else array


def random_dataset(seed=0, n=40, d=4, sparse=False):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, d)) * [1.0, 10.0, 0.1, 1e3][:d] + [5.0, 0.0, -2.0, 1.0][:d]
    if sparse:
        features = sp.csr_array(np.where(rng.random((n, d)) < 0.5, features, 0.0))
    return Dataset(features, np.arange(float(n)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.0, 0.99), st.integers(0, 2**63 - 1), st.booleans())
def test_split_keeps_every_row_once_in_order_with_its_target(n, fraction, seed, sparse):
    whole = random_dataset(n=n, sparse=sparse)
    if round(n * fraction) == n:
        with pytest.raises(InputError, match=rf"data.test_fraction = .* leaves none of {n} samples"):
            train_test_split(whole, fraction, seed)
        return
    train, test = train_test_split(whole, fraction, seed)
    assert test.n_samples == round(n * fraction)
    assert sorted([*train.targets, *test.targets]) == list(range(n))
    for part in (train, test):
        assert part.targets.tolist() == sorted(part.targets)
        np.testing.assert_array_equal(dense(part.features), dense(whole.features)[part.targets.astype(int)])


def test_split_depends_on_the_seed_alone():
    whole = random_dataset()
    first, again, other = (train_test_split(whole, 0.3, seed)[1].targets.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_dense_features_are_centred_and_scaled_by_the_training_part():
    train, test = random_dataset(0), random_dataset(1)
    scaled, scaled_test = standardize(train, test)
    np.testing.assert_allclose(scaled.features.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(scaled.features.std(axis=0), 1.0, rtol=1e-13)
    expected = (test.features - train.features.mean(axis=0)) / train.features.std(axis=0)
    np.testing.assert_allclose(scaled_test.features, expected, rtol=1e-12, atol=1e-13)
    assert scaled.targets is train.targets


def test_csr_features_are_scaled_by_their_root_mean_square_and_keep_their_zeros():
    train, test = random_dataset(0, sparse=True), random_dataset(1, sparse=True)
    scaled, scaled_test = standardize(train, test)
    assert sp.issparse(scaled.features)
    assert sp.issparse(scaled_test.features)
    scale = np.sqrt((train.features.toarray() ** 2).mean(axis=0))
    np.testing.assert_allclose(scaled.features.toarray(), train.features.toarray() / scale, rtol=1e-13)
    np.testing.assert_allclose(scaled_test.features.toarray(), test.features.toarray() / scale, rtol=1e-13)
    assert scaled.features.nnz == train.features.nnz


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -3e-9])
def test_a_constant_column_is_centred_and_not_blown_up(value):
    # The mean of 0.1 repeated seven times is not 0.1: its deviation is rounding, not information.
    train, test = Dataset(np.full((7, 1), value), np.zeros(7)), Dataset(np.full((1, 1), value + 2.0), np.zeros(1))
    scaled, scaled_test = standardize(train, test)
    assert np.abs(scaled.features).max() <= 1e-9
    assert scaled_test.features[0, 0] == pytest.approx(2.0)


def test_an_empty_csr_column_stays_zero():
    train = Dataset(sp.csr_array(np.array([[1.0, 0.0], [3.0, 0.0]])), np.zeros(2))
    assert standardize(train, train)[0].features.toarray()[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_standardized_features_do_not_depend_on_the_unit(unit):
    train = random_dataset()
    expected = standardize(train, train)[0].features
    rescaled = Dataset(train.features * unit, train.targets)
    np.testing.assert_allclose(standardize(rescaled, rescaled)[0].features, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_standardizing_takes_an_empty_test_part(sparse):
    train, test = train_test_split(random_dataset(sparse=sparse), 0.0, 0)
    assert standardize(train, test)[1].features.shape == (0, 4)
    assert add_intercept(test).features.shape == (0, 5)


@pytest.mark.parametrize("sparse", [False, True])
def test_intercept_is_a_last_column_of_ones(sparse):
    whole = random_dataset(sparse=sparse)
    wider = add_intercept(whole)
    assert sp.issparse(wider.features) == sparse
    assert wider.features.dtype == np.float64
    np.testing.assert_array_equal(dense(wider.features)[:, :-1], dense(whole.features))
    assert dense(wider.features)[:, -1].tolist() == [1.0] * 40
    assert wider.targets is whole.targets


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_labels_become_ranks_in_the_order_of_the_labels(labels):
    classes, count = encode_labels(np.array(labels, dtype=float))
    order = sorted(set(labels))
    assert count == len(order)
    assert classes.tolist() == [float(order.index(label)) for label in labels]
    assert classes.dtype == np.float64


def test_real_targets_are_no_labels():
    assert encode_labels(np.array([0.0, 1.0, 1.5])) is None


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (np.empty((0, 3)), np.empty(0), "empty"),
        (np.empty((3, 0)), np.empty(3), "empty"),
        (np.ones((3, 2)), np.ones(2), "one target a row"),
        (np.ones((3, 2)), np.ones((3, 1)), "one target a row"),
        (np.array([[1.0], [np.nan]]), np.ones(2), r"1 feature values are NaN or infinite \(first in row 1"),
        (np.array([[1.0], [2.0]]), np.array([np.inf, np.nan]), r"2 target values .* \(first in row 0"),
        (sp.csr_array(np.array([[1.0], [np.inf]])), np.ones(2), "1 feature values are NaN or infinite"),
    ],
)
def test_unusable_samples_are_refused_by_name(features, targets, message):
    with pytest.raises(InputError, match=message) as refused:
        check_usable(Dataset(features, targets), "here.npz")
    assert "'here.npz'" in str(refused.value)
    assert "\n" not in str(refused.value)
