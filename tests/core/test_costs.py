"""How long simulated things take."""

import math

import numpy as np
import pytest

from goco_mpi.core.costs import KINDS, CostModel
from goco_mpi.errors import InputError

MEANS = {"constant": 2.0, "shifted_exponential": 2.0 * 1.5, "pareto": 2.0 * 1.5, "bimodal": 2.0 * (0.9 + 0.1 * 5.0)}


def model(kind, **options):
    return CostModel(
        **{
            "kind": kind,
            "seed": 3,
            "compute_s": 2.0,
            "rows": 10.0,
            "spread": 0.5,
            "slow_p": 0.1,
            "slow_factor": 5.0,
            **options,
        }
    )


@pytest.mark.parametrize("kind", MEANS)
def test_gradient_times_have_the_mean_and_the_least_value_that_the_table_says(kind):
    cost = model(kind)
    times = np.array([cost.gradient_s(worker, number, 10) for worker in range(20) for number in range(400)])
    # The Lomax distribution of shape 2 has no variance: its sample mean is close, but not to a fixed accuracy.
    assert times.mean() == pytest.approx(MEANS[kind], rel=0.1 if kind == "pareto" else 0.03)
    assert times.min() >= 2.0
    assert times.min() == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("kind", MEANS)
def test_times_are_proportional_to_rows_and_drawn_by_worker_and_number_alone(kind):
    cost, again, other = model(kind), model(kind), model(kind, seed=4)
    first = [cost.gradient_s(1, k, 10) for k in range(30)]
    assert [cost.gradient_s(1, k, 25) for k in range(30)] == pytest.approx([2.5 * t for t in first], rel=1e-15)
    assert [again.gradient_s(1, k, 10) for k in reversed(range(30))] == first[::-1]
    assert cost.gradient_s(1, 0, 0) == 0.0
    if kind != "constant":
        assert [cost.gradient_s(2, k, 10) for k in range(30)] != first
        assert [other.gradient_s(1, k, 10) for k in range(30)] != first


def test_a_trace_is_gone_through_in_order_over_and_over():
    cost = model("trace", rows=1.0, traces=[np.array([1.0, 2.0, 3.0]), np.array([7.0])])
    assert [cost.gradient_s(0, k, 1) for k in range(5)] == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert [cost.gradient_s(1, k, 2) for k in range(2)] == [14.0, 14.0]


def test_workers_that_share_a_trace_are_not_in_step():
    cost = model("trace", rows=1.0, traces=[np.arange(1.0, 101.0)])
    firsts = {cost.gradient_s(worker, 0, 1) for worker in range(10)}
    assert len(firsts) > 5
    for worker in range(1, 10):
        first = cost.gradient_s(worker, 0, 1)
        assert cost.gradient_s(worker, 1, 1) == first % 100 + 1


def test_an_allreduce_is_two_log2_n_latencies_and_all_bytes_twice():
    cost = CostModel("constant", latency_s=0.5, bytes_per_s=100.0)
    assert cost.allreduce_s(8, 1000) == 2 * 3 * 0.5 + 2 * 10.0
    assert cost.allreduce_s(9, 0) == 2 * 4 * 0.5
    assert cost.allreduce_s(1, 1000) == 0.0
    assert cost.sending_s(50) == 0.5


@pytest.mark.parametrize(
    ("traces", "got"),
    [
        ([], "no worker"),
        ([np.zeros(0)], "none for worker 0"),
        ([np.ones(2), np.array([1.0, -0.5])], "-0.5 for worker 1"),
        ([np.array([math.inf, math.nan])], "nan for worker 0"),
    ],
)
def test_a_trace_without_times_is_refused(traces, got):
    with pytest.raises(InputError, match=rf"^cost\.trace must hold positive .* Got {got}\. Leave out"):
        model("trace", traces=traces)


def test_an_unknown_kind_is_refused_and_the_known_are_named():
    with pytest.raises(InputError, match="bimodal"):
        CostModel("normal")
    assert set(KINDS) == {*MEANS, "trace"}
