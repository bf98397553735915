"""The compiled kernels against what they stand in for."""

import contextlib
import dataclasses
import threading
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import objectives
from goco_mpi.core.objectives import WeightedRows, kernels

if kernels.compiled is None:
    pytest.skip("the compiled kernels were not built: no compiler", allow_module_level=True)

COMPILED = kernels.compiled
CASES = [("least_squares", False), ("logistic", False), *((kind, True) for kind in objectives.KINDS)]


@contextlib.contextmanager
def numpy_alone():
    kernels.compiled = None
    try:
        yield
    finally:
        kernels.compiled = COMPILED


def make(kind, sparse, seed, n_rows, n_features, dtype=np.float64, wide=False, scale=1.0, density=0.5):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_rows, n_features)) * (rng.random((n_rows, n_features)) < density)
    features = features.astype(dtype)
    if sparse:
        features = sp.csr_array(features)
        index = np.int64 if wide else np.int32
        features.indices, features.indptr = features.indices.astype(index), features.indptr.astype(index)
    n_classes = 2 if kind == "logistic" else 5
    targets = {
        "least_squares": rng.standard_normal(n_rows),
        "logistic": rng.choice([-1.0, 1.0], n_rows),
        "softmax": rng.integers(n_classes, size=n_rows).astype(float),
    }[kind]
    objective = objectives.build(kind, n_features, 0.3, n_classes)
    rows = WeightedRows(features, targets, rng.uniform(0.0, 0.2, n_rows), 0.7)
    return objective, rows, scale * rng.standard_normal(objective.n_params)


def results(objective, rows, params):
    out = np.full(objective.n_params, np.nan)
    found = objective.loss_and_gradient(params, rows, out)
    return found, out, objective.loss(params, rows), objective.gradient(params, rows)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CASES),
    st.integers(0, 2**32),
    st.integers(0, 200),
    st.integers(1, 150),
    st.sampled_from([np.float64, np.float32]),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    st.sampled_from([0.05, 1.0]),
    st.sampled_from([1, 3000, 1 << 20]),
)
def test_kernels_agree_with_numpy_but_for_rounding(
    case, seed, n_rows, n_features, dtype, wide, scale, density, block_bytes
):
    kind, sparse = case
    objective, rows, params = make(kind, sparse, seed, n_rows, n_features, dtype, wide, scale, density)
    objective.block_bytes = block_bytes
    assert kernels.fit(kind, rows) == (n_rows > 0 or not sparse)
    found = results(objective, rows, params)
    with numpy_alone():
        expected = results(objective, rows, params)
    # Outputs of a few hundred, and so of rounding errors of 1e-14 times as much, have weights of 0.1 and 200 rows.
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11 * (1.0 + scale))


