import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from goco_mpi.core import encoding, gossip, mixing, objectives, placement, topology
from goco_mpi.core.compression import Compression
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import METHODS, Gradient, Place
from goco_mpi.core.methods.compressed import CompressedGossip
from goco_mpi.core.methods.running_sums import RUNNING_SUMS
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import Links, StackedCompressed, gossip_step, start
from goco_mpi.core.stacked.allreduce import StackedDescentOnMean
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import RunError


class Network:
    """Least squares with l2 on ``n`` workers, each shard its own solution."""

    def __init__(self, n=6, n_shards=12, replication=2, rates=None, seed=0, weigh=encoding.coverage):
        rng = np.random.default_rng(seed)
        self.n = n
        self.objective = objectives.build("least_squares", 4, 0.1, None)
        features = rng.standard_normal((5 * n_shards, 4))
        targets = rng.standard_normal(5 * n_shards)
        self.pooled = WeightedRows(features, targets, np.full(len(targets), 1.0 / len(targets)), 1.0)
        self.placed = placement.pairwise_balanced(n, n_shards, replication, seed)
        weights = weigh(self.placed, np.ones(n) if rates is None else rates)
        self.shares = []
        for worker in range(n):
            held = self.placed.shards_of(worker)
            index = np.concatenate([np.arange(5 * k, 5 * k + 5) for k in held])
            scale = weights[worker, held] * n / len(targets)
            rows = WeightedRows(features[index], targets[index], np.repeat(scale, 5), scale.sum() * 5)
            self.shares.append(ModelShare(self.objective, rows, rows, [5] * len(held), 5 * scale, rows))

    def descend(self, step, n_rounds):
        """Plain gradient descent on F from zero."""
        x = np.zeros(4)
        for t in range(n_rounds):
            x = x - step(t) * self.objective.gradient(x, self.pooled)
        return x


NOBODY_LATE = StragglerModel("none", 6)
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 3)]
"""Workers 0 and 3 have more neighbours than the others."""


def mean_step(net):
    """Return the descent along the mean gradient, as an allreduce gives it."""
    return StackedDescentOnMean(start(net.shares), net.shares, None)


def decreasing(t):
    return 0.2 / (1 + t / 10)


