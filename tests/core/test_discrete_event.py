"""Simulated seconds: small cases by hand, the simulator and the replay as oracles, and what always holds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.config import parse_config
from goco_mpi.core import mixing, topology
from goco_mpi.core.costs import CostModel
from goco_mpi.core.discrete_event import Network, Pacing, run_allreduce
from goco_mpi.core.discrete_event.task import Task
from goco_mpi.core.gossip import Mixing
from goco_mpi.core.methods import METHODS, Place
from goco_mpi.core.objectives import LeastSquares, WeightedRows
from goco_mpi.core.replay import replay_gossip
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.simulation.rounds import Simulation

INF = math.inf
NUMBERS_A_MESSAGE = 4 + 2
"""Header and two parameters."""


def share(worker, n_shards=1, rows_each=1):
    n = n_shards * rows_each
    features = np.random.default_rng(worker).standard_normal((n, 2))
    rows = WeightedRows(features, np.ones(n), np.full(n, 1.0 / n), 1.0)
    return ModelShare(LeastSquares(2, 0.1), rows, rows, [rows_each] * n_shards, np.full(n_shards, 1.0 / n_shards), rows)


def network(seconds, pacing, n_rounds=3, graph=None, n_shards=1, stragglers=None, method="goco", **cost):
    """Workers whose gradients take the given seconds, one trace each, under a cost model that is free otherwise."""
    n = len(seconds)
    graph = graph or topology.complete(n)
    matrix = mixing.metropolis(graph)
    shares = [share(worker, n_shards) for worker in range(n)]
    return Network(
        METHODS[method],
        [Place(i, n, graph.neighbors(i), shares[i], 1.0, np.ones((n, n_shards), bool), n_shards) for i in range(n)],
        [Mixing(mixing.neighbor_weights(matrix, graph, i), 20) for i in range(n)],
        lambda round_: 0.1,
        stragglers or StragglerModel("none", n),
        CostModel("trace", traces=[np.atleast_1d(np.array(s, float)) for s in seconds], rows=float(n_shards), **cost),
        pacing,
        n_rounds,
        np.zeros(2),
        take_down=True,
    )


def column(run, name):
    return [row[name] for row in run.ranks]


def rounds_of(run, worker):
    return run.events[worker].rounds[:-1].tolist()


WAIT = Pacing("wait", INF, INF)


def test_without_deadlines_everybody_waits_for_the_slowest_message():
    # Worker 1 offers at 3, 6, 9; what it says is with worker 0 half a second later, and worker 0's long with it.
    run = network([1.0, 3.0], WAIT, n_rounds=3, latency_s=0.5).run()
    assert column(run, "wall_s") == [9.5, 9.0]
    assert column(run, "wait_s") == [2.5 + 2.0 + 2.0, 0.0]
    assert column(run, "rounds") == column(run, "gradients") == [3, 3]


def test_messages_cost_their_sender_and_their_receiver_time():
    # 1 s of gradient, 0.1 s to send one message, 0.5 s on the way, 0.1 s to receive one.
    run = network([1.0, 1.0], WAIT, n_rounds=3, latency_s=0.5, overhead_s=0.1).run()
    assert column(run, "wall_s") == pytest.approx([5.1, 5.1], rel=1e-12)
    assert column(run, "wait_s") == pytest.approx([1.5, 1.5], rel=1e-12)


def test_messages_leave_one_after_the_other():
    # Each sends to its neighbours in their order, a quarter of a second each.
    run = network([1.0] * 3, WAIT, n_rounds=1, bytes_per_s=8 * NUMBERS_A_MESSAGE / 0.25).run()
    assert column(run, "wall_s") == [1.25, 1.5, 1.5]


def test_a_newer_message_takes_the_place_of_the_waiting_one():
    # Offers at 1, 2, ..., 6 and the goodbye; a message takes 2.5 s: rounds 1, 3 and 5 are never sent.
    run = network([1.0, 1.0], Pacing("discard", INF, 0.0), n_rounds=6, bytes_per_s=8 * NUMBERS_A_MESSAGE / 2.5).run()
    assert column(run, "superseded") == [3, 3]
    assert column(run, "wall_s") == [6.0, 6.0]


def test_who_misses_the_deadline_is_waited_for_once_and_keeps_up_in_the_middle_of_its_gradient():
    run = network([1.0, 10.0], Pacing("discard", INF, 0.25), n_rounds=10).run()
    # 1 s, a quarter in vain, then nobody is waited for; in round 3 something of worker 1 has come.
    assert run.ranks[0]["wall_s"] == 10.25
    assert run.ranks[0]["wait_s"] == 0.25
    assert run.ranks[0]["suspected"] == 1
    # At 3.25 worker 1 hears of round 2, at 5.25 of round 4, ...; its gradient is done at 10 all the same.
    assert rounds_of(run, 1) == [2, 4, 6, 8, 8, 9]
    assert run.events[1].points[:-1].tolist() == [-1, -1, -1, -1, 0, -1]
    assert run.ranks[1]["gradients"] == 1
    # At 10.25 worker 0 is done, and nobody is left to finish the next one for.
    assert run.ranks[1]["wall_s"] == 10.25


def test_a_worker_whose_neighbour_runs_ahead_while_it_waits_for_another_jumps_to_its_round():
    line = topology.Topology(3, ((0, 1), (1, 2)))
    run = network([0.1, [0.41, 1.0], INF], Pacing("discard", INF, 0.27), n_rounds=8, graph=line).run()
    # Worker 0 waits for worker 1 once, until 0.37, and offers round t at 0.37 + t / 10. Worker 1 offers round 0 at 0.41
    # and waits for worker 2 until 0.68, when it has heard of round 3. It goes on there, and keeps up in round 5.
    assert rounds_of(run, 1)[:2] == [0, 5]
    assert run.ranks[1]["jumped"] == 2


def test_a_gradient_that_is_late_is_dropped_at_its_deadline():
    run = network([3.0], Pacing("discard", 1.0, 0.0), n_rounds=4).run()
    assert (run.wall_s, run.ranks[0]["late_gradients"], run.ranks[0]["gradients"]) == (4.0, 4, 0)
    np.testing.assert_array_equal(run.stacked_params, 0.0)


def test_work_that_is_done_only_at_its_deadline_is_late():
    assert network([1.0], Pacing("discard", 1.0, 0.0), n_rounds=2).run().ranks[0]["late_gradients"] == 2


def test_with_memory_a_late_gradient_is_carried_on_with():
    # Gossip at 1 and 2; done at 2.5; gossip with it again at 3.5 and 4.5; the next is done at 5.
    run = network([2.5], Pacing("memory", 1.0, 0.0), n_rounds=6).run()
    assert (run.wall_s, run.ranks[0]["gradients"], run.ranks[0]["repeated"]) == (5.0, 2, 2)
    assert run.events[0].points[:-1].tolist() == [-1, -1, 0, 0, 0, 3]


def test_shards_done_by_the_deadline_count():
    run = network([4.0], Pacing("partial", 2.5, 0.0), n_rounds=3, n_shards=4).run()
    assert (run.wall_s, run.ranks[0]["partial_gradients"]) == (7.5, 3)
    assert [len(run.events[0].finished_shards(step)) for step in range(3)] == [2, 2, 2]


def test_waiting_in_the_middle_of_a_gradient_is_not_computing():
    # Both at 1 s, in vain: a gradient of 1.5 s is done after 2 s, and has lasted 1.5 of them.
    run = network([1.5, INF], Pacing("memory", 1.0, 0.5), n_rounds=2).run()
    assert run.ranks[0]["compute_s"] == 1.5
    assert run.ranks[0]["wall_s"] == 2.0


@pytest.mark.parametrize(("own_s", "injected_s", "ends_s"), [(1.5, 0.0, 1.9), (0.1, 1.5, 1.7)])
def test_injected_work_goes_on_while_a_worker_is_busy_with_messages(own_s, injected_s, ends_s):
    # Late at 1.0: gossip until 1.2. What is left of a gradient of its own takes until 1.7, a sleep until 1.5.
    lasting = StragglerModel("none", 2, work_s=injected_s)
    run = network([own_s] * 2, Pacing("memory", 1.0, INF), n_rounds=2, stragglers=lasting, overhead_s=0.1).run()
    assert column(run, "wall_s") == pytest.approx([ends_s] * 2, rel=1e-12)


def test_a_slow_worker_computes_so_many_times_as_long():
    late = StragglerModel("slow", 2, ranks=(1,), factor=7.0)
    run = network([1.0, 1.0], WAIT, n_rounds=2, stragglers=late).run()
    assert run.wall_s == 14.0


def test_a_run_in_which_all_wait_for_a_worker_that_never_finishes_never_ends():
    run = network([1.0, 1.0, INF], WAIT, n_rounds=3).run()
    assert (run.wall_s, run.last_round) == (INF, 0)
    assert network([1.0, INF], WAIT, n_rounds=3).run(lambda *_: False).wall_s == 0.0  # stopped before that


@pytest.mark.parametrize("late", ["discard", "memory"])
def test_a_worker_whose_neighbours_are_all_done_leaves_its_gradient(late):
    # They are done at 3.25, and worker 2 hears of it a quarter of a second later, in the last round.
    run = network([1.0, 1.0, [1.0, 1.0, INF]], Pacing(late, INF, 0.25), n_rounds=3, latency_s=0.125).run()
    assert column(run, "rounds") == [3, 3, 3]
    assert column(run, "gradients") == [3, 3, 2]
    assert run.wall_s < 4.0
    # With memory its last round is one with the gradient before.
    assert run.events[2].points[2] == {"discard": -1, "memory": 1}[late]


def test_a_learned_deadline_follows_the_workers_own_times():
    # The first is never late; then twice the median of what was seen, and what was cut lasted until then.
    run = network([[1.0, 1.0, 1.0, 9.0, 1.0]], Pacing("discard", "auto", 0.0), n_rounds=5).run()
    assert run.wall_s == 1.0 + 1.0 + 1.0 + 2.0 + 1.0
    assert run.ranks[0]["late_gradients"] == 1


def test_what_arrives_at_the_deadline_is_in_time():
    run = network([1.0, 1.125], Pacing("discard", INF, 0.25), n_rounds=1, latency_s=0.125).run()
    assert column(run, "missed") == [0, 0]


@pytest.mark.parametrize(("third_s", "suspected"), [(1.15, 0), (1.2, 1)])
def test_a_learned_gossip_deadline_allows_for_the_network(third_s, suspected):
    # A tenth of a second of work and three times 0.04 s in the network; a message that comes 0.19 or 0.24 s after.
    run = network([1.0, [1.0, 1.0, third_s, 1.0]], Pacing("discard", INF, "auto"), n_rounds=3, latency_s=0.04).run()
    assert run.ranks[0]["suspected"] == suspected


@settings(max_examples=40, deadline=None)
@given(
    gossip_s=st.floats(0.0, 3.0),
    latency_s=st.floats(0.0, 0.5),
    n=st.integers(2, 5),
    n_rounds=st.integers(1, 60),
    late=st.sampled_from(["discard", "partial", "memory"]),
)
def test_a_worker_that_never_finishes_costs_the_others_one_deadline(gossip_s, latency_s, n, n_rounds, late):
    run = network([1.0] * (n - 1) + [INF], Pacing(late, INF, gossip_s), n_rounds=n_rounds, latency_s=latency_s).run()
    for row in run.ranks[:-1]:
        # The network's own latency is waited for in every round, as far as the deadline allows.
        assert row["wait_s"] <= gossip_s + n_rounds * min(latency_s, gossip_s) + 1e-9
        assert row["wall_s"] <= n_rounds + row["wait_s"] + 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), late=st.sampled_from(["discard", "partial", "memory"]))
def test_time_never_goes_back_and_rounds_neither(seed, late):
    rng = np.random.default_rng(seed)
    seen = []
    run = network(
        [rng.exponential(1.0, 20) + 1e-3 for _ in range(4)],
        Pacing(late),
        n_rounds=40,
        latency_s=0.01,
        overhead_s=1e-3,
    ).run(lambda round_, now, x, spent: seen.append((round_, now)) or True, every=5)
    assert seen == sorted(seen)
    assert [round_ for round_, _ in seen] == list(range(0, 45, 5))
    for events in run.events:
        assert (np.diff(events.rounds) >= 0).all()
        assert (np.diff(events.used, axis=0)[:-1] >= 0).all()
    for row in run.ranks:
        assert row["compute_s"] + row["wait_s"] <= row["wall_s"] + 1e-9


BASE = {
    "rounds": 40,
    "data": {"source": "synthetic", "n_samples": 200, "n_features": 4, "shards": 12},
    "objective": {"kind": "least_squares", "l2": 0.1},
}
COSTS = {
    "constant": CostModel("constant", compute_s=0.01, rows=25.0, overhead_s=1e-5, latency_s=1e-4, bytes_per_s=1e8),
    "pareto": CostModel("pareto", compute_s=0.01, rows=25.0, spread=1.0, latency_s=1e-3),
}
METHODS_AND_POLICIES = [
    *({"kind": "goco", "late": late} for late in ("discard", "partial", "memory", "wait")),
    {"kind": "goco", "mixing": "running"},
    {"kind": "push_pull", "late": "memory"},
    {"kind": "exact_diffusion", "late": "memory"},
    {"kind": "table_newton", "late": "memory"},
    {"kind": "dgd"},
]


def experiment(cost, **tables):
    config = parse_config({**BASE, **tables})
    simulation = Simulation(config, 6)
    layout = simulation.layout
    places = [layout.place(worker, held) for worker, held in enumerate(simulation.shares)]
    mixings = [layout.mixing(worker) for worker in range(6)]
    deadline = config.deadline
    simulated = Network(
        layout.method,
        places,
        mixings,
        simulation.step_size,
        layout.stragglers,
        cost,
        Pacing(config.method.late, deadline.compute_s, deadline.gossip_s),
        config.rounds,
        np.zeros(5),
        take_down=True,
    )
    return simulation, simulated, places, mixings


@pytest.mark.parametrize("method", METHODS_AND_POLICIES, ids=lambda m: "-".join(m.values()))
@pytest.mark.parametrize("stragglers", [{}, {"kind": "bernoulli", "p": 0.4, "link_p": 0.2}], ids=["none", "logical"])
@pytest.mark.parametrize("cost", COSTS)
def test_without_deadlines_the_parameters_are_the_simulators(method, stragglers, cost):
    graph = "complete" if method["kind"] == "table_newton" else "exponential"
    simulation, simulated, _, _ = experiment(
        COSTS[cost],
        method=method,
        stragglers=stragglers,
        topology={"kind": graph},
        deadline={"compute_s": "inf", "gossip_s": "inf"},
    )
    expected = simulation.run(lambda round_, x: True)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(simulated.run().stacked_params, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [m for m in METHODS_AND_POLICIES if m["kind"] != "exact_diffusion"], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_of_workers_out_of_step_is_what_its_replay_computes(method, seed):
    graph = "complete" if method["kind"] == "table_newton" else "exponential"
    simulation, simulated, places, mixings = experiment(
        COSTS["pareto"],
        method=method,
        stragglers={"kind": "slow", "ranks": [2], "factor": 8.0, "link_p": 0.1},
        topology={"kind": graph},
        seed=seed,
        rounds=120,
    )
    run = simulated.run()
    expected = replay_gossip(simulation.layout.method, places, mixings, simulation.step_size, run.events, np.zeros(5))
    np.testing.assert_allclose(run.stacked_params, expected, rtol=0, atol=1e-12)
    if method.get("late") != "wait":
        assert run.ranks[2]["gradients"] < 60 < run.ranks[0]["gradients"]


def test_equal_seeds_give_equal_runs_to_the_last_bit():
    first, second = (experiment(COSTS["pareto"])[1].run() for _ in range(2))
    np.testing.assert_array_equal(first.stacked_params, second.stacked_params)
    assert (first.ranks, first.wall_s, first.n_events) == (second.ranks, second.wall_s, second.n_events)


def test_allreduce_lasts_as_long_as_the_slowest_of_each_round_and_the_reduction():
    simulation = Simulation(parse_config({**BASE, "method": {"kind": "allreduce"}}), 6)
    places = [simulation.layout.place(worker, held) for worker, held in enumerate(simulation.shares)]
    cost = CostModel("pareto", seed=1, compute_s=0.01, rows=25.0, spread=1.0, latency_s=1e-3, bytes_per_s=1e4)
    rows = []
    run = run_allreduce(
        simulation.layout.method,
        places,
        simulation.step_size,
        StragglerModel("slow", 6, ranks=(4,), factor=3.0),
        cost,
        40,
        np.zeros(5),
        lambda round_, now, x, spent: rows.append(now) or True,
        every=1,
    )
    slowest = [
        max(
            cost.gradient_s(worker, round_, held.n_rows) * (3.0 if worker == 4 else 1.0)
            for worker, held in enumerate(simulation.shares)
        )
        for round_ in range(40)
    ]
    # ceil(log2 6) = 3; five numbers and the two behind them.
    np.testing.assert_allclose(rows, np.concatenate([[0.0], np.cumsum(np.array(slowest) + 6e-3 + 2 * 56 / 1e4)]))
    assert run.wall_s == rows[-1]
    np.testing.assert_allclose(run.stacked_params, simulation.run(lambda round_, x: True), rtol=0, atol=1e-12)


def test_rounds_of_an_allreduce_without_a_gradient_spend_none_and_take_no_time():
    method = {"kind": "allreduce", "solver": "cg", "preconditioner": "local"}
    data = {**BASE["data"], "n_samples": 240, "test_fraction": 0.0}
    simulation = Simulation(parse_config({**BASE, "data": data, "method": method}), 6)
    places = [simulation.layout.place(worker, held) for worker, held in enumerate(simulation.shares)]
    cost, seen = CostModel("trace", traces=[np.arange(1.0, 9.0)] * 6, rows=40.0), []
    run = run_allreduce(
        simulation.layout.method,
        places,
        simulation.step_size,
        StragglerModel("none", 6),
        cost,
        8,
        np.zeros(5),
        lambda round_, now, x, spent: seen.append((now, spent.shard_gradients)) or True,
        every=1,
    )
    # Two shards a worker; rounds 2, 4 and 6 carry what is preconditioned. Gradient k lasts 1 + k seconds.
    assert [now for now, _ in seen] == [0.0, 1.0, 3.0, 3.0, 6.0, 6.0, 10.0, 10.0, 15.0]
    assert [done for _, done in seen] == [0.0, 2.0, 4.0, 4.0, 6.0, 6.0, 8.0, 8.0, 10.0]
    assert seen[-1][1] == np.mean(column(run, "shard_gradients"))


def test_allreduce_never_ends_where_a_worker_never_finishes():
    simulation = Simulation(parse_config({**BASE, "method": {"kind": "allreduce"}}), 6)
    places = [simulation.layout.place(worker, held) for worker, held in enumerate(simulation.shares)]
    cost = CostModel("trace", traces=[np.array([1.0])] * 5 + [np.array([INF])])
    run = run_allreduce(
        simulation.layout.method, places, simulation.step_size, StragglerModel("none", 6), cost, 40, np.zeros(5)
    )
    assert run.wall_s == INF
    assert run.last_round == 0


@given(st.floats(0.0, 1e6), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_work_that_is_done_ends_now_and_never_before(began_s, needs_s, waited_s):
    task = Task(began_s, needs_s, 0.0)
    task.pause(task.resume(began_s))
    now = began_s + needs_s + waited_s
    assert task.resume(now) >= now