@pytest.mark.parametrize("n_features", [1, 7, 8, 31, 32, 33, 127, 128, 129, 255, 257, 2047, 2048, 2049, 9000, 17_000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_of_any_length_take_the_same_sums(n_features, dtype):
    # Lengths around those of vectors, of rows that are taken together, and of what is copied to begin with a line.
    objective, rows, params = make("least_squares", False, n_features, 23, n_features, dtype)
    found = results(objective, rows, params)
    with numpy_alone():
        expected = results(objective, rows, params)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_same_input_gives_the_same_bits_wherever_it_lies(case):
    objective, rows, params = make(*case, 3, 100, 37)
    expected = objective.gradient(params, rows)
    if not case[1]:
        for offset in range(1, 8):
            room = np.empty(100 * 37 + 8)
            features = room[offset : offset + 100 * 37].reshape(100, 37)
            features[...] = rows.features
            moved = dataclasses.replace(rows, features=features)
            np.testing.assert_array_equal(objective.gradient(params, moved), expected)
    np.testing.assert_array_equal(objective.gradient(params.copy(), rows), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("among", ["params", "features"])
def test_a_nan_goes_where_it_goes_with_numpy(case, among):
    objective, rows, params = make(*case, 3, 100, 37)
    if among == "params":
        params[5] = np.nan
    else:
        (rows.features.data if case[1] else rows.features[40])[7] = np.nan
    found = results(objective, rows, params)
    with numpy_alone(), np.errstate(invalid="ignore"):
        expected = results(objective, rows, params)
    assert np.isnan(found[1]).sum() > 5  # not only where the regulariser takes it
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_enormous_outputs_neither_overflow_nor_lose_the_loss(kind):
    objective, rows, params = make(kind, True, 3, 50, 8, scale=1e90)
    found = results(objective, rows, params)
    with numpy_alone():
        expected = results(objective, rows, params)
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_classes_that_do_not_exist_are_nobodys_and_harm_nothing():
    objective, rows, params = make("softmax", True, 3, 6, 8)
    targets = np.array([-1.0, 5.0, 1e300, np.nan, 1.5, 2.0])
    rows = dataclasses.replace(rows, targets=targets)
    found = results(objective, rows, params)
    with numpy_alone():
        expected = results(objective, rows, params)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("kind", objectives.KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("wide", [False, True])
def test_rows_of_ones_are_multiplied_without_looking_at_their_values(kind, dtype, wide):
    objective, rows, params = make(kind, True, 4, 150, 20, dtype, wide)
    rows.features.data[:] = 1.0
    assert kernels.fit(kind, rows)
    assert rows.known["ones"]
    found = results(objective, rows, params)
    almost = rows.features.copy()
    almost.data[-1] = 2.0
    other = dataclasses.replace(rows, features=almost)
    assert kernels.fit(kind, other)
    assert not other.known["ones"]
    assert np.abs(results(objective, other, params)[1] - found[1]).max() > 1e-6
    with numpy_alone():
        expected = results(objective, rows, params)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


def test_blocks_of_several_outputs_have_as_many_fewer_rows():
    objective, rows, params = make("softmax", True, 4, 4000, 20)
    objective.block_bytes = 1 << 14
    several = sum(1 for _ in objective.gradient_blocks(params, rows, np.empty_like(params)))
    objective, rows, params = make("least_squares", True, 4, 4000, 20)
    objective.block_bytes = 1 << 14
    one = sum(1 for _ in objective.gradient_blocks(params, rows, np.empty_like(params)))
    assert several == pytest.approx(5 * one, rel=0.2)


def hostile(n_rows=4, n_columns=3, **changes):
    matrix = sp.csr_array(np.ones((n_rows, n_columns)))
    for name, (place, value) in changes.items():
        getattr(matrix, name)[place] = value
    return matrix


@pytest.mark.parametrize(
    "changes",
    [
        {"indices": (5, 3)},
        {"indices": (0, -1)},
        {"indices": (11, 2**31 - 1)},
        {"indptr": (0, -3)},
        {"indptr": (2, 1)},
        {"indptr": (4, 13)},
        {"indptr": (1, 2**31 - 1)},
    ],
    ids=str,
)
def test_a_csr_matrix_that_points_outside_itself_is_refused(changes):
    objective = objectives.build("least_squares", 3, 0.0, None)
    rows = WeightedRows(hostile(**changes), np.ones(4), np.ones(4), 1.0)
    with pytest.raises(ValueError, match="outside itself"):
        objective.gradient(np.ones(3), rows)


def test_arrays_that_do_not_fit_are_refused_before_they_are_read():
    x, vector = np.ones((4, 3)), np.ones(4)
    good = (0, x, vector, vector, np.ones(3), np.zeros(3), False)
    COMPILED.dense(*good)
    for place, bad in (
        (0, 2),
        (0, 9),
        (1, np.ones((4, 2))),
        (2, np.ones(3)),
        (3, np.ones(5)),
        (4, np.ones(2)),
        (5, np.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"fit|no kernel"):
            COMPILED.dense(*good[:place], bad, *good[place + 1 :])
    for place, bad in ((1, np.ones((4, 3), np.int64)), (1, np.ones(12)), (2, np.ones(4, np.float32)), (4, [1.0] * 3)):
        with pytest.raises(TypeError):
            COMPILED.dense(*good[:place], bad, *good[place + 1 :])
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    for bad in (read_only, np.zeros(6)[::2]):
        with pytest.raises((BufferError, ValueError)):
            COMPILED.dense(*good[:5], bad, False)
    matrix = sp.csr_array(x)
    good = (
        0,
        matrix.data,
        matrix.indices,
        matrix.indptr,
        False,
        0,
        4,
        3,
        vector,
        vector,
        np.ones(3),
        np.zeros(3),
        False,
    )
    COMPILED.csr(*good)
    for place, bad in (
        (0, 7),
        (1, np.ones(11)),
        (2, matrix.indices.astype(np.int64)),
        (5, -1),
        (5, 5),
        (6, 5),
        (7, 0),
        (7, 4),
        (8, np.ones(3)),
        (9, np.ones(5)),
        (10, np.ones(6)),
        (11, np.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"fit|no kernel"):
            COMPILED.csr(*good[:place], bad, *good[place + 1 :])


def test_rows_without_a_kernel_are_left_to_numpy():
    objective, rows, params = make("least_squares", False, 3, 20, 6)
    expected = objective.gradient(params, rows)
    for features in (np.asfortranarray(rows.features), rows.features.astype(">f8")):
        other = dataclasses.replace(rows, features=features)
        assert not kernels.fit("least_squares", other)
        np.testing.assert_allclose(objective.gradient(params, other), expected, rtol=1e-12, atol=1e-14)
    strided = np.repeat(params, 2)[::2]
    np.testing.assert_allclose(objective.gradient(strided, rows), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_allocates_nothing_that_grows_with_the_rows(case):
    objective, rows, params = make(*case, 5, 20_000, 20)
    objective.block_bytes = 1 << 16
    out = np.empty(objective.n_params)
    for _ in range(2):
        tracemalloc.start()
        objective.gradient(params, rows, out)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert used < 4000


def test_other_threads_run_while_a_kernel_does():
    x, vector = np.ones((100_000, 100)), np.ones(100_000)
    params, out, begins, unfinished = np.ones(100), np.zeros(100), threading.Event(), []

    def compute():
        begins.set()
        COMPILED.dense(0, x, vector, vector, params, out, False)

    for _ in range(20):  # on a busy machine this thread may come too late to see one
        begins.clear()
        out[:] = 0.0
        thread = threading.Thread(target=compute)
        thread.start()
        begins.wait()
        unfinished.append(not out.any())  # a kernel writes out at its end
        thread.join()
        assert out.all()
    assert any(unfinished)