def test_one_round_on_a_complete_graph_is_a_step_of_gradient_descent():
    net = Network()
    matrix = mixing.metropolis(topology.complete(6))
    x = simulate(gossip_step(net.shares, matrix, NOBODY_LATE), net.shares, lambda t: 0.3, NOBODY_LATE, 1)
    np.testing.assert_allclose(x, np.tile(net.descend(lambda t: 0.3, 1), (6, 1)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("graph", [topology.complete(6), topology.ring(6), topology.star(6)])
def test_full_replication_without_stragglers_is_gradient_descent_on_any_graph(graph):
    # Everyone's coded gradient is then grad F, and equal vectors stay equal under mixing.
    net = Network(replication=6)
    step = gossip_step(net.shares, mixing.metropolis(graph), NOBODY_LATE)
    x = simulate(step, net.shares, decreasing, NOBODY_LATE, 25)
    np.testing.assert_allclose(x, np.tile(net.descend(decreasing, 25), (6, 1)), rtol=0, atol=1e-12)


def test_allreduce_is_gradient_descent_however_the_shards_lie():
    net = Network(replication=1)
    x = simulate(mean_step(net), net.shares, decreasing, NOBODY_LATE, 25)
    np.testing.assert_allclose(x, np.tile(net.descend(decreasing, 25), (6, 1)), rtol=0, atol=1e-12)


def test_waiting_undoes_the_stragglers():
    net = Network()
    matrix = mixing.metropolis(topology.ring(6))
    late = StragglerModel("bernoulli", 6, p=0.5)
    waited = simulate(gossip_step(net.shares, matrix, late), net.shares, decreasing, late, 10, late="wait")
    prompt = simulate(gossip_step(net.shares, matrix, NOBODY_LATE), net.shares, decreasing, NOBODY_LATE, 10)
    dropped = simulate(gossip_step(net.shares, matrix, late), net.shares, decreasing, late, 10)
    np.testing.assert_array_equal(waited, prompt)
    assert not np.allclose(dropped, prompt)


def naive(net, graph, matrix, stragglers, n_rounds, max_age):
    """The round as the design writes it, worker by worker and message by message."""
    weights = matrix.toarray()
    x = [np.zeros(4) for _ in range(net.n)]
    newest = {}  # (dest, source) -> (round sent, vector)
    for t in range(n_rounds):
        v = []
        for i in range(net.n):
            g = net.shares[i].gradient(x[i]) if stragglers.finishes(i, t) else 0.0
            v.append(x[i] - decreasing(t) * g)
        for i in range(net.n):
            for j in graph.neighbors(i):
                if stragglers.arrives(j, i, t):
                    newest[i, j] = (t, v[j])
        for i in range(net.n):
            x[i] = v[i].copy()
            for j in graph.neighbors(i):
                if (i, j) in newest and t - newest[i, j][0] <= max_age:
                    x[i] += weights[i, j] * (newest[i, j][1] - v[i])
    return np.array(x)


@pytest.mark.parametrize("link_p", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("rule", "max_age"), [("fold", 20), ("stale", 0), ("stale", 2), ("stale", 20)])
def test_lossy_links_and_stragglers_agree_with_a_naive_loop(link_p, rule, max_age):
    net = Network(rates=np.full(6, 0.6))
    graph = topology.from_edges(6, EDGES)
    matrix = mixing.metropolis(graph)
    stragglers = StragglerModel("bernoulli", 6, seed=9, p=0.4, link_p=link_p)
    step = gossip_step(net.shares, matrix, stragglers, rule=rule, max_age=max_age)
    x = simulate(step, net.shares, decreasing, stragglers, 30)
    # The same additions in another order.
    np.testing.assert_allclose(
        x, naive(net, graph, matrix, stragglers, 30, 0 if rule == "fold" else max_age), rtol=0, atol=1e-12
    )


def test_stale_and_fold_differ_on_lossy_links():
    net = Network()
    matrix = mixing.metropolis(topology.ring(6))
    lossy = StragglerModel("none", 6, link_p=0.5)
    fold, stale = (
        simulate(gossip_step(net.shares, matrix, lossy, rule=rule, max_age=20), net.shares, decreasing, lossy, 30)
        for rule in ("fold", "stale")
    )
    assert np.abs(fold - stale).max() > 1e-3


def take_rounds(net, method, graph, matrix, stragglers, n_rounds, rule="stale", max_age=0, late="discard"):
    """Drive a method's own functions, worker by worker, over links that lose messages."""
    places = [
        Place(
            i,
            net.n,
            graph.neighbors(i),
            share,
            share.weight,
            net.placed.held[:, net.placed.shards_of(i)],
            net.placed.n_shards,
        )
        for i, share in enumerate(net.shares)
    ]
    mixings = [Mixing(mixing.neighbor_weights(matrix, graph, i), gossip.age_limit(rule, max_age)) for i in range(net.n)]
    states = [method.start(np.zeros(4), place) for place in places]
    last = [None] * net.n
    newest = {}  # (dest, source) -> (round sent, message)
    for t in range(n_rounds):
        sent = np.full((net.n, method.message_size(4)), np.nan)
        for i, state in enumerate(states):
            if stragglers.finishes(i, t):
                last[i] = Gradient(net.shares[i].gradient(state.params), state.params.copy())
            elif late == "discard":
                last[i] = None
            method.send(state, last[i], decreasing(t), t, sent[i])
        for i in range(net.n):
            newest |= {(i, j): (t, sent[j]) for j in graph.neighbors(i) if stragglers.arrives(j, i, t)}
        for i, state in enumerate(states):
            found = [newest.get((i, j), (0, None)) for j in graph.neighbors(i)]
            inbox = [Received(message, t - sent_in) for sent_in, message in found]
            if method.exchange == "allreduce":
                inbox = [Received(sent.mean(axis=0), 0)]
            method.receive(state, sent[i], inbox, mixings[i], decreasing(t))
    return np.array([state.params for state in states])


@pytest.mark.parametrize("late", ["discard", "memory"])
@pytest.mark.parametrize("link_p", [0.0, 0.4])
@pytest.mark.parametrize(
    ("name", "rule"),
    # Those with a master have their own stars in test_central.py.
    [
        (name, rule)
        for name in METHODS
        if METHODS[name].exchange != "central"
        for rule in METHODS[name].mixings or ("",)
    ],
)
def test_methods_written_as_pure_functions_take_the_same_rounds(name, rule, link_p, late):
    method = METHODS[name]
    net = Network(replication=2 if method.coded else 1, rates=np.full(6, 0.5) if method.coded else None)
    graph = topology.complete(6) if name == "table_newton" else topology.from_edges(6, EDGES)
    matrix = mixing.metropolis(graph)
    stragglers = StragglerModel("bernoulli", 6, seed=3, p=0.5, link_p=link_p, paired_links=rule == "symmetric")
    if method.exchange == "allreduce":
        step = mean_step(net)
    else:
        step = gossip_step(net.shares, matrix, stragglers, method=name, rule=rule, max_age=3)
    expected = simulate(step, net.shares, decreasing, stragglers, 30, late=late)
    x = take_rounds(net, RUNNING_SUMS if rule == "running" else method, graph, matrix, stragglers, 30, rule, 3, late)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("late", ["discard", "memory"])
@pytest.mark.parametrize("link_p", [0.0, 0.4, 0.9])
@pytest.mark.parametrize(
    "compression",
    [
        Compression("top_k", ratio=0.5),
        Compression("random_k", ratio=0.25, seed=1),
        Compression("quantize", bits=2),
        Compression("quantize", bits=16, consensus_step=0.4),
    ],
    ids=str,
)
def test_compressed_messages_are_what_the_simulator_takes_them_for(compression, link_p, late):
    net, graph = Network(rates=np.full(6, 0.5)), topology.from_edges(6, EDGES)
    matrix = mixing.metropolis(graph)
    stragglers = StragglerModel("bernoulli", 6, seed=3, p=0.5, link_p=link_p)
    step = StackedCompressed(start(net.shares), Links(matrix, stragglers, "stale", 3), compression)
    expected = simulate(step, net.shares, decreasing, stragglers, 60, late=late)
    method = CompressedGossip(compression, mixing.laplacian_norm(matrix))
    x = take_rounds(net, method, graph, matrix, stragglers, 60, "stale", 3, late)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    step = gossip_step(net.shares, matrix, stragglers, max_age=3)
    whole = simulate(step, net.shares, decreasing, stragglers, 60, late=late)
    assert np.abs(whole - expected).max() > 1e-6


@pytest.mark.parametrize("name", ["push_pull", "exact_diffusion"])
def test_methods_that_remember_take_the_last_gradient_whatever_the_policy(name):
    net, matrix = Network(), mixing.metropolis(topology.from_edges(6, EDGES))
    stragglers = StragglerModel("bernoulli", 6, seed=3, p=0.5)
    discard, memory = (
        simulate(
            gossip_step(net.shares, matrix, stragglers, method=name, rule="fold"),
            net.shares,
            decreasing,
            stragglers,
            20,
            late=late,
        )
        for late in ("discard", "memory")
    )
    np.testing.assert_allclose(discard, memory, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", ["symmetric", "running"])
def test_rules_that_conserve_the_average_do_so_under_lost_links(rule):
    # Everyone's vector is its own after one step; from then on there are no more, and messages are lost all the time.
    net, matrix = Network(), mixing.metropolis(topology.from_edges(6, EDGES))
    lossy = StragglerModel("none", 6, link_p=0.5, paired_links=rule == "symmetric")
    ends = [
        simulate(gossip_step(net.shares, chosen, lossy, rule=rule), net.shares, lambda t: float(t == 0), lossy, 400)
        for chosen in (matrix, sp.eye_array(6).tocsr())
    ]
    mean = ends[1].mean(axis=0)  # nobody has mixed
    assert np.abs(ends[1] - mean).max() > 0.1
    np.testing.assert_allclose(ends[0], np.tile(mean, (6, 1)), rtol=0, atol=1e-10)


def test_error_contracts_by_the_factor_of_gradient_descent_every_round():
    # On a complete graph all are equal after every round, and a round is a step along grad F:
    # |x - x*| shrinks by max(1 - eta mu, eta L - 1), which is 1 - eta mu up to eta = 2 / (L + mu).
    net = Network()
    gram = net.pooled.features.T @ (net.pooled.weights[:, None] * net.pooled.features) + 0.1 * np.eye(4)
    low, *_, high = np.linalg.eigvalsh(gram)
    eta = 1.0 / high
    best = np.linalg.solve(gram, net.pooled.features.T @ (net.pooled.weights * net.pooled.targets))
    errors = []

    def observe(round_, x):
        errors.append(np.linalg.norm(x - best, axis=1).max())
        return True

    matrix = mixing.metropolis(topology.complete(6))
    simulate(gossip_step(net.shares, matrix, NOBODY_LATE), net.shares, lambda t: eta, NOBODY_LATE, 30, observe=observe)
    assert len(errors) == 31
    for before, after in itertools.pairwise(errors):
        assert after <= (1 - eta * low) * before + 1e-13
    assert errors[-1] < 0.1 * errors[0]


def test_observer_sees_every_round_and_the_last_state_and_may_end_the_run():
    net = Network()
    matrix = mixing.metropolis(topology.ring(6))
    seen = []

    def observe(round_, x):
        seen.append((round_, x.copy()))
        return round_ < 3

    step = gossip_step(net.shares, matrix, NOBODY_LATE)
    ended = simulate(step, net.shares, decreasing, NOBODY_LATE, 10, observe=observe)
    assert [round_ for round_, _ in seen] == [0, 1, 2, 3]
    assert not seen[0][1].any()
    np.testing.assert_array_equal(ended, seen[-1][1])
    after_three = simulate(gossip_step(net.shares, matrix, NOBODY_LATE), net.shares, decreasing, NOBODY_LATE, 3)
    np.testing.assert_array_equal(ended, after_three)
    seen.clear()
    simulate(
        gossip_step(net.shares, matrix, NOBODY_LATE),
        net.shares,
        decreasing,
        NOBODY_LATE,
        2,
        observe=lambda round_, x: seen.append(round_) is None,
    )
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_step_far_too_large_raises_an_error_that_names_the_setting(synchronous):
    net = Network()
    step = mean_step(net) if synchronous else gossip_step(net.shares, mixing.metropolis(topology.ring(6)), NOBODY_LATE)
    with pytest.raises(RunError, match=r"diverged in round \d+.* 1000 is too large. Lower step.size"):
        simulate(step, net.shares, lambda t: 1000.0, NOBODY_LATE, 1000)


UNEVEN = placement.pairwise_balanced(5, 8, 2, seed=0).load
"""Eight shards twice on five workers: some hold three, some four, and their completion rates differ."""


def mean_first_step(net, stragglers_of, round_, seeds):
    """Return minus the steps of size 1 that the mean of all workers takes in one round from zero, for each seed."""
    steps = [
        simulate(
            mean_step(net),
            net.shares,
            lambda t: float(t == round_),
            stragglers_of(seed),
            round_ + 1,
            late="partial",
        )[0]
        for seed in seeds
    ]
    return -np.array(steps)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "bernoulli", "p": 0.5},
        {"kind": "bernoulli", "p": 0.8},
        {"kind": "persistent", "ranks": (1,), "factor": 3.0, "p": 0.5},
        {"kind": "delays", "delay_p": 0.4, "delay_s": 1.0},
    ],
    ids=str,
)
def test_partial_gradients_are_an_unbiased_estimate_of_the_full_one(options):
    def stragglers_of(seed):
        return StragglerModel(n_workers=5, seed=seed, **options).scripted()

    net = Network(5, 8, rates=stragglers_of(0).completion_rates(UNEVEN))
    assert net.placed.load.tolist() == UNEVEN.tolist() != [UNEVEN[0]] * 5
    # A persistent straggler is done in every third round; over a whole period it counts as often as it should.
    phases = range(3) if options["kind"] == "persistent" else range(1)
    found = np.mean([mean_first_step(net, stragglers_of, t, range(600)) for t in phases], axis=0)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    expected = net.objective.gradient(np.zeros(4), net.pooled)
    assert np.abs(expected).max() > 15 * error.max()  # a bias of a third would be seen
    assert (np.abs(found.mean(axis=0) - expected) < 5 * error).all()


