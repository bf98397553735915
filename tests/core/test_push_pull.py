"""Push-pull: what the trackers and the messages under way hold is always the sum of the last gradients."""

import itertools

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core import mixing, topology
from goco_mpi.core.gossip import Mixing, Received, age_limit
from goco_mpi.core.methods import Gradient, Place
from goco_mpi.core.methods.push_pull import PUSH_PULL
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import Links, gossip_step
from goco_mpi.core.stacked.push_pull import StackedPushPull
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem

HELD = np.ones((8, 0), dtype=bool)
GRAPHS = {"ring": topology.ring(8), "star": topology.star(8), "exponential": topology.exponential(8)}


@pytest.mark.parametrize("rule", ["fold", "stale"])
@pytest.mark.parametrize("name", GRAPHS)
def test_trackers_and_what_is_under_way_sum_to_the_memories_in_every_round(name, rule):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((8, 3))
    late = StragglerModel("bernoulli", 8, seed=2, p=0.5, link_p=0.4)
    step = StackedPushPull(x, Links(mixing.metropolis(GRAPHS[name]), late, rule, 3), [])
    last = np.zeros_like(x)
    most_under_way = 0.0
    for t in range(300):
        # Gradients that have nothing to do with x: whatever they are, none of them may get lost.
        g = rng.standard_normal(x.shape)
        finished = np.array([late.finishes(i, t) for i in range(8)])
        last[finished] = g[finished]
        step.advance(g, finished, 0.1, t)
        np.testing.assert_array_equal(step.m, last)
        np.testing.assert_allclose(step.y.sum(axis=0) + step.in_flight(), last.sum(axis=0), rtol=0, atol=1e-12)
        most_under_way = max(most_under_way, float(np.abs(step.in_flight()).max()))
    assert most_under_way > 0.1


def under_way(states, neighbors):
    """Return the part of the running sums that nobody has taken in yet, or has and not put into a tracker."""
    total = np.zeros(3)
    for state, near in zip(states, neighbors, strict=True):
        total += state.inflow
        for j, rho in zip(near, state.rho, strict=True):
            total += states[j].sigma - rho
    return total


@pytest.mark.parametrize("rule", ["fold", "stale"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("seed", [0, 1])
def test_they_do_so_in_an_asynchronous_network_after_every_call(name, rule, seed):
    # Chance decides who sends or takes in next, with which gradient, and how old what it hears is.
    rng = np.random.default_rng(seed)
    graph, n = GRAPHS[name], 8
    matrix = mixing.metropolis(graph)
    neighbors = [graph.neighbors(i) for i in range(n)]
    mixings = [Mixing(mixing.neighbor_weights(matrix, graph, i), age_limit(rule, 3)) for i in range(n)]
    # A tracker knows nothing of shards.
    states = [PUSH_PULL.start(rng.standard_normal(3), Place(i, n, neighbors[i], None, 1.0, HELD, 0)) for i in range(n)]
    sent = [[] for _ in range(n)]
    heard = [dict.fromkeys(near, -1) for near in neighbors]
    own = [None] * n  # between sending and receiving
    last = np.zeros((n, 3))
    for _ in range(3000):
        i = int(rng.choice(n, p=np.arange(1, n + 1) / 36))  # some are eight times as fast as others
        state = states[i]
        if own[i] is None:
            gradient = None
            if rng.random() < 0.5:
                last[i] = rng.standard_normal(3)
                gradient = Gradient(last[i].copy(), state.params.copy())
            own[i] = np.empty(PUSH_PULL.message_size(3))
            PUSH_PULL.send(state, gradient, 0.1, 0, own[i])
            sent[i].append(own[i])
        else:
            inbox = []
            for j in neighbors[i]:
                if sent[j] and rng.random() < 0.6:
                    heard[i][j] = int(rng.integers(max(heard[i][j], 0), len(sent[j])))
                message = None if heard[i][j] < 0 else sent[j][heard[i][j]]
                inbox.append(Received(message, len(sent[i]) - heard[i][j]))
            PUSH_PULL.receive(state, own[i], inbox, mixings[i], 0.1)
            own[i] = None
        found = sum(state.tracker for state in states) + under_way(states, neighbors)
        # Each number has been added to others some hundred times.
        np.testing.assert_allclose(found, last.sum(axis=0), rtol=0, atol=1e-12)
    assert np.abs(under_way(states, neighbors)).max() > 0.1


def test_the_invariant_is_kept_by_the_goodbye():
    # It is sent like any other message, without a gradient and with no step: what it carries is all there is.
    state = PUSH_PULL.start(np.ones(3), Place(0, 2, (1,), None, 1.0, HELD, 0))
    message = np.empty(6)
    PUSH_PULL.send(state, Gradient(np.arange(3.0), np.ones(3)), 0.1, 0, message)
    PUSH_PULL.receive(state, message, [Received(None, 0)], Mixing(np.array([0.5]), 0), 0.1)
    params = state.params.copy()
    PUSH_PULL.send(state, None, 0.0, 0, message)
    np.testing.assert_array_equal(message[:3], params)
    np.testing.assert_allclose(state.tracker + state.sigma, np.arange(3.0), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(message[3:], state.sigma)


class Heterogeneous:
    """Least squares on 32 workers, each shard with a solution of its own; half of the gradients are late."""

    def __init__(self, link_p=0.0):
        self.raw = {
            "seed": 1,
            "data": {
                "source": "synthetic",
                "partition": "in_order",
                "heterogeneity": 1.0,
                "n_samples": 1600,
                "n_features": 10,
                "shards": 32,
                "noise": 0.1,
                "test_fraction": 0.0,
            },
            "objective": {"kind": "least_squares", "l2": 1e-2},
            "topology": {"kind": "exponential"},
            "stragglers": {"kind": "bernoulli", "p": 0.5, "link_p": link_p},
        }

    def gaps(self, method, step_size, n_rounds):
        """Return the worst worker's suboptimality in every round, relative to the first."""
        config = parse_config({**self.raw, "method": {"kind": method}})
        layout, problem = lay_out(config, 32), load_problem(config)
        rows = problem.pooled_rows()
        weighted = rows.weights[:, None] * rows.features
        hessian = weighted.T @ rows.features + config.objective.l2 * np.eye(problem.objective.n_params)
        best = np.linalg.solve(hessian, weighted.T @ rows.targets)
        shares = [problem.share(layout, worker) for worker in range(32)]
        found = []

        def observe(round_, x):
            # Of a quadratic, and without the rounding of a difference of losses.
            found.append(float((0.5 * ((x - best) @ hessian) * (x - best)).sum(axis=1).max()))
            return True

        simulate(
            gossip_step(
                shares, layout.mixing_matrix, layout.stragglers, method, config.method.mixing, config.method.max_age
            ),
            shares,
            lambda t: step_size,
            layout.stragglers,
            n_rounds,
            observe=observe,
        )
        return np.array(found) / found[0]


STEP = 0.1


@pytest.mark.parametrize("link_p", [0.0, 0.3])
def test_convergence_is_linear_where_a_constant_step_of_goco_stalls(link_p):
    problem = Heterogeneous(link_p)
    push_pull, goco = (problem.gaps(method, STEP, 1000) for method in ("push_pull", "goco"))
    # Half of the gradients are late and every shard pulls elsewhere: goco stays in a ball, whose radius is the step's.
    assert goco[200:].min() > 1e-3
    assert push_pull[1000] < 1e-10
    # Linear: down to where rounding is felt, every 100 rounds take off a factor of ten at least.
    for before, after in itertools.pairwise(push_pull[::100]):
        assert after < max(0.1 * before, 1e-25)
