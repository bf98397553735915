"""When workers die: what the others take over, and that exact methods stay exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratic import Quadratic
from scripted_deaths import run, script, stacked_step

from goco_mpi.core import encoding, mixing, placement, topology
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Gradient, Place
from goco_mpi.core.methods.goco import GOCO
from goco_mpi.core.methods.push_pull import PUSH_PULL
from goco_mpi.core.methods.rated import Rated
from goco_mpi.core.methods.running_sums import RUNNING_SUMS
from goco_mpi.core.methods.table_newton import TABLE_NEWTON
from goco_mpi.core.stacked.base import Step
from goco_mpi.core.survivors import survivors
from goco_mpi.errors import RunError


@st.composite
def layouts(draw):
    n = draw(st.integers(2, 9))
    m = draw(st.integers(1, 12))
    d = draw(st.integers(1, n))
    holders = placement.pairwise_balanced(n, m, d, seed=draw(st.integers(0, 9)))
    rates = np.array(draw(st.lists(st.floats(0.1, 1.0), min_size=n, max_size=n)))
    dead = draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    return holders, rates, dead


@settings(deadline=None, max_examples=40)
@given(layouts(), st.sampled_from(["own", "coverage"]))
def test_the_mean_over_the_living_is_unbiased_but_for_lost_shards(layout, kind):
    holders, rates, dead = layout
    left = survivors(kind, holders, rates, encoding.build(kind, holders, rates), topology.complete(len(rates)), dead)
    alive = [i for i in range(len(rates)) if i not in dead]
    assert np.flatnonzero(left.alive).tolist() == alive
    assert left.lost_shards == tuple(k for k in range(holders.n_shards) if not set(holders.holders(k)) - dead)
    mean = left.weights.T @ (rates * left.alive) / len(alive)
    expected = np.full(holders.n_shards, 1.0 / holders.n_shards)
    expected[list(left.lost_shards)] = 0.0
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    assert not left.weights[sorted(dead)].any()


@settings(deadline=None, max_examples=40)
@given(layouts())
def test_every_shard_that_is_left_has_one_owner_among_those_who_hold_it(layout):
    holders, rates, dead = layout
    weights = encoding.build("plain", holders, rates)
    left = survivors("plain", holders, rates, weights, topology.complete(len(rates)), dead)
    owners = np.zeros(holders.n_shards)
    for worker in range(len(rates)):
        held = holders.shards_of(worker)
        owned = left.owned(worker, held)
        assert not (worker in dead and owned.any())
        owners[held] += owned
    owners[list(left.lost_shards)] += 1.0
    np.testing.assert_array_equal(owners, 1.0)


@settings(deadline=None, max_examples=40)
@given(layouts())
def test_with_shorter_steps_no_workers_curvature_times_the_step_grows(layout):
    holders, rates, dead = layout
    before = encoding.build("coverage", holders, rates)
    left = survivors("coverage", holders, rates, before, topology.complete(len(rates)), dead)
    before = before * (len(rates) / holders.n_shards)
    assert 0.0 < left.step_scale <= 1.0
    assert (left.step_scale * left.weights <= before * (1.0 + 1e-12)).all()
    if left.step_scale < 1.0:  # and they are no shorter than that takes
        assert np.isclose(left.step_scale * left.weights, before, rtol=1e-12)[left.weights > 0.0].any()


def test_who_cannot_reach_the_others_any_more_is_seen():
    holders = placement.pairwise_balanced(6, 6, 3, seed=0)
    rates = np.ones(6)
    weights = encoding.build("plain", holders, rates)

    def connected(dead):
        return survivors("plain", holders, rates, weights, topology.ring(6), dead).connected

    assert [connected([]), connected([0]), connected([0, 1]), connected([0, 2])] == [True, True, True, False]


def test_the_losses_of_the_living_add_up_to_the_loss_of_all_shards_that_are_left():
    problem = Quadratic(seed=1, n_workers=8)
    x = np.random.default_rng(0).standard_normal(problem.n_params)
    whole = sum(share.loss(x) for share in problem.shares)
    left = problem.layout.without([0, 3])
    assert left.lost_shards == ()
    shares = [
        share.owning(left.owned(i, problem.layout.placement.shards_of(i)), problem.layout.placement.n_shards)
        for i, share in enumerate(problem.shares)
    ]
    assert shares[0].loss(x) == shares[3].loss(x) == 0.0
    assert sum(share.loss(x) for share in shares) == pytest.approx(whole, rel=1e-12)


class Network:
    """Workers of a method that begins anew, whose messages come late or never, and who hear of deaths late."""

    def __init__(self, method, graph, rng):
        self.method, self.rng, self.n = method, rng, graph.n_workers
        held = np.ones((self.n, 0), dtype=bool)
        self.places = [Place(i, self.n, graph.neighbors(i), None, 1.0, held, 0) for i in range(self.n)]
        matrix = mixing.metropolis(graph)
        self.mixings = [Mixing(mixing.neighbor_weights(matrix, graph, i), 10**9) for i in range(self.n)]
        self.states = [method.start(rng.standard_normal(3), place) for place in self.places]
        self.lost = [frozenset() for _ in range(self.n)]
        self.sent = [[] for _ in range(self.n)]
        self.have = [dict.fromkeys(place.neighbors, -1) for place in self.places]
        self.memory = np.zeros((self.n, 3))

    def step(self, i):
        """Send, and take in something of each neighbour that is no older than what came before."""
        state, gradient = self.states[i], None
        if self.rng.random() < 0.5:
            self.memory[i] = self.rng.standard_normal(3)
            gradient = Gradient(self.memory[i].copy(), state.params.copy())
        own = np.empty(self.method.message_size(3))
        self.method.send(state, gradient, 0.1, 0, own)
        self.sent[i].append((len(self.lost[i]), own))
        inbox = []
        for j in self.places[i].neighbors:
            newest = len(self.sent[j]) - 1
            self.have[i][j] = int(self.rng.integers(self.have[i][j], newest + 1)) if newest >= 0 else -1
            count, message = self.sent[j][self.have[i][j]] if self.have[i][j] >= 0 else (-1, None)
            usable = j not in self.lost[i] and count == len(self.lost[i])
            inbox.append(Received(message if usable else None, 0))
        self.method.receive(state, own, inbox, self.mixings[i], 0.1)

    def hear(self, i, dead):
        """Let a worker go on without those."""
        self.lost[i] |= dead
        alive = np.array([k not in self.lost[i] for k in range(self.n)])
        self.method.lose(self.states[i], self.places[i], alive)

    def under_way(self, living, of):
        """Return what the living have sent each other since they began anew and not taken in."""
        total = 0.0
        for i in living:
            for j, rho in zip(self.places[i].neighbors, self.states[i].rho, strict=True):
                if j in living:
                    total = total + of(self.states[j].sigma) - of(rho)
        return total


@pytest.mark.parametrize("name", ["exponential", "complete"])
@pytest.mark.parametrize("method", [PUSH_PULL, RUNNING_SUMS], ids=lambda method: type(method).__name__)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), n_deaths=st.integers(1, 4))
def test_once_all_have_heard_of_all_deaths_nothing_is_missing_whatever_the_order(method, name, seed, n_deaths):
    rng = np.random.default_rng(seed)
    graph = topology.build(name, 8)
    network = Network(method, graph, rng)
    living, dead, untold = list(range(8)), [], {}
    for _ in range(n_deaths):
        for _ in range(int(rng.integers(0, 40))):
            i = int(rng.choice(living))
            if untold.get(i) and rng.random() < 0.3:
                # The news may come one by one and in another order to others.
                news = frozenset([int(rng.choice(sorted(untold[i])))])
                untold[i] -= news
                network.hear(i, news)
            network.step(i)
        dead.append(living.pop(int(rng.integers(len(living)))))
        untold = {i: untold.get(i, frozenset()) | {dead[-1]} for i in living}
    for i in rng.permutation(living):
        if untold[i]:
            network.hear(int(i), untold[i])
        network.step(int(i))
    for _ in range(60):
        network.step(int(rng.choice(living)))
        states = [network.states[i] for i in living]
        if method is PUSH_PULL:
            held = sum(state.tracker + state.inflow for state in states)
            total = held + network.under_way(living, lambda sum_: sum_)
            np.testing.assert_allclose(total, network.memory[living].sum(axis=0), atol=1e-10)
        else:
            weight = sum(state.mass[-1] for state in states) + network.under_way(living, lambda sum_: sum_[-1])
            assert weight == pytest.approx(len(living), abs=1e-9)


EXACT = [{"kind": "push_pull"}, {"kind": "exact_diffusion", "late": "wait"}]


@pytest.mark.parametrize("latest", [0, 7], ids=["heard_at_once", "heard_later"])
@pytest.mark.parametrize("method", EXACT, ids=lambda method: method["kind"])
def test_exact_methods_reach_the_optimum_of_all_data_after_three_deaths(method, latest):
    problem = Quadratic(seed=2, method=method, placement={"replication": 4}, topology={"kind": "exponential"})
    deaths = script(16, {3: 20, 0: 45, 11: 47}, latest)
    x = run(stacked_step(problem.layout, problem.n_params, deaths), problem.shares, 0.1, 700)
    living = [i for i in range(16) if i not in deaths.dies]
    assert problem.gap(x[living]).max() < 1e-16


def test_without_beginning_anew_push_pull_would_end_elsewhere(monkeypatch):
    problem = Quadratic(seed=2, method={"kind": "push_pull"}, placement={"replication": 4})
    deaths = script(16, {3: 20})
    step = stacked_step(problem.layout, problem.n_params, deaths)
    monkeypatch.setattr(type(step._step), "lose", Step.lose)
    x = run(step, problem.shares, 0.1, 700)
    assert problem.gap(x[[i for i in range(16) if i != 3]]).min() > 1e-6


def test_without_the_last_copies_of_shards_it_is_the_optimum_of_the_others():
    problem = Quadratic(seed=2, n_workers=8, method={"kind": "push_pull"}, placement={"replication": 1})
    deaths = script(8, {5: 30})
    x = run(stacked_step(problem.layout, problem.n_params, deaths), problem.shares, 0.1, 1200)
    zero, living = np.zeros(problem.n_params), [0, 1, 2, 3, 4, 6, 7]
    assert problem.layout.without([5]).lost_shards == tuple(problem.layout.placement.shards_of(5))
    hessian = sum(problem.coded_hessians[living])
    best = np.linalg.solve(hessian, sum(problem.coded_targets[living]))
    np.testing.assert_allclose(x[living], np.tile(best, (7, 1)), atol=1e-8)
    assert np.abs(best - problem.best).max() > 1e-3
    assert zero.shape == best.shape


def test_observed_rates_make_up_for_the_dead_at_once():
    problem = Quadratic(seed=1, n_workers=4)
    layout = problem.layout
    for kind in ("coverage", "paper", "own"):
        method = Rated(GOCO, kind, "live", 4)
        total = np.zeros(layout.placement.n_shards)
        for i in (0, 1, 3):
            place = layout.place(i, problem.shares[i])
            state = method.start(np.zeros(problem.n_params), place)
            method.lose(state, place, np.array([True, True, False, True]))
            total[layout.placement.shards_of(i)] += method.encoding(state).weights
        np.testing.assert_allclose(total, 3 / layout.placement.n_shards, rtol=1e-12)


def test_table_newton_that_leaves_nobody_out_says_that_it_cannot_go_on():
    problem = Quadratic(seed=1, n_workers=4)
    place = problem.layout.place(0, problem.shares[0])  # without everybody's weights
    state = TABLE_NEWTON.start(np.zeros(problem.n_params), place)
    with pytest.raises(RunError, match=r"Rank 2 died, and method.kind = 'table_newton' leaves nobody out"):
        TABLE_NEWTON.lose(state, place, np.array([True, True, False, True]))
