import dataclasses
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import objectives
from goco_mpi.core.objectives import WeightedRows, logistic
from goco_mpi.core.objectives.curvature import weighted_gram
from goco_mpi.errors import InputError

KINDS = st.sampled_from(objectives.KINDS)
SEEDS = st.integers(0, 2**32)


def make(kind, seed, n_rows=12, n_features=4, sparse=False, n_classes=3, l2=0.3):
    """A random objective with weighted rows, and two random points."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_rows, n_features))
    if sparse:
        features = sp.csr_array(np.where(rng.random(features.shape) < 0.5, features, 0.0))
    targets = {
        "least_squares": rng.standard_normal(n_rows),
        "logistic": rng.choice([-1.0, 1.0], n_rows),
        "softmax": rng.integers(n_classes, size=n_rows).astype(float),
    }[kind]
    rows = WeightedRows(features, targets, rng.uniform(0.01, 0.2, n_rows), float(rng.uniform(0.1, 2.0)))
    objective = objectives.build(kind, n_features, l2, 2 if kind == "logistic" else n_classes)
    return objective, rows, rng.standard_normal(objective.n_params), rng.standard_normal(objective.n_params)


def dense_hessian(objective, rows, params):
    return np.array([objective.hessian_product(params, rows, e) for e in np.eye(objective.n_params)])


def central_difference(function, params, step=1e-5):
    """Error: rounding 1e-16 / step and truncation step^2, both far below 1e-8."""
    columns = [(function(params + step * e) - function(params - step * e)) / (2 * step) for e in np.eye(len(params))]
    return np.array(columns)


@settings(max_examples=30, deadline=None)
@given(KINDS, SEEDS, st.booleans())
def test_gradient_is_the_derivative_of_the_loss(kind, seed, sparse):
    objective, rows, params, _ = make(kind, seed, sparse=sparse)
    numeric = central_difference(lambda x: objective.loss(x, rows), params)
    np.testing.assert_allclose(objective.gradient(params, rows), numeric, rtol=0, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(KINDS, SEEDS, st.booleans())
def test_hessian_product_is_the_derivative_of_the_gradient(kind, seed, sparse):
    objective, rows, params, direction = make(kind, seed, sparse=sparse)
    numeric = central_difference(lambda x: objective.gradient(x, rows), params) @ direction
    np.testing.assert_allclose(objective.hessian_product(params, rows, direction), numeric, rtol=0, atol=1e-7)


def test_losses_are_those_of_the_textbook():
    features, x = np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([0.5, -1.0])
    outputs = features @ x  # -1.5 and 1
    weights = np.array([0.25, 2.0])
    regulariser = 0.5 * 0.1 * 3.0 * 1.25
    least = objectives.build("least_squares", 2, 0.1, None)
    expected = 0.25 * 0.5 * (outputs[0] - 1) ** 2 + 2.0 * 0.5 * (outputs[1] + 2) ** 2 + regulariser
    assert least.loss(x, WeightedRows(features, np.array([1.0, -2.0]), weights, 3.0)) == pytest.approx(expected)
    logistic = objectives.build("logistic", 2, 0.1, 2)
    expected = 0.25 * np.log(1 + np.exp(1.5)) + 2.0 * np.log(1 + np.exp(1.0)) + regulariser
    assert logistic.loss(x, WeightedRows(features, np.array([1.0, -1.0]), weights, 3.0)) == pytest.approx(expected)
    softmax = objectives.build("softmax", 2, 0.1, 2)
    matrix = np.array([[0.0, 0.5], [0.0, -1.0]])  # class 0 scores 0, class 1 the outputs above
    rows = WeightedRows(features, np.array([1.0, 0.0]), weights, 3.0)
    assert softmax.loss(matrix.ravel(), rows) == pytest.approx(expected)


@pytest.mark.parametrize("kind", objectives.KINDS)
@pytest.mark.parametrize("sparse", [False, True])
def test_results_do_not_depend_on_the_block_size(kind, sparse):
    objective, rows, params, direction = make(kind, 1, n_rows=50, sparse=sparse)

    def results():
        assert [i for block in rows.blocks(objective.block_bytes) for i in range(50)[block]] == list(range(50))
        steps = sum(1 for _ in objective.gradient_blocks(params, rows, np.empty(objective.n_params)))
        return steps, [
            objective.loss(params, rows),
            objective.gradient(params, rows),
            objective.hessian_product(params, rows, direction),
        ]

    n_blocks, whole = results()
    assert n_blocks == 1
    seen = set()
    for nbytes in (1, 100, 400):
        objective.block_bytes = nbytes
        n_blocks, parts = results()
        seen.add(n_blocks)
        for one, other in zip(whole, parts, strict=True):
            # Only the order of 50 additions changes.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
    assert max(seen) == 50
    assert len(seen) > 1


@settings(max_examples=30, deadline=None)
@given(KINDS, SEEDS)
def test_dense_and_csr_features_give_the_same(kind, seed):
    objective, rows, params, direction = make(kind, seed, sparse=True)
    dense = WeightedRows(rows.features.toarray(), rows.targets, rows.weights, rows.l2_weight)
    tolerance = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(objective.loss(params, dense), objective.loss(params, rows), **tolerance)
    np.testing.assert_allclose(objective.gradient(params, dense), objective.gradient(params, rows), **tolerance)
    np.testing.assert_allclose(
        objective.hessian_product(params, dense, direction),
        objective.hessian_product(params, rows, direction),
        **tolerance,
    )
    if kind != "least_squares":
        np.testing.assert_array_equal(
            objective.accuracy(params, dense.features, rows.targets),
            objective.accuracy(params, rows.features, rows.targets),
        )


@pytest.mark.parametrize("kind", objectives.KINDS)
def test_a_gradient_may_be_abandoned_and_taken_up_again(kind):
    objective, rows, params, _ = make(kind, 2)
    objective.block_bytes = 1
    before = params.copy(), rows.weights.copy(), rows.targets.copy(), rows.features.copy()
    expected = objective.gradient(params, rows)
    out = np.full(objective.n_params, np.nan)
    blocks = objective.gradient_blocks(params, rows, out)
    next(blocks)
    next(blocks)
    blocks.close()
    assert not np.allclose(out, expected)  # otherwise nothing was left undone
    assert objective.gradient(params, rows, out=out) is out
    np.testing.assert_array_equal(out, expected)
    for old, new in zip(before, (params, rows.weights, rows.targets, rows.features), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("kind", objectives.KINDS)
@pytest.mark.parametrize("sparse", [False, True])
def test_without_rows_the_regulariser_remains(kind, sparse):
    objective, _, params, direction = make(kind, 0)
    features = sp.csr_array((0, 4)) if sparse else np.empty((0, 4))
    rows = WeightedRows(features, np.empty(0), np.empty(0), 2.0)
    assert objective.loss(params, rows) == pytest.approx(0.3 * params @ params)
    np.testing.assert_allclose(objective.gradient(params, rows), 0.6 * params)
    np.testing.assert_allclose(objective.hessian_product(params, rows, direction), 0.6 * direction)


@settings(max_examples=30, deadline=None)
@given(KINDS, SEEDS)
def test_power_iteration_finds_the_largest_curvature_from_below(kind, seed):
    objective, rows, params, _ = make(kind, seed)
    found = objectives.curvature(lambda v: objective.hessian_product(params, rows, v), objective.n_params)
    largest = np.linalg.eigvalsh(dense_hessian(objective, rows, params))[-1]
    assert found <= largest * (1 + 1e-12)


@pytest.mark.parametrize("kind", objectives.KINDS)
def test_power_iteration_errs_no_more_than_it_may_from_a_random_start(kind):
    # It starts at one and the same vector: what is random is how the Hessian lies to that.
    n_steps, errors = 50, []
    for seed in range(100):
        objective, rows, params, _ = make(kind, seed)
        n_params = objective.n_params
        turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_params, n_params)))
        hessian = turn @ dense_hessian(objective, rows, params) @ turn.T
        found = objectives.curvature(hessian.__matmul__, n_params, n_steps)
        errors.append(1.0 - found / np.linalg.eigvalsh(hessian)[-1])
    assert min(errors) >= -1e-12
    # Kuczynski & Wozniakowski, 1992: the mean error is 0.871 ln(n) / (k - 1) at most (theorem 3.1), and one is above a
    # share e with probability 0.824 sqrt(n) (1 - e)^(k - 1/2) at most (theorem 4.1), here 6e-3 for e = 0.12.
    assert np.mean(errors) <= 0.871 * np.log(n_params) / (n_steps - 1) + 3.0 * np.std(errors) / np.sqrt(len(errors))
    assert np.mean(np.array(errors) > 0.12) <= 6e-3 + 3.0 * np.sqrt(6e-3 / len(errors))


def test_curvature_of_a_vanishing_hessian_is_zero():
    assert objectives.curvature(np.zeros_like, 3) == 0.0


@pytest.mark.parametrize("kind", objectives.KINDS)
def test_enormous_parameters_neither_overflow_nor_warn(kind):
    objective, rows, params, _ = make(kind, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(objective.loss(1e90 * params, rows))
        assert np.isfinite(objective.gradient(1e90 * params, rows)).all()


@settings(max_examples=30, deadline=None)
@given(KINDS, SEEDS, st.booleans(), st.sampled_from([1, 100, 1 << 20]))
def test_loss_and_gradient_of_one_pass_are_those_of_two(kind, seed, sparse, block_bytes):
    objective, rows, params, _ = make(kind, seed, sparse=sparse)
    objective.block_bytes = block_bytes
    out = np.full(objective.n_params, np.nan)
    assert objective.loss_and_gradient(params, rows, out) == pytest.approx(objective.loss(params, rows), rel=1e-13)
    np.testing.assert_allclose(out, objective.gradient(params, rows), rtol=1e-13, atol=1e-15)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_the_logistic_function_agrees_with_scipy_s_to_its_last_digits(values):
    outputs = np.array(values)
    # 1 / exp(700) and less may be anything as small.
    np.testing.assert_allclose(logistic.expit(outputs), scipy.special.expit(outputs), rtol=1e-15, atol=1e-300)


def reference(kind, params, rows):
    """Row losses and residuals, from scipy's functions."""
    outputs = rows.features @ params.reshape(rows.features.shape[1], -1)
    if kind == "softmax":
        one_hot = rows.targets[:, None] == np.arange(outputs.shape[1])
        losses = scipy.special.logsumexp(outputs, axis=1) - outputs[one_hot]
        return losses, scipy.special.softmax(outputs, axis=1) - one_hot
    outputs = outputs[:, 0]
    if kind == "logistic":
        margins = rows.targets * outputs
        return np.logaddexp(0.0, -margins), -rows.targets * scipy.special.expit(-margins)
    return 0.5 * (outputs - rows.targets) ** 2, outputs - rows.targets


