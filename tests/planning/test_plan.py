"""Plans: three machines with three right answers, and what a plan is made of."""

import json

import numpy as np
import pytest

from goco_mpi.cli import main
from goco_mpi.config import parse_config, read_config, to_dict
from goco_mpi.core import survival
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.planning.plan import Candidate, Choice, Plan, describe, to_json, words
from goco_mpi.planning.planner import ALIKE, Planner
from goco_mpi.problem import load_problem
from goco_mpi.record import read_run, write_run
from goco_mpi.simulation.calibration import calibrate
from goco_mpi.simulation.seconds import simulate_in_time

N = 8
DIGITS = {"source": "digits", "standardize": True, "shards": 16, "test_fraction": 0.7}
SORTED, MIXED = {**DIGITS, "partition": "by_label"}, {**DIGITS, "partition": "iid"}
GAP = 0.05


def recorded(path, data, gradient_s, latency_s, slow=None, never=None, factor=10.0):
    """Write the record of an uncoded run whose ranks took so long, and return its directory.

    ``slow`` took ``factor`` times as long; ``never`` finished nothing.
    """
    stragglers = {}
    if slow is not None or never is not None:
        stragglers = {"kind": "slow", "ranks": [slow if never is None else never], "factor": factor}
    config = parse_config(
        {
            "rounds": 150,
            "data": data,
            "objective": {"kind": "softmax", "l2": 1e-2},
            "method": {"kind": "dgd"},
            "stragglers": stragglers,
        }
    )
    layout, problem = lay_out(config, N), load_problem(config)
    ranks = []
    for rank in range(N):
        seconds = gradient_s * (factor if rank == slow else 1.0)
        gradients = 0 if rank == never else 100
        ranks.append(
            {
                "rank": rank,
                "host": "here",
                "rows": problem.share(layout, rank).n_rows,
                "rounds": 100,
                "gradients": gradients,
                "partial_gradients": 0,
                "late_gradients": 0 if gradients else 1,
                "compute_s": 100 * seconds,
                "wait_s": 100 * latency_s,
                "wall_s": 100 * (seconds + latency_s),
                "messages_sent": 400,
                "messages_received": 400,
            }
        )
    row = {"wall_s": 0.0, "loss": 1.0, "consensus_distance": 0.0, "test_accuracy": None}
    outcome = Outcome([{"round": 0, **row}], ranks, np.zeros((N, problem.objective.n_params)), 0.1, 1.0, None)
    write_run(path, config, {"n_ranks": N}, outcome, force=True)
    return path


def planned(path, gap=GAP):
    found = calibrate(read_run(path))
    return Planner(found.config, found.n_workers, found.cost, gap).plan()


@pytest.fixture(scope="module")
def communication_bound(tmp_path_factory):
    """Shards of one class each, messages that take twenty gradients, and a slow rank."""
    path = tmp_path_factory.mktemp("runs") / "messages"
    return planned(recorded(path, SORTED, gradient_s=1e-3, latency_s=2e-2, slow=3, factor=50.0))


@pytest.fixture(scope="module")
def compute_bound(tmp_path_factory):
    """Shards that are alike, messages that are free, and a rank that is somewhat slow."""
    return planned(recorded(tmp_path_factory.mktemp("runs") / "work", MIXED, 2e-2, 1e-5, slow=3, factor=10.0))


@pytest.fixture(scope="module")
def with_a_dead_rank(tmp_path_factory):
    """Shards of one class each, and a rank that never answers."""
    return planned(recorded(tmp_path_factory.mktemp("runs") / "dead", SORTED, 2e-2, 1e-5, never=3, factor=1e9))


def test_where_messages_are_dear_and_shards_differ_it_says_to_code(communication_bound):
    plan = communication_bound
    assert plan.verdict == "code"
    assert plan.best.choice.replication > 1
    assert plan.message_share > 10.0
    assert plan.gain_over(plan.allreduce) > 1.5
    assert plan.gain_over(plan.uncoded) > ALIKE
    assert plan.dead == []
    said = " ".join(words(plan))
    assert said.startswith("Code:")
    assert "not compute-bound" in said


def test_where_gradients_are_dear_and_shards_alike_it_says_not_to_code(compute_bound):
    plan = compute_bound
    assert plan.verdict == "uncoded"
    assert plan.best.choice.replication == 1
    assert plan.message_share < 0.1
    # The slow rank is what gossip saves over allreduce.
    assert plan.gain_over(plan.allreduce) > 1.5
    coded = [c.seconds for c in plan.candidates if c.choice.coded and c.seconds is not None]
    assert plan.best.seconds <= ALIKE * min(coded)
    said = " ".join(words(plan))
    assert said.startswith("Do not code:")
    assert "compute-bound" in said
    assert "no rank" in said


