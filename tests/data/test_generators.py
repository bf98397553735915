import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data.readers import generators, open_source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig
from goco_mpi.values import GENERATED

SMALL = {"n_samples": 600, "n_features": 12, "shards": 5, "test_fraction": 0.1, "noise": 0.1}


def opened(kind, seed=1, **options):
    return open_source(DataConfig(source=kind, **{**SMALL, **options}), seed)


def dense(array):
    return array.toarray() if sp.issparse(array) else array


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, of which even small data have many."""
    monkeypatch.setattr(generators, "BLOCK_BYTES", 500)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GENERATED), st.data())
def test_any_rows_are_the_same_whatever_else_is_drawn_before(kind, data):
    with opened(kind) as whole, opened(kind) as parts:
        features, targets = dense(whole.features(slice(None))), whole.targets(slice(None))
        for _ in range(3):
            if data.draw(st.booleans()):
                start = data.draw(st.integers(0, 600))
                rows = slice(start, data.draw(st.integers(start, 600)))
            else:
                rows = np.array(data.draw(st.lists(st.integers(0, 599), max_size=30)), dtype=np.intp)
            if data.draw(st.booleans()):
                np.testing.assert_array_equal(parts.targets(rows), targets[rows])
            np.testing.assert_array_equal(dense(parts.features(rows)), features[rows])
            if not parts.sparse:
                out = np.full((len(features[rows]), 13), np.nan)
                parts.read_into(rows, out[:, :12])
                np.testing.assert_array_equal(out[:, :12], features[rows])
            np.testing.assert_array_equal(parts.targets(rows), targets[rows])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", GENERATED)
def test_a_shard_is_drawn_without_the_others_and_each_block_once(kind, monkeypatch):
    with opened(kind) as source:
        drawn = []
        make = source.make_features
        monkeypatch.setattr(source, "make_features", lambda block: drawn.append(block) or make(block))
        rows = source.cut.shards[2]
        for start in range(rows.start, rows.stop, 7):
            source.features(slice(start, min(start + 7, rows.stop)))
        source.targets(rows)
        first, last = np.searchsorted(source.bounds, [rows.start, rows.stop])
        assert source.bounds[first] == rows.start
        assert drawn == list(range(first, last))
        assert len(drawn) > 1


@pytest.mark.parametrize("kind", GENERATED)
def test_rows_that_train_come_shard_after_shard_and_those_to_test_on_behind_them(kind):
    with opened(kind) as source:
        assert [rows.stop - rows.start for rows in source.cut.shards] == [108] * 5
        assert source.cut.shards[0].start == 0
        assert source.cut.test == slice(540, 600)
        assert source.bytes_read == 0
    with opened(kind, test_fraction=0.0) as source:
        assert source.cut.test == slice(600, 600)


@pytest.mark.parametrize("partition", ["by_label", "dirichlet"])
def test_other_partitions_are_left_to_whoever_cuts(partition):
    with opened("synthetic_classification", partition=partition) as source:
        assert source.cut is None


def test_regression_has_its_condition_number_noise_and_one_solution_a_shard():
    options = {"n_samples": 50_000, "condition_number": 100.0, "heterogeneity": 2.0, "partition": "in_order"}
    with opened("synthetic_regression", **options, noise=0.5) as source:
        solutions = []
        for rows in (*source.cut.shards, source.cut.test):
            features, targets = source.features(rows), source.targets(rows)
            solution, residual, _, _ = np.linalg.lstsq(features, targets)
            if rows != source.cut.test:
                solutions.append(solution)
                assert residual[0] / len(targets) == pytest.approx(0.25, rel=0.1)
        eigenvalues = np.linalg.eigvalsh(np.cov(source.features(slice(None)).T))
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(100.0, rel=0.1)
    # 60 numbers of variance 4 about their means over 5 shards.
    assert np.var(solutions, axis=0, ddof=1).mean() == pytest.approx(4.0, rel=0.8)


def test_samples_to_test_on_are_of_all_shards():
    options = {"n_samples": 10_000, "heterogeneity": 3.0, "partition": "in_order", "noise": 0.0}
    with opened("synthetic_regression", **options) as source:
        for place, shard in enumerate(source.cut.shards):
            solution = np.linalg.lstsq(source.features(shard), source.targets(shard))[0]
            rows = slice(9000 + 200 * place, 9000 + 200 * (place + 1))
            np.testing.assert_allclose(source.features(rows) @ solution, source.targets(rows), atol=1e-8)


def test_labels_follow_a_softmax_model_of_the_features():
    from scipy.optimize import minimize

    from goco_mpi.core.objectives import Softmax, WeightedRows

    with opened("synthetic_classification", n_classes=3, n_samples=20_000, noise=0.5, shards=1) as source:
        assert source.labels.tolist() == [0.0, 1.0, 2.0]
        features, targets = source.features(slice(None)), source.targets(slice(None))
        truth = source._common / np.sqrt(12) / 0.5
    assert set(targets) == {0.0, 1.0, 2.0}
    rows = WeightedRows(features, targets, np.full(len(targets), 1 / len(targets)), 1.0)
    objective = Softmax(12, 1e-9, 3)
    fit = minimize(
        lambda x: (objective.loss(x, rows), objective.gradient(x, rows)), np.zeros(36), jac=True, method="L-BFGS-B"
    ).x.reshape(12, 3)
    # Only differences between the outputs are determined.
    np.testing.assert_allclose(fit - fit.mean(1)[:, None], truth - truth.mean(1)[:, None], atol=0.15)


def test_sparse_rows_have_a_one_in_each_group_by_its_law():
    options = {"n_features": 123, "density": 14 / 123, "n_samples": 20_000}
    with opened("synthetic_sparse", **options) as source:
        features, targets = source.features(slice(None)), source.targets(slice(None))
    assert isinstance(features, sp.csr_array)
    assert features.has_canonical_format
    assert (np.diff(features.indptr) == 14).all()
    assert (features.data == 1.0).all()
    assert set(targets) == {0.0, 1.0}
    frequency = features.mean(axis=0)
    np.testing.assert_allclose([part.sum() for part in np.array_split(frequency, 14)], 1.0)
    size = len(np.array_split(frequency, 14)[0])
    law = np.log1p(1 / np.arange(1, size + 1)) / np.log1p(size)
    np.testing.assert_allclose(frequency[:size], law, atol=0.02)


def test_other_seeds_give_other_samples():
    for kind in GENERATED:
        with opened(kind, seed=1) as one, opened(kind, seed=2) as other:
            assert not np.array_equal(dense(one.features(slice(0, 9))), dense(other.features(slice(0, 9))))


def test_more_shards_than_training_samples_are_refused():
    with pytest.raises(InputError, match=r"data.shards must be at most the number of training samples, 9. Got 10"):
        opened("synthetic_regression", n_samples=10, shards=10)


@pytest.mark.parametrize("kind", GENERATED)
def test_float32_features_are_the_same_but_for_rounding_and_the_targets_the_same(kind):
    with opened(kind) as wide, opened(kind, dtype="float32") as narrow:
        assert narrow.features(slice(0, 50)).dtype == np.float32
        np.testing.assert_allclose(dense(narrow.features(slice(0, 50))), dense(wide.features(slice(0, 50))), rtol=1e-7)
        np.testing.assert_array_equal(narrow.targets(slice(0, 50)), wide.targets(slice(0, 50)))
