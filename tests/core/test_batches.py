"""Minibatches: what is drawn, that it is unbiased, and that it can be drawn again."""

import numpy as np
import pytest
from test_shares import N_WORKERS, RATES, SIZES, Case, RidgeOnAShard, custom_share

from goco_mpi.config import parse_config
from goco_mpi.core.batches import Batch
from goco_mpi.core.rng import Purpose, stream
from goco_mpi.simulation.rounds import simulate_experiment


@pytest.fixture(params=[("least_squares", False), ("logistic", True), ("softmax", False)], ids=str)
def case(request):
    return Case(*request.param)


@pytest.mark.parametrize("worker", range(N_WORKERS))
def test_so_many_rows_of_each_shard_are_drawn_without_replacement_and_stand_for_all(case, worker):
    share, held = case.share(worker), case.placed.shards_of(worker)
    drawn = Batch(3, seed=1).of(share, worker, 9)
    assert drawn.n_shards == len(held)
    assert drawn.n_rows == sum(min(SIZES[k], 3) for k in held) < share.n_rows
    start = begin = 0
    for k in held:
        b = min(SIZES[k], 3)
        mine, all_rows = slice(start, start + b), slice(begin, begin + SIZES[k])
        found, rows = (
            m.toarray() if hasattr(m, "toarray") else m for m in (drawn.coded.features, share.coded.features)
        )
        found, rows = (np.column_stack(pair) for pair in ((found, drawn.coded.targets), (rows, share.coded.targets)))
        places = [int(np.flatnonzero((rows[all_rows] == row).all(axis=1))[0]) for row in found[mine]]
        # Rows of zeros alone may be equal; others come in their order, each once.
        assert len(set(places)) == b or (rows[all_rows, :-1] == 0.0).all(axis=1).sum() > 1
        assert places == sorted(places) or len(set(places)) < b
        total = share.coded.weights[begin] * SIZES[k]
        np.testing.assert_allclose(drawn.coded.weights[mine], total / b, rtol=1e-14)
        start, begin = start + b, begin + SIZES[k]
    assert drawn.coded.l2_weight == share.coded.l2_weight
    assert drawn.loss(case.params) == share.loss(case.params)


@pytest.mark.parametrize("size", [1, 3])
def test_a_gradient_of_a_batch_is_unbiased_and_so_is_each_shards_term(case, size):
    share, draws = case.share(1), 1500
    drawn = [Batch(size, seed=4).of(share, 1, step) for step in range(draws)]
    for shard in (None, *range(share.n_shards)):
        found = np.array([one.gradient(case.params, shard) for one in drawn])
        expected = share.gradient(case.params, shard)
        error = found.std(axis=0, ddof=1) / np.sqrt(draws)
        assert (np.abs(found.mean(axis=0) - expected) <= 5 * error + 1e-12).all()
    assert error.max() < 0.2 * np.abs(expected).max()  # weights off by a shard's size over the batch's would be seen


def test_coded_gradients_of_batches_average_to_the_full_one(case):
    means = np.mean(
        [
            RATES @ [Batch(2, seed=0).of(case.share(i), i, step).gradient(case.params) for i in range(N_WORKERS)]
            for step in range(1500)
        ],
        axis=0,
    )
    expected = case.objective.gradient(case.params, case.pooled())
    np.testing.assert_allclose(means / N_WORKERS, expected, rtol=0, atol=0.1 * np.abs(expected).max())


def test_a_batch_is_a_function_of_seed_worker_and_step():
    case = Case("least_squares")
    share = case.share(0)

    def targets(seed, worker, step):
        return Batch(2, seed).of(share, worker, step).coded.targets.tolist()

    assert targets(1, 2, 3) == targets(1, 2, 3)
    assert len({tuple(targets(*where)) for where in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4


def test_a_batch_that_no_shard_exceeds_is_the_share_itself():
    share = Case("least_squares").share(0)
    assert Batch(max(SIZES), 0).of(share, 0, 0) is share
    assert Batch(max(SIZES) - 1, 0).of(Case("least_squares").share(0), 0, 0).n_rows <= share.n_rows


def test_drawing_and_weighing_may_be_done_in_either_order(case):
    share = case.share(2)
    weights = share.weights * np.linspace(0.5, 2.0, share.n_shards)
    rngs = [stream(5, Purpose.BATCH, 2, 7) for _ in range(2)]
    one = share.reweighted(weights).sampled(2, rngs[0]).gradient(case.params)
    other = share.sampled(2, rngs[1]).reweighted(weights).gradient(case.params)
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_shards_of_an_own_objective_have_no_rows_to_draw():
    share = custom_share(Case("least_squares"), 0, RidgeOnAShard())
    with pytest.raises(ValueError, match="no rows to draw from"):
        Batch(2, 0).of(share, 0, 0)


def run(method, **data):
    raw = {
        "rounds": 1500,
        "data": {
            **{"source": "synthetic", "n_samples": 400, "n_features": 5, "shards": 8, "test_fraction": 0.0},
            **{"partition": "in_order", "heterogeneity": 1.0, **data},
        },
        "objective": {"kind": "least_squares", "l2": 0.1},
        "topology": {"kind": "ring"},
        "method": method,
        "step": {"kind": "auto", "scale": 0.1, "tau": 150.0},
        "record": {"every": 1500, "optimum": True},
    }
    outcome = simulate_experiment(parse_config(raw), 4)
    first, last = (outcome.history[row]["loss"] - outcome.loss_optimum for row in (0, -1))
    return last / first, outcome.stacked_params


@pytest.mark.parametrize("kind", ["goco", "push_pull", "exact_diffusion", "allreduce"])
def test_with_a_decreasing_step_batches_lead_to_the_optimum(kind):
    method = {"kind": kind, "late": "wait"}
    sampled, x = run(method, batch_size=5)
    _, y = run(method)
    assert sampled < 2e-3
    assert not np.allclose(x, y)
    _, same = run(method, batch_size=5)
    np.testing.assert_array_equal(same, x)
    _, equal = run(method, batch_size=1000)
    np.testing.assert_array_equal(equal, y)