def test_where_a_rank_is_dead_it_says_to_code_for_its_data_and_that_allreduce_never_ends(with_a_dead_rank):
    plan = with_a_dead_rank
    assert plan.dead == [3]
    assert plan.verdict == "code"
    assert plan.best.choice.replication >= 2
    assert plan.survives >= 1
    assert plan.allreduce.seconds is None
    assert "never ends" in plan.allreduce.reason
    assert any("Ranks [3] finish no gradient" in sentence for sentence in words(plan))


def test_the_best_is_no_slower_than_any_candidate_but_for_what_counts_as_alike(communication_bound, compute_bound):
    for plan in (communication_bound, compute_bound):
        reached = [c.seconds for c in plan.candidates if c.seconds is not None]
        assert plan.best.seconds <= ALIKE * min(reached)
        # The controls are always among them: everybody's data on one rank, with and without waiting.
        choices = [c.choice for c in plan.candidates]
        assert {"allreduce", "dgd", "goco", "push_pull", "table_newton"} <= {choice.kind for choice in choices}
        assert len(set(choices)) == len(choices)
        assert {choice.late for choice in choices} >= {"discard", "memory", "partial", "wait"}
        assert plan.uncoded.choice.replication == 1
        slower = [c.seconds for c in plan.candidates if c.choice.replication == 1 and c.choice.kind != "allreduce"]
        assert plan.uncoded.seconds == min((seconds for seconds in slower if seconds is not None), default=None)


def test_the_settings_of_a_plan_make_the_run_that_it_timed(communication_bound, tmp_path):
    best = communication_bound.best
    found = calibrate(read_run(recorded(tmp_path / "run", SORTED, 1e-3, 2e-2, slow=3, factor=50.0)))
    config = parse_config({**to_dict(found.config), **best.settings(), "rounds": best.rounds, "record": {"every": 1}})
    outcome = simulate_in_time(config, N, cost=found.cost, measured=True).outcome
    problem = load_problem(config)
    start, optimum = outcome.history[0]["loss"], problem.optimum()
    reached = [row["round"] for row in outcome.history if row["loss"] <= optimum + GAP * (start - optimum)]
    # The last row is that of the end, when all ranks are there; the plan's is that of half of them.
    assert reached
    assert reached[0] == best.rounds


def test_what_may_die_is_that_of_the_placement_it_chose(communication_bound):
    best = communication_bound.best
    config = parse_config({"data": {"shards": 16}, **{k: v for k, v in best.settings().items() if k != "step"}})
    placement = lay_out(config, N).placement
    assert communication_bound.survives == survival.survives(placement) == best.choice.replication - 1
    assert communication_bound.loss_probability[0.05] == survival.loss_probability(placement, 0.05)


def test_a_gap_that_nobody_reaches_is_said(tmp_path):
    raw = {"rounds": 1, "data": SORTED, "objective": {"kind": "softmax", "l2": 1e-2}, "step": {"scale": 1e-3}}
    plan = Planner(parse_config(raw), 4, gap=1e-9).plan()
    assert plan.verdict == "none"
    assert plan.best is None
    assert plan.gain_over(plan.allreduce) is None
    assert words(plan)[0].startswith("No candidate")
    document = json.loads(to_json(plan))
    assert (document["best"], document["gain_over_allreduce"]) == (None, None)


def test_json_says_the_same(with_a_dead_rank):
    plan = with_a_dead_rank
    document = json.loads(to_json(plan))
    assert document["verdict"] == "code"
    assert document["nodes"] == N
    assert document["best"]["seconds"] == plan.best.seconds
    assert document["gain_over_allreduce"] is None  # it never gets there
    assert document["loss_probability"] == {f"{rho:g}": p for rho, p in plan.loss_probability.items()}
    assert [c["choice"] for c in document["candidates"]] == [describe(c.choice) for c in plan.candidates]
    parse_config(document["best"]["settings"])  # as it stands, these are tables of an experiment


EXPERIMENT = """\
rounds = 40
[data]
source = "synthetic"
n_samples = 200
n_features = 4
shards = 8
[objective]
kind = "least_squares"
"""


