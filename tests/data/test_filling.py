import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from goco_mpi.data import filling
from goco_mpi.data.readers.memory import InMemory

RNG = np.random.default_rng(0)
TABLE = np.where(RNG.random((200, 7)) < 0.4, RNG.standard_normal((200, 7)), 0.0)
PARTS = {
    "slices": [slice(5, 60), slice(60, 60), slice(100, 101), slice(0, 200)],
    "arrays": [RNG.permutation(200)[:77], np.empty(0, np.intp), np.array([3])],
    "both": [slice(10, 90), RNG.permutation(200)],
    "nothing": [],
    "no rows": [slice(3, 3)],
}


class Watched(InMemory):
    """A source that counts what is asked for."""

    def __init__(self, features):
        super().__init__("watched", features, np.arange(float(features.shape[0])))
        self.asked, self.rows_asked = [], []

    def features(self, rows):
        found = super().features(rows)
        self.asked.append(found.shape[0])
        self.rows_asked.append(rows)
        return found


def rows_of(parts):
    return np.concatenate([np.empty(0, np.intp), *(np.r_[rows] for rows in parts)])


@pytest.mark.parametrize("block", [1, 500, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_rows_come_part_after_part_with_ones_behind_them(monkeypatch, name, sparse, intercept, dtype, block):
    monkeypatch.setattr(filling, "BLOCK_BYTES", block)
    monkeypatch.setattr(filling, "_FIRST_ROWS", 7)
    table = TABLE.astype(dtype)
    source = Watched(sp.csr_array(table) if sparse else table)
    found = filling.features(source, PARTS[name], intercept)
    rows = rows_of(PARTS[name])
    expected = np.hstack([table[rows], np.ones((len(rows), int(intercept)))])
    assert sp.issparse(found) == sparse
    assert found.dtype == dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.toarray() if sparse else found, expected)
    if sparse:
        assert found.has_canonical_format
        assert found.nnz == source._features[rows].nnz + intercept * len(rows)
        assert sp.csr_array(table)[:0].indices.dtype == found.indices.dtype
    assert sum(source.asked) == len(rows)
    assert all((np.diff(rows) >= 0).all() for rows in source.rows_asked if not isinstance(rows, slice))
    np.testing.assert_array_equal(filling.targets(source, PARTS[name]), rows)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_array_is_made_once(sparse):
    features = sp.random_array((60_000, 200), density=0.2, rng=0, format="csr") if sparse else np.ones((60_000, 200))
    source = InMemory("large", features, np.zeros(60_000))
    nbytes = features.data.nbytes + (features.indices.nbytes if sparse else 0)
    tracemalloc.start()
    found = filling.features(source, [slice(0, 60_000)], intercept=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.shape == (60_000, 201)
    # The array, what is read at a time and a little; two of them are never there.
    assert peak < 1.2 * nbytes + 5 * filling.BLOCK_BYTES