def test_partial_gradients_weighted_as_whole_ones_would_be_biased():
    # What the rates of shards are for: finished parts come on top of finished gradients.
    def stragglers_of(seed):
        return StragglerModel("bernoulli", 5, seed, p=0.5)

    net = Network(5, 8, rates=stragglers_of(0).completion_rates())
    found = mean_first_step(net, stragglers_of, 0, range(600)).mean(axis=0)
    expected = net.objective.gradient(np.zeros(4), net.pooled)
    # A shard of 3 or 4 counts in 0.5 + 0.5 (2/6 or 3/8) of the rounds, and is weighted as if in 0.5.
    assert 1.25 < found @ expected / (expected @ expected) < 1.45


def test_a_partial_gradient_is_of_the_first_shards_in_the_drawn_order():
    net = Network()
    n_partial = 0
    for seed in range(10):
        late = StragglerModel("bernoulli", 6, seed, p=0.8)
        step = gossip_step(net.shares, sp.eye_array(6).tocsr(), late)
        x = simulate(step, net.shares, lambda t: 1.0, late, 1, late="partial")
        for i, share in enumerate(net.shares):
            n_finished = late.shards_finished(i, 0, share.n_shards)
            n_partial += 0 < n_finished < share.n_shards
            chosen = late.shard_order(i, 0, share.n_shards)[:n_finished]
            g = sum((share.gradient(np.zeros(4), k) for k in chosen), start=np.zeros(4))
            np.testing.assert_allclose(x[i], -g, rtol=1e-12, atol=1e-15)
    assert n_partial > 10