def test_the_command_plans_an_experiment_and_prints_settings_that_can_be_used(tmp_path, capsys):
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    assert main(["plan", str(tmp_path / "e.toml"), "--nodes", "4", "--set", "cost.compute_s=0.001"]) == 0
    out = capsys.readouterr().out
    assert "allreduce" in out
    settings = next(line for line in out.splitlines() if line.startswith("settings: ")).split()[2::2]
    config = read_config(tmp_path / "e.toml", settings)
    assert lay_out(config, 4).method.name in {"allreduce", "dgd", "goco", "push_pull", "table_newton"}
    assert main(["plan", str(tmp_path / "e.toml"), "--nodes", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 4


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--nodes", "1"], "several nodes"),
        (["--nodes", "0"], "several nodes"),
        (["--gap", "0"], "--gap must be"),
        (["--gap", "nan"], "--gap must be"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, rule):
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    assert main(["plan", str(tmp_path / "e.toml"), *options]) == 2
    assert rule in capsys.readouterr().err


def test_a_recorded_run_cannot_be_changed(tmp_path, capsys):
    assert main(["plan", str(tmp_path), "--set", "rounds=3"]) == 2
    assert "a recorded run is what it is" in capsys.readouterr().err


def test_a_plan_without_a_run_that_tells_costs_is_refused(tmp_path):
    with pytest.raises(InputError):
        planned(tmp_path)


def test_a_gap_too_near_the_start_is_said():
    found = Candidate(Choice("dgd", 1, "ring"), {}, 2.0, 2)
    allreduce = Candidate(Choice("allreduce", 1, "ring"), {}, 6.0, 2)
    plan = Plan(8, 0.5, [found, allreduce], found, "uncoded", allreduce, found, 0, {0.1: 0.2}, 2.0, [])
    assert "smaller --gap" in words(plan)[-1]


@pytest.mark.parametrize(("kind", "replications"), [("dgd", {1}), ("goco", {1, 2}), ("push_pull", {1, 2})])
def test_only_coded_methods_are_tried_with_several_holders(kind, replications):
    raw = {"data": {"source": "synthetic", "n_samples": 100, "n_features": 3}, "objective": {"kind": "least_squares"}}
    planner = Planner(parse_config(raw), 4)
    varied = list(planner._variations(Candidate(Choice(kind, 1, "exponential"), {}, 1.0, 10)))
    assert {choice.replication for choice in varied} == replications
    assert {choice.kind for choice in varied} == {kind}


def test_gains_are_ratios_of_times_and_infinite_over_what_never_gets_there():
    best, other, never = (
        Candidate(Choice("goco", 2, "ring"), {}, 2.0, 10),
        Candidate(Choice("goco", 1, "ring"), {}, 6.0, 10),
        Candidate(Choice("allreduce", 1, "ring"), {}, reason="not within 10 rounds"),
    )
    plan = Plan(8, 0.01, [best, other, never], best, "code", never, other, 1, {0.1: 0.2}, 2.0, [])
    assert plan.gain_over(other) == 3.0
    assert plan.gain_over(never) == float("inf")
    assert "3 times as fast as goco, d = 1" in words(plan)[0]
    assert "allreduce does not get (not within 10 rounds)" in words(plan)[0]


def test_a_plan_says_what_replication_gains_by_how_different_the_shards_are():
    other = Candidate(Choice("allreduce", 1, "ring"), {}, 6.0, 20)
    found = [
        Plan(8, 0.1, [], None, "none", other, other, 0, {}, 2.0, [], n_shards=16, gradient_dissimilarity=figure)
        for figure in (24.0, 1e-3, None)
    ]
    sorted_, mixed, unknown = ([said for said in words(plan) if "dissimilarity" in said] for plan in found)
    # Two of 16 shards: 24 / 2 * 14 / 15; four: 24 / 4 * 12 / 15.
    assert "is 24: " in sorted_[0]
    assert "off by about 335 % of their mean" in sorted_[0]
    assert "with two holders a shard by 219 %" in sorted_[0]
    assert "so alike that replication makes little difference" in mixed[0]
    assert unknown == []


def test_a_refused_candidate_says_which_rule_it_breaks():
    data = {"source": "synthetic", "n_samples": 100, "n_features": 3, "shards": 4, "batch_size": 5}
    config = parse_config({"rounds": 3, "data": data, "objective": {"kind": "least_squares"}})
    reasons = {found.choice.kind: found.reason for found in Planner(config, 2).plan().candidates}
    assert reasons["table_newton"] == (
        "data.batch_size is not sound with method.kind = 'table_newton', which reads the curvature off differences of "
        "gradients"
    )
