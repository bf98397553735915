"""Whole experiments in simulated seconds."""

import numpy as np
import pytest

from goco_mpi.cli import main
from goco_mpi.config import parse_config
from goco_mpi.core import metrics
from goco_mpi.errors import InputError, RunError
from goco_mpi.record import read_run
from goco_mpi.simulation.rounds import simulate_experiment
from goco_mpi.simulation.seconds import cost_model, simulate_in_time

SMALL = {
    "rounds": 45,
    "data": {"source": "synthetic", "n_samples": 100, "n_features": 4, "shards": 10, "test_fraction": 0.0},
    "objective": {"kind": "least_squares", "l2": 0.1},
    "record": {"every": 20, "optimum": True},
    "cost": {"compute_s": 0.5, "latency_s": 0.125, "overhead_s": 0.0, "bytes_per_s": 1e300},
}
WAIT = {"method": {"late": "wait"}}


def run(n_workers=5, **tables):
    return simulate_in_time(parse_config({**SMALL, **tables}), n_workers).outcome


def test_where_all_wait_the_history_is_the_simulators_with_the_seconds_of_the_cost_model():
    found, expected = run(**WAIT), simulate_experiment(parse_config({**SMALL, **WAIT}), 5)
    # Two holders a shard: a gradient is twice that of an equal part, and a message an eighth of a second.
    assert [(row["round"], row["wall_s"]) for row in found.history] == [
        (round_, 1.125 * round_) for round_ in (0, 20, 40, 45)
    ]
    for name in ("loss", "consensus_distance"):
        np.testing.assert_allclose(
            [row[name] for row in found.history], [row[name] for row in expected.history], rtol=0, atol=1e-12
        )
    assert [list(row) for row in found.history] == [list(row) for row in expected.history]
    assert found.wall_s == 1.125 * 45
    assert found.loss_optimum == expected.loss_optimum
    assert [row["rows"] for row in found.ranks] == [40] * 5


def test_allreduce_is_timed_too():
    found = run(method={"kind": "allreduce"}, stragglers={"kind": "slow", "ranks": [1], "factor": 4.0})
    # 4 half seconds, and 2 x 3 latencies for five workers.
    assert found.wall_s == pytest.approx(45 * (2.0 + 6 * 0.125), rel=1e-12)
    assert found.history[-1]["wall_s"] == pytest.approx(found.wall_s, rel=1e-12)


def test_a_slow_worker_holds_allreduce_up_and_not_goco():
    slow = {"stragglers": {"kind": "slow", "ranks": [1], "factor": 10.0}}
    undisturbed, disturbed = run(), run(**slow)
    assert disturbed.history[-1]["wall_s"] < 1.1 * undisturbed.history[-1]["wall_s"]
    allreduce = run(method={"kind": "allreduce"}, **slow)
    assert allreduce.wall_s > 4.0 * disturbed.history[-1]["wall_s"]
    gap = metrics.suboptimality(disturbed.history[-1]["loss"], disturbed.history[0]["loss"], disturbed.loss_optimum)
    assert gap < 0.1


def test_a_target_loss_ends_it_at_the_first_row_that_reaches_it():
    whole = run(record={"every": 1})
    target = whole.history[10]["loss"]
    found = run(record={"every": 1}, stop={"target_loss": target})
    first = next(row["round"] for row in whole.history if row["loss"] <= target)
    assert (found.history[-1]["round"], found.stopped_by) == (first, "target_loss")
    assert [row["round"] for row in found.history] == list(range(first + 1))


def test_a_time_limit_ends_it_at_the_first_row_past_it():
    found = run(record={"every": 1}, stop={"time_limit_s": 10.0}, **WAIT)
    assert (found.history[-1]["round"], found.stopped_by) == (9, "time_limit_s")  # 9 x 1.125 s
    assert found.history[-1]["wall_s"] == 9 * 1.125


def test_the_cost_of_a_gradient_is_that_of_an_equal_part_of_the_rows_unless_rows_are_given():
    def gradient_s(**cost):
        return cost_model(parse_config({"cost": {"compute_s": 3.0, **cost}}), 50.0).gradient_s(0, 0, 100)

    assert gradient_s() == 6.0
    assert gradient_s(rows=10) == 30.0


def test_a_file_of_seconds_is_a_trace_with_a_column_for_each_worker(tmp_path):
    (tmp_path / "seconds.txt").write_text("1.0 10.0\n2.0 20.0\n")
    cost = cost_model(parse_config({"cost": {"compute": "trace", "trace": str(tmp_path / "seconds.txt")}}), 50.0)
    assert [cost.gradient_s(worker, k, 50) for worker in (0, 1) for k in (0, 1, 2)] == [1, 2, 1, 10, 20, 10]


@pytest.mark.parametrize("text", ["", "fast\n", "1.0 2.0\n3.0\n"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_file_that_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "seconds.txt").write_text(text)
    config = parse_config({"cost": {"compute": "trace", "trace": str(tmp_path / "seconds.txt")}})
    with pytest.raises(InputError, match=r"cost\.trace"):
        cost_model(config, 50.0)


def test_a_missing_trace_is_refused_by_name(tmp_path):
    config = parse_config({"cost": {"compute": "trace", "trace": str(tmp_path / "none.txt")}})
    with pytest.raises(InputError, match=r"none\.txt"):
        cost_model(config, 50.0)


@pytest.mark.parametrize(
    ("cost", "rule"),
    [
        ({"compute": "normal"}, "must be one of"),
        ({"compute_s": 0.0}, "positive"),
        ({"bytes_per_s": float("inf")}, "positive, finite"),
        ({"latency_s": -1.0}, "at least 0"),
        ({"slow_p": 1.5}, "between 0 and 1"),
        ({"slow_factor": 0.5}, "at least 1"),
        ({"rows": 0}, "between 1 and"),
        ({"compute": "trace"}, r"cost\.trace goes with"),
        ({"trace": "x"}, r"cost\.trace goes with"),
    ],
)
def test_costs_that_cannot_be_are_refused(cost, rule):
    with pytest.raises(InputError, match=rule):
        parse_config({"cost": cost})


def test_the_command_writes_a_record_that_can_be_reported(tmp_path, capsys):
    experiment = tmp_path / "e.toml"
    experiment.write_text(
        "rounds = 30\n[data]\nsource = 'synthetic'\nn_samples = 100\nn_features = 3\n[objective]\nkind = "
        "'least_squares'\n[record]\noptimum = true\n"
    )
    out = tmp_path / "run"
    assert main(["simulate", str(experiment), "--time", "--workers", "6", "--out", str(out)]) == 0
    assert "a second" in capsys.readouterr().out
    found = read_run(out)
    assert found.run["environment"]["simulated"] is True
    assert found.run["result"]["wall_s"] > 29 * 0.02
    assert (np.diff(found.history["wall_s"]) > 0.0).all()
    assert main(["report", str(out)]) == 0


def test_a_run_that_diverges_is_an_error():
    with pytest.raises(RunError, match="diverged"):
        run(rounds=2000, step={"kind": "constant", "size": 100.0})
