import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core import metrics
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem
from goco_mpi.record import HISTORY
from goco_mpi.simulation.rounds import simulate_experiment

SMALL = {
    "rounds": 45,
    "data": {"source": "synthetic", "n_samples": 100, "n_features": 4, "shards": 10},
    "objective": {"kind": "least_squares", "l2": 0.1},
    "record": {"every": 20, "optimum": True},
}


def run(n_workers=5, progress=None, **tables):
    config = parse_config({**SMALL, **tables})
    return simulate_experiment(config, n_workers, progress or (lambda round_: None))


def final_suboptimality(outcome):
    return metrics.suboptimality(outcome.history[-1]["loss"], outcome.history[0]["loss"], outcome.loss_optimum)


def test_standardized_digits_are_learned():
    raw = {"rounds": 150, "data": {"standardize": True}, "record": {"every": 150, "optimum": True}}
    outcome = simulate_experiment(parse_config(raw), 8)
    assert final_suboptimality(outcome) < 0.05
    # Softmax regression classifies about 97 % of these digits right.
    assert outcome.history[-1]["test_accuracy"] > 0.93
    assert outcome.history[-1]["consensus_distance"] < 0.1 * np.linalg.norm(outcome.stacked_params[0])


def test_stragglers_slow_training_down_without_spoiling_it():
    late = run(
        rounds=300, stragglers={"kind": "bernoulli", "p": 0.5, "link_p": 0.3}, step={"kind": "auto", "scale": 0.3}
    )
    assert final_suboptimality(late) < 0.05


def test_history_has_a_row_every_so_often_and_at_the_end_with_all_columns():
    outcome = run()
    assert [row["round"] for row in outcome.history] == [0, 20, 40, 45]
    for row in outcome.history:
        assert [name for name in HISTORY if name != "suboptimality"] == list(row)
        assert row["wall_s"] is None
        assert row["test_accuracy"] is None  # a regression has none
    assert outcome.history[0]["consensus_distance"] == 0.0
    assert outcome.wall_s is None
    assert outcome.ranks == [{"rank": worker, "rounds": 45} for worker in range(5)]
    assert outcome.stacked_params.shape == (5, 5)


@pytest.mark.parametrize(
    ("method", "vectors", "beside", "neighbors"),
    # A message also has a header of four numbers, and the rates of five workers; a reduction carries two numbers more.
    [("goco", 1, 4 + 2 * 5, 2), ("dgd", 1, 4, 2), ("push_pull", 2, 4, 2), ("allreduce", 1, 2, 1)],
)
def test_every_round_costs_its_messages(method, vectors, beside, neighbors):
    outcome = run(method={"kind": method}, topology={"kind": "ring"}, step={"scale": 0.1})
    message = 8 * (vectors * 5 + beside)
    assert [row["bytes_sent"] for row in outcome.history] == [t * neighbors * message for t in (0, 20, 40, 45)]


def test_only_finished_gradients_of_shards_are_counted():
    # 10 shards on 5 workers, each on two: four a worker.
    late = {"kind": "persistent", "ranks": [1], "factor": 5}
    for policy, each in (("discard", (4 * 45 * 4 + 9 * 4) / 5), ("wait", 45 * 4), ("memory", (4 * 45 * 4 + 9 * 4) / 5)):
        last = run(method={"late": policy}, stragglers=late).history[-1]
        assert last["shard_gradients"] == each
    assert run(method={"kind": "dgd"}, stragglers=late).history[-1]["shard_gradients"] == (4 * 45 * 2 + 9 * 2) / 5
    random = {"kind": "bernoulli", "p": 0.5}
    dropped, partial = (
        run(method={"late": policy}, stragglers=random).history[-1]["shard_gradients"]
        for policy in ("discard", "partial")
    )
    # Of a gradient that is late some shards are there: 0 to 3 of 4, on average 1.5 of the four that are dropped.
    assert 0.4 * 45 * 4 < dropped < 0.6 * 45 * 4
    assert partial - dropped == pytest.approx(1.5 / 4 * (45 * 4 - dropped), rel=0.2)


def test_the_last_round_is_not_recorded_twice():
    assert [row["round"] for row in run(rounds=40).history] == [0, 20, 40]


def test_history_describes_the_mean_of_the_parameters():
    outcome = run()
    problem = load_problem(parse_config(SMALL))
    mean = outcome.stacked_params.mean(axis=0)
    assert outcome.history[-1]["loss"] == problem.objective.loss(mean, problem.pooled_rows())
    assert outcome.history[-1]["consensus_distance"] == metrics.consensus_distance(outcome.stacked_params)
    start = problem.objective.loss(np.zeros(5), problem.pooled_rows())
    assert outcome.history[0]["loss"] == start
    assert outcome.loss_optimum == problem.optimum()


@pytest.mark.parametrize("kind", ["none", "bernoulli", "delays"])
def test_a_simulation_repeats_to_the_last_bit(kind):
    stragglers = {"kind": kind, "p": 0.5, "delay_p": 0.5, "link_p": 0.2}
    first, second = (run(stragglers=stragglers) for _ in range(2))
    np.testing.assert_array_equal(first.stacked_params, second.stacked_params)
    assert first.history == second.history
    other = run(stragglers=stragglers, seed=1)
    assert not np.array_equal(first.stacked_params, other.stacked_params)