@pytest.mark.parametrize("late", ["partial", "memory", "wait"])
@pytest.mark.parametrize("synchronous", [False, True])
def test_with_nobody_late_all_policies_are_the_same(late, synchronous):
    net = Network()
    matrix = mixing.metropolis(topology.ring(6))
    discard, other = (
        simulate(
            mean_step(net) if synchronous else gossip_step(net.shares, matrix, NOBODY_LATE),
            net.shares,
            decreasing,
            NOBODY_LATE,
            15,
            late=policy,
        )
        for policy in ("discard", late)
    )
    np.testing.assert_array_equal(other, discard)


@pytest.mark.parametrize(
    "stragglers",
    [
        StragglerModel("bernoulli", 6, seed=5, p=0.6),
        StragglerModel("persistent", 6, seed=5, ranks=(0, 3), factor=4.0, p=0.3, link_p=0.4),
    ],
    ids=["bernoulli", "persistent and lossy"],
)
def test_memory_repeats_each_workers_last_gradient(stragglers):
    net, graph = Network(), topology.ring(6)
    matrix = mixing.metropolis(graph)
    weights = matrix.toarray()
    x, last, newest, n_repeated = np.zeros((6, 4)), [np.zeros(4)] * 6, {}, 0
    for t in range(20):
        for i in range(6):
            if stragglers.finishes(i, t):
                last[i] = net.shares[i].gradient(x[i])
            else:
                n_repeated += bool(last[i].any())
        v = [x[i] - decreasing(t) * last[i] for i in range(6)]
        for i in range(6):
            for j in graph.neighbors(i):
                if stragglers.arrives(j, i, t):
                    newest[i, j] = (t, v[j])
        fresh = {pair: v for pair, (sent, v) in newest.items() if t - sent <= 3}
        x = np.array(
            [
                v[i] + sum(weights[i, j] * (fresh[i, j] - v[i]) for j in graph.neighbors(i) if (i, j) in fresh)
                for i in range(6)
            ]
        )
    assert n_repeated > 20
    step = gossip_step(net.shares, matrix, stragglers, max_age=3)
    found = simulate(step, net.shares, decreasing, stragglers, 20, late="memory")
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


