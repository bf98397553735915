import numpy as np
import pytest
import scipy.sparse as sp
from crews import on_all
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data import scaling
from goco_mpi.data.crew import Crew
from goco_mpi.data.source import Scaling


def random_features(seed=0, n=40, d=4, sparse=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    units, centres = np.resize([1.0, 10.0, 0.1, 1e3], d), np.resize([5.0, 0.0, -2.0, 1.0], d)
    features = rng.standard_normal((n, d)) * units + centres
    if sparse:
        return sp.csr_array(np.where(rng.random((n, d)) < 0.5, features, 0.0).astype(dtype))
    return features.astype(dtype)


def measure(features, n_features=None, n_shards=3):
    n, d = features.shape
    owned = dict(enumerate(np.array_split(np.arange(n), n_shards)))
    return scaling.measure(features, owned, n_features or d, n_shards, n, Crew())


def scaled(features):
    copy = features.copy()
    scaling.apply(measure(features), copy)
    return copy


def test_dense_features_are_centred_and_scaled():
    train, test = random_features(0), random_features(1)
    found = scaled(train)
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(found.std(axis=0), 1.0, rtol=1e-13)
    expected = (test - train.mean(axis=0)) / train.std(axis=0)
    scaling.apply(measure(train), test)
    np.testing.assert_allclose(test, expected, rtol=1e-12, atol=1e-13)


def test_csr_features_are_scaled_by_their_root_mean_square_and_keep_their_zeros():
    train = random_features(0, sparse=True)
    found = scaled(train)
    scale = np.sqrt((train.toarray() ** 2).mean(axis=0))
    np.testing.assert_allclose(found.toarray(), train.toarray() / scale, rtol=1e-13)
    assert found.nnz == train.nnz
    assert measure(train).shift.tolist() == [0.0] * 4


@pytest.mark.parametrize("sparse", [False, True])
def test_single_precision_stays_and_is_measured_in_double(sparse):
    train = random_features(0, sparse=sparse, dtype=np.float32)
    same = measure(train.astype(np.float64))
    assert np.array_equal(measure(train).scale, same.scale)
    assert np.array_equal(measure(train).shift, same.shift)
    found = scaled(train)
    assert found.dtype == np.float32
    wide = scaled(train.astype(np.float64))
    np.testing.assert_allclose(*(x.toarray() if sparse else x for x in (found, wide)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -3e-9])
def test_a_constant_column_is_centred_and_not_blown_up(value):
    # The mean of 0.1 repeated seven times is not 0.1: its deviation is rounding, not information.
    train, test = np.full((7, 1), value), np.full((1, 1), value + 2.0)
    assert np.abs(scaled(train)).max() <= 1e-9
    scaling.apply(measure(train), test)
    assert test[0, 0] == pytest.approx(2.0)


def test_an_empty_csr_column_stays_zero():
    assert scaled(sp.csr_array(np.array([[1.0, 0.0], [3.0, 0.0]]))).toarray()[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_scaled_features_do_not_depend_on_the_unit(unit):
    train = random_features()
    np.testing.assert_allclose(scaled(train * unit), scaled(train), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_column_of_ones_behind_those_measured_stays_and_no_rows_are_fine(sparse):
    features = np.hstack([random_features(), np.ones((40, 1))])
    train = sp.csr_array(features) if sparse else features.copy()
    found = measure(train, n_features=4)
    for part in (train, train[:0]):
        scaling.apply(found, part)
    array = train.toarray() if sparse else train
    assert array[:, 4].tolist() == [1.0] * 40
    np.testing.assert_allclose(array[:, :4], (features[:, :4] - found.shift) / found.scale, rtol=1e-14)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 300), st.integers(1, 7), st.booleans(), st.data())
def test_the_scaling_is_the_same_to_the_last_bit_whoever_has_the_shards(size, n_shards, n, d, sparse, data):
    # Rows as they lie: one process has them in the order of a file, members one shard after the other.
    features = random_features(1, n, d, sparse)
    places = np.array_split(np.random.default_rng(2).permutation(n), n_shards)
    one = scaling.measure(features, dict(enumerate(places)), d, n_shards, n, Crew())
    owner = data.draw(st.lists(st.integers(0, size - 1), min_size=n_shards, max_size=n_shards))

    def member(crew: Crew) -> Scaling:
        mine = [shard for shard in range(n_shards) if owner[shard] == crew.rank]
        rows = np.concatenate([np.empty(0, np.intp), *(places[shard] for shard in mine)])
        ends = np.cumsum([len(places[shard]) for shard in mine])
        ones = np.ones((len(rows), 1))
        held = sp.csr_array(sp.hstack([features[rows], ones])) if sparse else np.hstack([features[rows], ones])
        owned = {shard: slice(end - len(places[shard]), end) for shard, end in zip(mine, ends.tolist(), strict=True)}
        return scaling.measure(held, owned, d, n_shards, n, crew)

    for found in on_all(size, member):
        assert np.array_equal(found.scale, one.scale)
        assert np.array_equal(found.shift, one.shift)


def test_many_columns_are_told_in_parts(monkeypatch):
    features = random_features(n=12, d=10)
    expected = measure(features)
    gathered = []

    def gather(part):
        gathered.append({len(vector) for vector in part.values()})
        return [part]

    monkeypatch.setattr(scaling, "GATHERED_BYTES", 3 * 3 * 8)
    owned = dict(enumerate(np.array_split(np.arange(12), 3)))
    found = scaling.measure(features, owned, 10, 3, 12, Crew(gather=gather))
    assert np.array_equal(found.scale, expected.scale)
    assert gathered == [{3}, {3}, {3}, {1}] * 2
