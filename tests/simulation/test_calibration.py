"""What a recorded run says of the machine that it ran on."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from goco_mpi.cli import main
from goco_mpi.config import parse_config
from goco_mpi.core.events import NONE
from goco_mpi.errors import InputError
from goco_mpi.outcome import Outcome
from goco_mpi.record import read_run, write_run
from goco_mpi.simulation.calibration import calibrate, read_traces
from goco_mpi.simulation.prediction import predict

RAW = {
    "rounds": 20,
    "data": {"source": "synthetic", "n_samples": 100, "n_features": 3, "shards": 4, "test_fraction": 0.0},
    "objective": {"kind": "least_squares"},
    "topology": {"kind": "ring"},
}
TIMEOUT_S = 60


def rank(number, **counts):
    row = {
        "rank": number,
        "host": "here",
        "rows": 50,
        "rounds": 20,
        "gradients": 20,
        "partial_gradients": 0,
        "late_gradients": 0,
        "compute_s": 2.0,
        "wait_s": 0.5,
        "wall_s": 3.0,
        "messages_sent": 20,
        "messages_received": 20,
    }
    return {**row, **counts}


def written(path, ranks, tables=None, times=None, environment=None, **tables_of_config):
    """Write a record of two ranks with these counts, events and times."""
    outcome = Outcome(
        history=[
            {"round": 0, "wall_s": 0.0, "loss": 1.0, "consensus_distance": 0.0, "test_accuracy": None},
            {"round": 20, "wall_s": 3.0, "loss": 0.5, "consensus_distance": 0.0, "test_accuracy": None},
        ],
        ranks=ranks,
        stacked_params=np.zeros((len(ranks), 4)),
        step_size=0.1,
        wall_s=3.0,
        loss_optimum=None,
        events=tables,
        timeline=times,
    )
    config = parse_config({**RAW, **tables_of_config})
    write_run(path, config, {"n_ranks": len(ranks), **(environment or {})}, outcome, force=True)
    return read_run(path)


def test_without_a_timeline_it_is_each_ranks_mean(tmp_path):
    run = written(tmp_path / "run", [rank(0), rank(1, gradients=4, late_gradients=1, rows=25)])
    found = calibrate(run)
    # 37.5 rows on the average: times are those of so many rows.
    assert found.cost.rows == 37.5
    assert np.concatenate(found.cost.traces) == pytest.approx([0.1 * 37.5 / 50, 0.4 * 37.5 / 25])
    assert found.cost.gradient_s(0, 0, 50) == pytest.approx(0.1)
    assert found.cost.gradient_s(1, 7, 50) == pytest.approx(0.8)
    # Half a second is neither computing nor waiting, and 40 messages were handled in it.
    assert found.cost.overhead_s == pytest.approx(0.5 / 40)
    assert found.n_workers == 2


def test_a_rank_that_never_finished_a_gradient_never_does(tmp_path):
    run = written(tmp_path / "run", [rank(0), rank(1, gradients=0, late_gradients=1)])
    assert calibrate(run).cost.gradient_s(1, 3, 50) == math.inf


EVENTS = np.array(
    # round, point, step of the neighbour; the last row is the goodbye
    [[0, 0, 0], [1, 1, 1], [3, NONE, 2], [3, 2, 3], [4, NONE, 4], [5, 5, 5], [6, NONE, NONE]],
    dtype=np.int32,
)
TIMES = np.array(
    # offered, waiting over, mixed, arrival, suspect
    [
        [1.0, 1.5, 2.0, 0.9, 0],
        [3.0, 3.5, 4.0, 2.9, 0],  # 1 s
        [6.0, 6.0, 6.5, 5.0, 0],  # in the middle of a gradient: nobody was waited for
        [7.5, 8.0, 8.5, 7.0, 0],  # 2 s + 1 s
        [9.0, 9.5, 10.0, 9.0, 0],  # 0.5 s, and cut
        [14.0, 14.5, 15.0, 13.0, 0],  # 4 s
    ]
)


def test_a_timeline_tells_the_time_of_every_gradient_with_the_gossip_in_its_middle(tmp_path):
    run = written(tmp_path / "run", [rank(0), rank(1)], [EVENTS] * 2, [TIMES] * 2)
    for trace in calibrate(run).cost.traces:
        np.testing.assert_allclose(trace, [1.0, 3.0, 0.5, 4.0], rtol=1e-12)


def test_with_memory_a_gradient_ends_with_the_first_step_that_it_is_used_in(tmp_path):
    events = EVENTS.copy()
    events[:6, 1] = [0, 0, 1, 1, 1, 3]  # its point: used in steps 0, 2 and 5 first
    run = written(tmp_path / "run", [rank(0), rank(1)], [events] * 2, [TIMES] * 2, method={"late": "memory"})
    for trace in calibrate(run).cost.traces:
        np.testing.assert_allclose(trace, [1.0 + 2.0, 1.0 + 0.5 + 4.0], rtol=1e-12)


def test_the_latency_is_what_quick_messages_take(tmp_path):
    late = TIMES.copy()
    late[:, 3] = TIMES[:, 0] + [0.25, 0.25, 0.25, 0.25, 2.0, 2.0]
    cost = {"bytes_per_s": 8.0 * 8 / 0.125}  # a message of eight numbers keeps the link for an eighth of a second
    method = {"rates": "stated"}  # the ranks tell each other nothing: a header of four, and four parameters
    ranks = [rank(0, rounds=6), rank(1, rounds=6)]
    run = written(tmp_path / "run", ranks, [EVENTS] * 2, [late] * 2, cost=cost, method=method)
    assert calibrate(run).cost.latency_s == pytest.approx(0.125)


def test_what_else_a_message_carries_takes_its_time_too(tmp_path):
    late = TIMES.copy()
    late[:, 3] = TIMES[:, 0] + 0.25
    cost = {"bytes_per_s": 12.0 * 8 / 0.125}  # a header of four, four parameters, and a round and a rate of each rank
    ranks = [rank(0, rounds=6), rank(1, rounds=6)]
    run = written(tmp_path / "run", ranks, [EVENTS] * 2, [late] * 2, cost=cost, method={"rates": "ema"})
    assert calibrate(run).cost.latency_s == pytest.approx(0.125)


def test_steps_of_a_run_that_was_resumed_do_not_begin_with_0(tmp_path):
    """Its times and events do, where the checkpoint was: rank 0 had made 14 steps until then, and rank 1 only 9."""
    late = TIMES.copy()
    late[:, 3] = TIMES[:, 0] + 0.25
    first = np.array([14, 9])
    tables = []
    for own, other in ((0, 1), (1, 0)):
        table = EVENTS.copy()
        table[:, 1] = np.where(EVENTS[:, 1] == NONE, NONE, EVENTS[:, 1] + first[own])
        table[:, 2] = np.where(EVENTS[:, 2] == NONE, NONE, EVENTS[:, 2] + first[other])
        table[0, 2] = first[other] - 1  # the newest message then was one from before the checkpoint
        tables.append(table)
    late[0, 3] = np.nan
    run = written(tmp_path / "run", [rank(0, rounds=20), rank(1, rounds=15)], tables, [late] * 2)
    found = calibrate(run).cost
    assert found.latency_s == pytest.approx(0.25, rel=1e-6)
    for trace in found.traces:
        np.testing.assert_allclose(trace, [1.0, 3.0, 0.5, 4.0], rtol=1e-12)


def test_a_simulation_says_nothing_of_a_machine(tmp_path):
    run = written(tmp_path / "run", [rank(0), rank(1)], environment={"simulated": True})
    with pytest.raises(InputError, match="was simulated"):
        calibrate(run)


def test_data_without_rows_are_refused(tmp_path):
    run = written(tmp_path / "run", [rank(0, rows=0), rank(1, rows=0)])
    with pytest.raises(InputError, match="no rows"):
        calibrate(run)


def test_a_run_that_ended_before_its_first_step_has_nothing_to_predict(tmp_path):
    nothing = {"rounds": 0, "gradients": 0, "compute_s": 0.0, "wait_s": 0.0}
    run = written(tmp_path / "run", [rank(0, **nothing), rank(1, **nothing)])
    with pytest.raises(InputError, match="ended before its first step"):
        predict(run)


def test_a_run_directory_serves_as_a_trace(tmp_path):
    written(tmp_path / "run", [rank(0), rank(1)])
    traces, rows = read_traces(tmp_path / "run")
    assert ([trace.tolist() for trace in traces], rows) == ([[0.1], [0.1]], 50.0)


@pytest.mark.parametrize(("text", "rule"), [("", "and it is empty"), ("rounds = 3\n", "could not convert string")])
def test_a_trace_that_holds_no_seconds_is_refused_in_one_line(tmp_path, text, rule):
    (tmp_path / "trace.txt").write_text(text)
    with pytest.raises(InputError, match=rf"trace.txt' must be a text file of seconds.*{rule}.*(?<!\.)\.$"):
        read_traces(tmp_path / "trace.txt")


def test_a_real_run_is_predicted_from_its_own_record(tmp_path, mpiexec, capsys):
    work_s = 5e-3
    settings = ["rounds=30", f"stragglers.work_s={work_s}", "method.late=wait", "record.timeline=true"]
    (tmp_path / "e.toml").write_text(
        '[data]\nsource = "synthetic"\nn_samples = 200\nn_features = 4\n[objective]\nkind = "least_squares"\n'
    )
    command = [*mpiexec, "-n", "2", sys.executable, "-m", "goco_mpi", "run", "e.toml", "--out", "run", "--quiet"]
    subprocess.run(
        [*command, *(word for setting in settings for word in ("--set", setting))],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=TIMEOUT_S,
        check=True,
    )
    found = predict(read_run(tmp_path / "run"))
    for trace in found.calibration.cost.traces:
        assert trace.size == 29  # all but the first, of which no one knows when it began
        assert trace.min() >= work_s  # sleeping is never shorter
    # Everybody waits for everybody: as many steps and gradients, and no less time than the work takes.
    np.testing.assert_array_equal(found.simulated["gradients"], [30, 30])
    np.testing.assert_array_equal(found.recorded["gradients"], [30, 30])
    assert (found.simulated["wall_s"] >= 30 * work_s).all()
    assert (found.simulated["wall_s"] >= max(trace.sum() for trace in found.calibration.cost.traces)).all()
    assert main(["calibrate", str(tmp_path / "run")]) == 0
    assert "error of the simulation" in capsys.readouterr().out