def test_memory_needs_no_probabilities_where_some_are_always_late():
    # Plain weights know nothing of lateness. Discarding then minimises sum_k q_k f_k, whose solution is elsewhere;
    # with memory every shard counts in every round, and a decreasing step leads to the optimum of F.
    stragglers = StragglerModel("persistent", 6, seed=2, ranks=(0, 1), factor=8.0, p=0.5)
    net = Network(6, 6, replication=1, weigh=encoding.plain)

    def solution(weight_of_shard):
        weights = np.repeat(weight_of_shard, 5) / 5
        features, targets = net.pooled.features, net.pooled.targets
        gram = features.T @ (weights[:, None] * features) + 0.1 * weights.sum() * np.eye(4)
        return np.linalg.solve(gram, features.T @ (weights * targets))

    rates = stragglers.completion_rates()
    assert rates.tolist() == [0.125, 0.125, 0.5, 0.5, 0.5, 0.5]
    best, biased = solution(np.ones(6) / 6), solution(rates @ net.placed.held)
    bias = np.linalg.norm(best - biased)
    assert bias > 0.1 * np.linalg.norm(best)
    matrix = mixing.metropolis(topology.complete(6))
    ends = {
        late: simulate(
            gossip_step(net.shares, matrix, stragglers),
            net.shares,
            lambda t: 0.2 / (1 + t / 50),
            stragglers,
            2000,
            late=late,
        ).mean(axis=0)
        for late in ("discard", "memory")
    }
    assert np.linalg.norm(ends["discard"] - biased) < 0.2 * bias
    assert np.linalg.norm(ends["memory"] - best) < 0.01 * bias
    assert np.linalg.norm(ends["discard"] - best) > 0.5 * bias