@settings(max_examples=60, deadline=None)
@given(KINDS, SEEDS, st.booleans(), st.sampled_from([1e-3, 1.0, 30.0, 1e3]))
def test_losses_and_gradients_are_those_of_scipy_s_functions(kind, seed, sparse, scale):
    objective, rows, params, _ = make(kind, seed, sparse=sparse)
    params = scale * params
    losses, residuals = reference(kind, params, rows)
    regulariser = objective.l2 * rows.l2_weight
    expected = rows.weights @ losses + 0.5 * regulariser * params @ params
    assert objective.loss(params, rows) == pytest.approx(expected, rel=1e-12)
    weighted = rows.weights.reshape(-1, *(1,) * (residuals.ndim - 1)) * residuals
    gradient = (rows.features.T @ weighted).ravel() + regulariser * params
    # Outputs of 1e3 are known to 1e-13, and so are probabilities.
    np.testing.assert_allclose(objective.gradient(params, rows), gradient, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(KINDS, SEEDS, st.booleans(), st.sampled_from([1, 100, 1 << 20]))
def test_features_in_float32_are_multiplied_in_float64(kind, seed, sparse, block_bytes):
    objective, rows, params, direction = make(kind, seed, sparse=sparse)
    objective.block_bytes = block_bytes
    single = dataclasses.replace(rows, features=rows.features.astype(np.float32))
    rounded = dataclasses.replace(rows, features=single.features.astype(np.float64))
    assert objective.loss(params, single) == pytest.approx(objective.loss(params, rounded), rel=1e-13)
    for of in (
        lambda rows: objective.gradient(params, rows),
        lambda rows: objective.hessian_product(params, rows, direction),
        lambda rows: objective.hessian(params, rows),
    ):
        np.testing.assert_allclose(of(single), of(rounded), rtol=1e-12, atol=1e-14)
    # And so they are as far from those in float64 as rounding a feature takes them.
    close = 1e-5 * (1.0 + np.abs(params).max())
    np.testing.assert_allclose(objective.gradient(params, single), objective.gradient(params, rows), atol=close)


@pytest.mark.parametrize("kind", objectives.KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_gradient_allocates_nothing_once_its_buffers_are_made(kind, dtype):
    objective, rows, params, _ = make(kind, 5, n_rows=60_000, n_features=20)
    rows = dataclasses.replace(rows, features=rows.features.astype(dtype))
    objective.block_bytes = 20_000 * 20 * rows.features.itemsize
    out = np.empty(objective.n_params)
    for _ in range(2):
        tracemalloc.start()
        objective.gradient(params, rows, out)
        objective.loss_and_gradient(params, rows, out)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A block has 20000 rows: a vector of one number for each takes 160 kB. What is left are views, and with more than
    # one output a row numpy's own buffers, two of 8192 numbers.
    assert used < (140_000 if kind == "softmax" else 4000)


def test_copies_of_an_objective_begin_without_its_buffers():
    objective, rows, params, _ = make("softmax", 5, n_rows=4000, sparse=True)
    before = len(pickle.dumps((objective, rows)))
    objective.block_bytes = 1000
    expected = objective.gradient(params, rows)
    data = pickle.dumps((objective, rows))
    assert abs(len(data) - before) < 10
    copy, copied_rows = pickle.loads(data)
    np.testing.assert_array_equal(copy.gradient(params, copied_rows), expected)


def test_accuracy_judges_each_row():
    features = np.array([[1.0], [2.0], [-1.0]])
    logistic = objectives.build("logistic", 1, 0.0, 2)
    assert logistic.accuracy(np.array([1.0]), features, np.array([1.0, -1.0, -1.0])).tolist() == [1.0, 0.0, 1.0]
    # A tie decides for nobody.
    assert logistic.accuracy(np.array([0.0]), features, np.array([1.0, -1.0, -1.0])).tolist() == [0.0, 0.0, 0.0]
    softmax = objectives.build("softmax", 1, 0.0, 3)
    found = softmax.accuracy(np.array([-1.0, 0.0, 2.0]), features, np.array([2.0, 1.0, 0.0]))
    assert found.tolist() == [1.0, 0.0, 1.0]
    assert objectives.build("least_squares", 1, 0.0, None).accuracy(np.ones(1), features, np.ones(3)) is None


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_optimum_of_scikit_learn_has_zero_gradient_here(kind):
    from sklearn.linear_model import LogisticRegression

    objective, rows, _, _ = make(kind, 7, n_rows=80)
    l2, n = 0.3, 80
    # Theirs is C sum(losses) + |w|^2 / 2, ours mean(losses) + (l2 / 2) |w|^2: C = 1 / (l2 n).
    peer = LogisticRegression(C=1.0 / (l2 * n), fit_intercept=False, tol=1e-10, max_iter=1000)
    peer.fit(rows.features, rows.targets)
    params = peer.coef_.T.ravel()
    pooled = WeightedRows(rows.features, rows.targets, np.full(n, 1.0 / n), 1.0)
    start = np.linalg.norm(objective.gradient(np.zeros_like(params), pooled))
    # L-BFGS ends where a step no longer changes the loss in float64: sqrt(eps) in the gradient.
    assert np.linalg.norm(objective.gradient(params, pooled)) < 1e-6 * start


def test_objectives_are_refused_targets_they_cannot_have():
    with pytest.raises(InputError, match="'softmax' needs whole-number class labels"):
        objectives.build("softmax", 3, 0.1, None)
    with pytest.raises(InputError, match="'logistic' needs whole-number class labels"):
        objectives.build("logistic", 3, 0.1, None)
    with pytest.raises(InputError, match=r"'logistic' needs two classes. Got 3. Use 'softmax'"):
        objectives.build("logistic", 3, 0.1, 3)
    with pytest.raises(
        InputError, match=r"objective.kind must be one of least_squares, logistic, softmax. Got 'hinge'"
    ):
        objectives.build("hinge", 3, 0.1, 2)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_a_single_class_leaves_nothing_to_learn_and_is_refused(kind):
    # Softmax would run and divide by F(0) - F* = 0 when the record is written.
    with pytest.raises(InputError, match=r"two classes|at least two|at least 2"):
        objectives.build(kind, 3, 0.1, 1)


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("negative", [False, True])
def test_a_gram_matrix_is_the_same_of_dense_rows_and_of_csr_however_sparse(density, negative):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 30)) * (rng.random((60, 30)) < density)
    weights = rng.random(60) - (0.5 if negative else 0.0)
    expected = np.einsum("s,si,sj->ij", weights, features, features)
    for form in (features, sp.csr_array(features)):
        np.testing.assert_allclose(weighted_gram(form, weights), expected, rtol=0, atol=1e-13)