def test_progress_hears_of_every_round():
    rounds = []
    run(progress=rounds.append)
    assert rounds == list(range(46))


def test_no_optimum_is_sought_unasked():
    assert run(record={"every": 20}).loss_optimum is None


def test_allreduce_keeps_everyone_equal_and_does_not_mind_stragglers():
    prompt = run(method={"kind": "allreduce"})
    late = run(method={"kind": "allreduce"}, stragglers={"kind": "bernoulli", "p": 0.5, "link_p": 0.5})
    assert np.ptp(prompt.stacked_params, axis=0).max() == 0.0
    np.testing.assert_array_equal(prompt.stacked_params, late.stacked_params)


def test_waiting_for_stragglers_is_as_good_as_having_none():
    prompt = run(method={"late": "wait"}, step={"kind": "constant", "size": 0.1})
    late = run(
        method={"late": "wait"}, step={"kind": "constant", "size": 0.1}, stragglers={"kind": "bernoulli", "p": 0.5}
    )
    np.testing.assert_allclose(late.stacked_params, prompt.stacked_params, rtol=0, atol=1e-12)


def largest_curvature(problem, rows):
    """Return the largest eigenvalue of the Hessian of least squares, which is constant."""
    return np.linalg.eigvalsh(problem.objective.hessian(np.zeros(problem.objective.n_params), rows))[-1]


def test_automatic_step_is_the_inverse_of_the_largest_curvature():
    # Everyone holds everything: all see the Hessian of F, which is constant.
    outcome = run(placement={"replication": 5})
    problem = load_problem(parse_config(SMALL))
    # Power iteration approaches it from below, to two digits; the step is rounded to six.
    largest = largest_curvature(problem, problem.pooled_rows())
    assert 1.0 / largest <= outcome.step_size * (1 + 1e-5)
    assert outcome.step_size == pytest.approx(1.0 / largest, rel=0.02)
    assert run(placement={"replication": 5}, step={"scale": 0.5}).step_size == pytest.approx(
        outcome.step_size / 2, rel=1e-5
    )


def test_automatic_step_of_gossip_is_decided_by_the_worker_with_the_largest_curvature():
    config = parse_config({**SMALL, "placement": {"kind": "uncoded"}})
    layout, problem = lay_out(config, 5), load_problem(config)
    largest = [largest_curvature(problem, problem.share(layout, worker).coded) for worker in range(5)]
    assert max(largest) > 1.1 * min(largest)
    step_size = simulate_experiment(config, 5).step_size
    assert step_size == pytest.approx(1.0 / max(largest), rel=0.02)


def test_real_stragglers_are_simulated_by_logical_ones():
    slow = run(stragglers={"kind": "slow", "ranks": [2], "factor": 5.0, "work_s": 9.0})
    persistent = run(stragglers={"kind": "persistent", "ranks": [2], "factor": 5.0})
    np.testing.assert_array_equal(slow.stacked_params, persistent.stacked_params)
    delayed = run(stragglers={"kind": "delays", "delay_p": 0.4, "delay_s": 9.0})
    bernoulli = run(stragglers={"kind": "bernoulli", "p": 0.4})
    np.testing.assert_array_equal(delayed.stacked_params, bernoulli.stacked_params)
    assert not np.array_equal(slow.stacked_params, run().stacked_params)


def test_one_worker_is_plain_gradient_descent():
    size, l2 = 0.1, 0.1
    outcome = run(1, placement={"replication": 1}, step={"kind": "constant", "size": size})
    train = load_problem(parse_config(SMALL)).train
    x = np.zeros(5)
    for _ in range(45):
        x -= size * (train.features.T @ (train.features @ x - train.targets) / train.n_samples + l2 * x)
    np.testing.assert_allclose(outcome.stacked_params[0], x, rtol=0, atol=1e-12)


def test_a_run_that_diverges_is_an_error():
    with pytest.raises(RunError, match="diverged"):
        run(rounds=2000, step={"kind": "constant", "size": 100.0})


def test_a_config_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"placement.replication must be between 1 and 1. Got 2"):
        run(1, placement={"replication": 2})


def test_by_default_a_shard_has_two_holders_where_there_are_as_many():
    assert run(1).ranks == [{"rank": 0, "rounds": 45}]
    layouts = [lay_out(parse_config({}), n_workers) for n_workers in (1, 2, 6)]
    assert [set(layout.placement.replication.tolist()) for layout in layouts] == [{1}, {2}, {2}]


@pytest.mark.parametrize("weights", ["paper", "own", "coverage"])
def test_workers_without_shards_follow_the_others_with_observed_rates_too(weights):
    method = {"rates": "ema", "weights": weights}
    outcome = run(25, placement={"replication": 2}, method=method, stragglers={"kind": "bernoulli", "p": 0.3})
    assert final_suboptimality(outcome) < 0.5
