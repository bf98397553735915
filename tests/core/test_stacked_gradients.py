"""All workers' gradients at once against each share's own."""

import numpy as np
import pytest
import scipy.sparse as sp

from goco_mpi.core import objectives
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.shares import CustomShare, ModelShare
from goco_mpi.core.stacked import gradients
from goco_mpi.core.stacked.gradients import StackedGradients

N_FEATURES, N_CLASSES = 5, 3
SHARD_SIZES = [[4, 4], [3, 5], [4, 4, 1], [], [8], [2, 2, 2, 2], [0, 7]]
"""Of each worker: some have equally many rows, one holds nothing, one has a shard without rows."""


def make_shares(kind, sparse=False, seed=0):
    rng = np.random.default_rng(seed)
    objective = objectives.build(kind, N_FEATURES, 0.3, N_CLASSES if kind == "softmax" else 2)
    shares = []
    for sizes in SHARD_SIZES:
        n, weights = sum(sizes), rng.uniform(0.5, 2.0, len(sizes))
        features = rng.standard_normal((n, N_FEATURES)) * (rng.random((n, N_FEATURES)) < 0.6)
        targets = {
            "least_squares": rng.standard_normal(n),
            "logistic": rng.choice([-1.0, 1.0], n),
            "softmax": rng.integers(0, N_CLASSES, n).astype(float),
        }[kind]
        rows = WeightedRows(
            sp.csr_array(features) if sparse else features,
            targets,
            np.repeat(weights, sizes) * rng.uniform(0.1, 1.0, n),
            float(weights.sum()),
        )
        shares.append(ModelShare(objective, rows, rows, sizes, weights, rows))
    return shares


def own_shards():
    """Shares of an objective that only its gradient is known of: 1/2 |x - shard|^2."""

    class Distance:
        def loss(self, x, shard):
            return 0.5 * float((x - shard) @ (x - shard))

        def gradient(self, x, shard, out):
            np.subtract(x, shard, out=out)

    rng = np.random.default_rng(1)
    return [
        CustomShare(
            Distance(), 5, list(rng.standard_normal((len(sizes), 5))), rng.random(len(sizes)) + 0.5, np.zeros(1)
        )
        for sizes in SHARD_SIZES
    ]


SHARES = {
    **{kind: lambda kind=kind: make_shares(kind) for kind in objectives.KINDS},
    **{f"sparse {kind}": lambda kind=kind: make_shares(kind, sparse=True) for kind in objectives.KINDS},
    "own": own_shards,
}
N = len(SHARD_SIZES)
ALL = np.ones(N, dtype=bool)


@pytest.fixture(params=["stacked", "one by one"])
def size_limit(request, monkeypatch):
    """Both ways of computing: shares beyond the limit are not stacked."""
    if request.param == "one by one":
        monkeypatch.setattr(gradients, "STACKED_BYTES", -1)


@pytest.mark.usefixtures("size_limit")
@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("seed", range(5))
def test_they_are_the_shares_own(name, seed):
    shares = SHARES[name]()
    x = np.random.default_rng(seed).standard_normal((N, shares[0].n_params))
    out = np.full_like(x, np.nan)
    StackedGradients(shares).into(out, x, ALL)
    expected = np.array([share.gradient(row) for share, row in zip(shares, x, strict=True)])
    assert np.abs(expected).max() > 0.1
    # The same sums of tens of terms in another order.
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("size_limit")
@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("reweigh", [False, True])
def test_other_weights_and_shards_that_do_not_count(name, reweigh):
    shares, rng = SHARES[name](), np.random.default_rng(2)
    stacked = StackedGradients(shares)
    x = rng.standard_normal((N, shares[0].n_params))
    weights = rng.uniform(0.5, 3.0, len(stacked.weights)) if reweigh else None
    parts = rng.random(len(stacked.weights)) < 0.5
    out = np.full_like(x, np.nan)
    stacked.into(out, x, ALL, weights, parts)
    for i, (share, start) in enumerate(zip(shares, stacked.starts, strict=True)):
        held = slice(start, start + share.n_shards)
        share = share if weights is None else share.reweighted(weights[held])
        terms = [share.gradient(x[i], int(k)) for k in np.flatnonzero(parts[held])]
        np.testing.assert_allclose(out[i], sum(terms, start=np.zeros_like(x[i])), rtol=0, atol=1e-13)
    if reweigh:
        stacked.into(out, x, ALL, weights)
        expected = [
            share.reweighted(weights[start : start + share.n_shards]).gradient(row)
            for share, start, row in zip(shares, stacked.starts, x, strict=True)
        ]
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("size_limit")
@pytest.mark.parametrize("name", SHARES)
def test_rows_that_are_not_wanted_are_left_alone(name):
    shares = SHARES[name]()
    x = np.ones((N, shares[0].n_params))
    out, wanted = np.full_like(x, 7.0), np.arange(N) % 2 == 0
    StackedGradients(shares).into(out, x, wanted)
    assert (out[~wanted] == 7.0).all()
    assert not (out[wanted] == 7.0).any()


@pytest.mark.usefixtures("size_limit")
def test_a_shard_without_weight_cannot_be_given_one():
    share = make_shares("least_squares")[0]
    share.weights[0] = 0.0
    stacked = StackedGradients([share])
    with pytest.raises(ValueError, match="without weight"):
        stacked.into(np.zeros((1, N_FEATURES)), np.ones((1, N_FEATURES)), np.ones(1, dtype=bool), np.ones(2))


@pytest.mark.usefixtures("size_limit")
@pytest.mark.parametrize("name", [name for name in SHARES if name != "own"])
def test_curvatures_are_the_largest_eigenvalues_of_the_hessians(name):
    shares = SHARES[name]()
    found = StackedGradients(shares).curvatures(iterations=3000)
    expected = [np.linalg.eigvalsh(share.hessian(np.zeros(share.n_params)))[-1] for share in shares]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("size_limit")
@pytest.mark.parametrize("name", SHARES)
def test_curvatures_are_those_that_each_worker_finds_alone(name):
    # With few iterations they are no eigenvalues yet: the step sizes of both sides must agree all the same.
    shares = SHARES[name]()
    found = StackedGradients(shares).curvatures(iterations=5)
    zero = np.zeros(shares[0].n_params)
    expected = [objectives.curvature(lambda v, s=share: s.hessian_product(zero, v), len(zero), 5) for share in shares]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_large_shares_are_not_copied_into_a_stack():
    rows = gradients.STACKED_BYTES // (8 * N_FEATURES)
    objective = objectives.build("least_squares", N_FEATURES, 0.0, None)
    for n, stacked in ((rows, True), (rows + 1, False)):
        data = WeightedRows(np.ones((n, N_FEATURES)), np.ones(n), np.ones(n), 1.0)
        share = ModelShare(objective, data, data, [n], np.ones(1), data)
        assert bool(StackedGradients([share])._stacks) is stacked
