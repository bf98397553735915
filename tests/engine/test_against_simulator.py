"""The oracle: a scripted run on MPI ends in the simulator's parameters."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from resumption import assert_resumes_bit_for_bit

from goco_mpi.config import parse_config
from goco_mpi.core import topology
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.errors import InputError
from goco_mpi.outcome import Outcome
from goco_mpi.simulation.rounds import simulate_experiment

INF = float("inf")
OPTIONS = {
    "random_regular": {"degree": 2},
    "erdos_renyi": {"p": 0.8},
}


def experiment(n_workers: int, **tables: Any) -> dict:
    raw = {
        "seed": 3,
        "rounds": 25,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 12, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "placement": {"replication": min(2, n_workers)},
        "deadline": {"compute_s": INF, "gossip_s": INF},
        "stragglers": {"kind": "bernoulli", "p": 0.3, "link_p": 0.25},
        "record": {"every": 5},
    }
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table} if isinstance(table, dict) else table
    return raw


def assert_equals_simulation(raw: dict) -> None:
    if "GOCO_TESTS_RESUMED" in os.environ:  # with --goco-resumed
        assert_resumes_bit_for_bit(raw)
        return
    config = parse_config(raw)
    with Session() as session:
        outcome = train(config, session)
        if session.rank > 0:
            return
        expected = simulate_experiment(config, session.size)
    assert outcome is not None
    np.testing.assert_allclose(outcome.stacked_params, expected.stacked_params, rtol=1e-12, atol=1e-14)
    assert outcome.step_size == expected.step_size
    assert outcome.gradient_dissimilarity == pytest.approx(expected.gradient_dissimilarity, rel=1e-9)
    for mine, theirs in zip(outcome.history, expected.history, strict=True):
        assert mine["round"] == theirs["round"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
        assert mine["consensus_distance"] == pytest.approx(theirs["consensus_distance"], rel=1e-8, abs=1e-12)
        assert mine["test_accuracy"] == pytest.approx(theirs["test_accuracy"])
        assert mine["shard_gradients"] == theirs["shard_gradients"]
    assert_messages_are_those_of_the_simulation(outcome, expected, config.method.kind == "allreduce")
    # The comparison is worth something only if the rounds moved the parameters.
    assert np.abs(expected.stacked_params).max() > 1e-3


def assert_messages_are_those_of_the_simulation(outcome: Outcome, expected: Outcome, collective: bool) -> None:
    """Check the bytes of every round: of its messages some may still be waiting; gossip ends with goodbyes."""
    last = expected.history[-1]
    one_round = last["bytes_sent"] / last["round"] * (1.0 + 1e-12)
    for mine, theirs in zip(outcome.history[:-1], expected.history[:-1], strict=True):
        assert theirs["bytes_sent"] - one_round <= mine["bytes_sent"] <= theirs["bytes_sent"]
    goodbyes = 0.0 if collective else one_round
    assert outcome.history[-1]["bytes_sent"] == pytest.approx(last["bytes_sent"] + goodbyes, rel=1e-10)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("mixing", ["stale", "fold"])
@pytest.mark.parametrize("kind", [kind for kind in topology.KINDS if kind != "edges"])
def test_every_topology_and_mixing_rule(kind: str, mixing: str) -> None:
    size = MPI.COMM_WORLD.size
    try:
        topology.build(kind, size, **{"seed": 3, **OPTIONS[kind]} if kind in OPTIONS else {})
    except InputError:
        return  # this many workers form no such graph; its refusal is tested elsewhere
    raw = experiment(size, topology={"kind": kind, **OPTIONS.get(kind, {})}, method={"mixing": mixing, "max_age": 2})
    assert_equals_simulation(raw)


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("kind", ["pairwise_balanced", "cyclic", "uncoded"])
@pytest.mark.parametrize("weights", ["paper", "own", "coverage", "plain"])
def test_every_placement_and_weight(kind: str, weights: str) -> None:
    size = MPI.COMM_WORLD.size
    assert_equals_simulation(
        experiment(size, topology={"kind": "complete"}, placement={"kind": kind}, method={"weights": weights})
    )


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("method", ["dgd", "allreduce"])
@pytest.mark.parametrize("late", ["discard", "wait"])
def test_every_other_method(method: str, late: str) -> None:
    size = MPI.COMM_WORLD.size
    assert_equals_simulation(experiment(size, topology={"kind": "ring"}, method={"kind": method, "late": late}))


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(("source", "kind"), [("breast_cancer", "logistic"), ("synthetic_sparse", "softmax")])
def test_features_in_float32_dense_and_csr(source: str, kind: str) -> None:
    data = {"source": source, "dtype": "float32", "n_samples": 400, "n_features": 30, "standardize": True}
    assert_equals_simulation(
        experiment(MPI.COMM_WORLD.size, topology={"kind": "ring"}, data=data, objective={"kind": kind})
    )


SOLVERS = ["descent", "nesterov", "cg", "lbfgs"]
PROBLEMS = {
    "logistic": {},
    "least squares": {
        "data": {
            "source": "synthetic",
            "partition": "in_order",
            "heterogeneity": 0.5,
            "n_samples": 600,
            "n_features": 20,
        },
        "objective": {"kind": "least_squares"},
    },
}


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_way_to_use_the_mean_gradient(solver: str, problem: str) -> None:
    size = MPI.COMM_WORLD.size
    for rounds in (4, 25):
        raw = experiment(size, **PROBLEMS[problem], method={"kind": "allreduce", "solver": solver})
        assert_equals_simulation({**raw, "rounds": rounds})


@pytest.mark.mpi(min_size=1)
def test_preconditioned_conjugate_gradients() -> None:
    size = MPI.COMM_WORLD.size
    method = {"kind": "allreduce", "solver": "cg", "preconditioner": "local"}
    for rounds in (4, 5, 25):
        raw = experiment(size, **PROBLEMS["least squares"], method=method)
        assert_equals_simulation({**raw, "rounds": rounds})


RULES = [
    ("push_pull", "fold"),
    ("push_pull", "stale"),
    ("push_pull", "symmetric"),
    ("exact_diffusion", "symmetric"),
    ("goco", "symmetric"),
    ("goco", "running"),
    ("dgd", "running"),
]


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "memory"])
@pytest.mark.parametrize("kind", ["ring", "star"])
@pytest.mark.parametrize(("method", "mixing"), RULES)
def test_methods_and_rules_that_conserve_something(method: str, mixing: str, kind: str, late: str) -> None:
    # With the lost links and Bernoulli stragglers of all these experiments.
    size = MPI.COMM_WORLD.size
    if kind == "star" and size < 3:
        return  # that is the ring
    section = {"kind": method, "mixing": mixing, "late": late, "max_age": 2}
    # A short step: past it, methods that are not stable show rounding rather than what they do.
    step = {"kind": "constant", "size": 0.02}
    assert_equals_simulation(experiment(size, topology={"kind": kind}, method=section, step=step))


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize(
    ("late", "rates", "weights"),
    [
        ("discard", "counted", "coverage"),
        ("discard", "ema", "coverage"),
        ("discard", "ema", "own"),
        ("discard", "ema", "paper"),
        ("partial", "ema", "coverage"),
        ("partial", "counted", "coverage"),
        ("memory", "live", "coverage"),
    ],
)
@pytest.mark.parametrize("mixing", ["stale", "fold", "running"])
def test_weights_that_follow_what_the_ranks_tell_of_their_rates(
    late: str, rates: str, weights: str, mixing: str
) -> None:
    size = MPI.COMM_WORLD.size
    section = {"late": late, "rates": rates, "weights": weights, "mixing": mixing, "max_age": 2}
    # Links so bad that news may be missing for longer than rates.QUIET_ROUNDS, or rates.DEAD_ROUNDS.
    stragglers = {**PERSISTENT, "link_p": [0.998 if rates == "live" else 0.8, *[0.8] * (size - 1)]}
    n_rounds = 300 if rates == "live" else 60
    raw = experiment(size, topology={"kind": "ring"}, method=section, stragglers=stragglers, rounds=n_rounds)
    assert_equals_simulation(raw)


PERSISTENT = {"kind": "persistent", "ranks": [0], "factor": 4.0, "p": 0.2}


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "partial", "memory", "wait"])
@pytest.mark.parametrize("mixing", ["stale", "fold"])
@pytest.mark.parametrize("stragglers", [{}, PERSISTENT], ids=["bernoulli", "persistent"])
def test_every_late_policy_under_lost_links(late: str, mixing: str, stragglers: dict) -> None:
    size = MPI.COMM_WORLD.size
    assert_equals_simulation(
        experiment(
            size,
            topology={"kind": "ring"},
            method={"late": late, "mixing": mixing, "max_age": 2},
            stragglers=stragglers,
        )
    )


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("weights", ["own", "coverage"])
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
def test_ranks_and_links_that_are_unequally_late_and_a_dead_rank(late: str, weights: str) -> None:
    size = MPI.COMM_WORLD.size
    p = [1.0, *np.linspace(0.0, 0.6, size - 1).tolist()]
    assert_equals_simulation(
        experiment(
            size,
            method={"late": late, "weights": weights, "max_age": 2},
            stragglers={"p": p, "link_p": np.linspace(0.6, 0.0, size).tolist()},
        )
    )


COMPRESSIONS = [
    {"compression": "top_k", "compression_ratio": 0.3},
    {"compression": "random_k", "compression_ratio": 0.2},
    {"compression": "quantize", "compression_bits": 4},
    {"compression": "quantize", "consensus_step": 0.5, "kind": "dgd"},
]


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "memory", "wait"])
@pytest.mark.parametrize("method", COMPRESSIONS, ids=lambda method: " ".join(map(str, method.values())))
def test_compressed_messages_under_lost_links(method: dict, late: str) -> None:
    size = MPI.COMM_WORLD.size
    # Losses of more than max_age messages in a row, too.
    assert_equals_simulation(
        {**experiment(size, topology={"kind": "ring"}, method={**method, "late": late, "max_age": 2}), "rounds": 60}
    )


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "partial", "memory", "wait"])
@pytest.mark.parametrize(
    "method",
    [
        {},
        {"kind": "push_pull"},
        {"kind": "exact_diffusion", "late": "memory"},
        {"kind": "allreduce"},
        {"compression": "top_k", "compression_ratio": 0.3},
    ],
    ids=lambda method: " ".join(map(str, method.values())) or "goco",
)
def test_minibatches_of_any_method_and_policy(method: dict, late: str) -> None:
    size = MPI.COMM_WORLD.size
    if late == "partial" and method.get("kind") in ("push_pull", "exact_diffusion"):
        return  # these remember whole gradients
    # Shards of 37 and 38 rows, of which some are drawn.
    raw = experiment(size, topology={"kind": "ring"}, method={"late": late, **method}, data={"batch_size": 5})
    assert_equals_simulation({**raw, "step": {"kind": "constant", "size": 0.02}})


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["discard", "partial", "wait"])
@pytest.mark.parametrize("kind", ["ring", "exponential"])
def test_several_gossip_rounds_to_a_gradient(kind: str, late: str) -> None:
    size = MPI.COMM_WORLD.size
    section = {"gossip_rounds": 3, "late": late}
    stragglers = {"link_p": 0.0}
    assert_equals_simulation(experiment(size, topology={"kind": kind}, method=section, stragglers=stragglers))


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("mixing", ["stale", "fold", "symmetric"])
@pytest.mark.parametrize("late", ["discard", "partial", "memory", "wait"])
def test_momentum_under_every_late_policy(late: str, mixing: str) -> None:
    size = MPI.COMM_WORLD.size
    section = {"momentum": 0.8, "late": late, "mixing": mixing, "max_age": 2}
    step = {"kind": "decreasing", "size": 0.05, "tau": 20.0}
    assert_equals_simulation(experiment(size, topology={"kind": "ring"}, method=section, step=step))


@pytest.mark.mpi(min_size=2)
def test_bytes_are_those_of_the_compressed_messages() -> None:
    with Session() as session:
        sent = []
        for method in ({}, {"compression": "quantize", "compression_bits": 4}):
            outcome = train(parse_config({**experiment(session.size, method=method), "rounds": 10}), session)
            if outcome is not None:
                sent.append([row["bytes_sent"] / row["messages_sent"] for row in outcome.ranks])
    if sent:
        n = 31  # breast_cancer has 30 columns and an intercept
        assert sent[0] == [8 * (4 + n)] * session.size
        # Header; number, a seventh of the references and a scale (two to a word), codes.
        assert sent[1] == [8 * (4 + 1 + 3 + 1 + 2)] * session.size


@pytest.mark.mpi(min_size=1)
def test_late_policies_end_in_parameters_of_their_own() -> None:
    # Where they did not, the comparison with the simulator would say nothing about them.
    with Session() as session:
        ends = []
        for late in ("discard", "partial", "memory", "wait"):
            raw = experiment(session.size, topology={"kind": "ring"}, method={"late": late, "weights": "plain"})
            outcome = train(parse_config(raw), session)
            if outcome is not None:
                ends.append(outcome.stacked_params)
    for place, one in enumerate(ends):
        for other in ends[:place]:
            assert np.abs(one - other).max() > 1e-6


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["partial", "memory"])
@pytest.mark.parametrize(
    "tables",
    [
        {"data": {"source": "digits"}, "objective": {"kind": "softmax"}},
        {"placement": {"kind": "uncoded"}, "data": {"shards": 40}},
        {"placement": {"kind": "cyclic"}, "step": {"kind": "decreasing", "size": 0.5, "tau": 10.0}},
    ],
    ids=["softmax", "forty uncoded shards", "cyclic with a decreasing step"],
)
def test_late_policies_with_other_objectives_and_placements(late: str, tables: dict) -> None:
    size = MPI.COMM_WORLD.size
    assert_equals_simulation(experiment(size, **{"topology": {"kind": "complete"}, "method": {"late": late}, **tables}))


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(
    "tables",
    [
        {"data": {"source": "digits"}, "objective": {"kind": "softmax"}, "rounds": 10},
        {
            "data": {"source": "synthetic", "partition": "in_order", "heterogeneity": 0.5, "n_samples": 300},
            "objective": {"kind": "least_squares"},
            "step": {"kind": "decreasing", "size": 0.1, "tau": 10.0},
        },
        {"stragglers": {"kind": "persistent", "ranks": [0], "factor": 4.0}, "step": {"kind": "constant", "size": 0.5}},
    ],
    ids=["softmax", "heterogeneous least squares", "persistent straggler"],
)
def test_objectives_steps_and_persistent_stragglers(tables: dict) -> None:
    size = MPI.COMM_WORLD.size
    rounds = tables.get("rounds", 25)
    raw = experiment(size, **{name: table for name, table in tables.items() if name != "rounds"})
    assert_equals_simulation({**raw, "rounds": rounds})
