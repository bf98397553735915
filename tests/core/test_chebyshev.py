"""Several gossip rounds to a gradient."""

import math

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core import mixing, topology
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Gradient, Place
from goco_mpi.core.methods.chebyshev import Chebyshev
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.simulation.rounds import Simulation

GRAPHS = {"ring": topology.ring(8), "star": topology.star(8), "exponential": topology.exponential(8)}
HELD = np.ones((8, 0), dtype=bool)


def gossip(graph, n_rounds, first, radius=None):
    """Return everybody's vectors after the rounds of one gradient of zero."""
    matrix = mixing.metropolis(graph)
    method = Chebyshev(n_rounds, 1.0 - mixing.spectral_gap(matrix) if radius is None else radius)
    near = [graph.neighbors(i) for i in range(8)]
    mixings = [Mixing(mixing.neighbor_weights(matrix, graph, i), 0) for i in range(8)]
    states = [method.start(x, Place(i, 8, near[i], None, 1.0, HELD, 0)) for i, x in enumerate(first)]
    zero = Gradient(np.zeros(first.shape[1]), first[0])
    for k in range(n_rounds):
        assert [method.needs_gradient(state, k) for state in states] == [k == 0] * 8
        sent = np.empty_like(first)
        for state, out in zip(states, sent, strict=True):
            method.send(state, zero if k == 0 else None, 0.1, k, out)
        for i, state in enumerate(states):
            method.receive(state, sent[i], [Received(sent[j], 0) for j in near[i]], mixings[i], 0.1)
    assert [method.needs_gradient(state, n_rounds) for state in states] == [True] * 8
    return np.array([state.params for state in states])


@pytest.mark.parametrize("n_rounds", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("name", GRAPHS)
def test_it_is_the_polynomial_of_the_matrix(name, n_rounds):
    matrix = mixing.metropolis(GRAPHS[name]).toarray()
    values, vectors = np.linalg.eigh(matrix)
    radius = max(np.sort(np.abs(values))[-2], 1e-3)
    x = np.random.default_rng(1).standard_normal((8, 3))
    # T_K by its cosine, of numbers outside [-1, 1] by the hyperbolic one.
    argument = values / radius
    outside = np.abs(argument) > 1.0
    polynomial = np.empty(8)
    polynomial[~outside] = np.cos(n_rounds * np.arccos(argument[~outside]))
    polynomial[outside] = (
        np.cosh(n_rounds * np.arccosh(np.abs(argument[outside]))) * np.sign(argument[outside]) ** n_rounds
    )
    polynomial /= math.cosh(n_rounds * math.acosh(1.0 / radius))
    expected = vectors @ (polynomial[:, None] * (vectors.T @ x))
    np.testing.assert_allclose(gossip(GRAPHS[name], n_rounds, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
def test_disagreement_shrinks_as_the_polynomial_promises_and_the_average_stays(name):
    gap = mixing.spectral_gap(mixing.metropolis(GRAPHS[name]))
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((8, 3))
        mean = x.mean(axis=0)
        for n_rounds in (2, 4, 9):
            ended = gossip(GRAPHS[name], n_rounds, x)
            np.testing.assert_allclose(ended.mean(axis=0), mean, rtol=0, atol=1e-13)
            promised = 1.0 / math.cosh(n_rounds * math.acosh(1.0 / (1.0 - gap)))
            assert np.linalg.norm(ended - mean) <= promised * np.linalg.norm(x - mean) * (1.0 + 1e-9)
            assert promised < (1.0 - gap) ** n_rounds  # plain rounds shrink it by no less than that


def test_on_a_complete_graph_one_round_is_enough_and_more_do_no_harm():
    x = np.random.default_rng(2).standard_normal((8, 3))
    for n_rounds in (1, 2, 7):
        ended = gossip(topology.complete(8), n_rounds, x)
        # Of the polynomial for a lambda of 1e-3, T_K(0) / T_K(1000) is left.
        left = abs(math.cos(n_rounds * math.pi / 2.0)) / math.cosh(n_rounds * math.acosh(1000.0))
        assert np.linalg.norm(ended - x.mean(axis=0)) <= left * np.linalg.norm(x) + 1e-13


def suboptimal(gossip_rounds):
    """Return the spread of the workers and the distance of their mean after 40 gradients on unlike shards."""
    raw = {
        "rounds": 40 * gossip_rounds,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 8, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "ring"},
        "placement": {"kind": "uncoded"},
        "method": {"gossip_rounds": gossip_rounds, "late": "wait"},
    }
    simulation = Simulation(parse_config(raw), 8)
    x = simulation.run(lambda round_, stacked: True)
    return float(np.linalg.norm(x - x.mean(axis=0)))


def test_more_gossip_to_a_gradient_leaves_less_disagreement_on_unlike_shards():
    assert suboptimal(4) < 0.2 * suboptimal(1)


def test_the_method_is_chosen_where_it_is_asked_for():
    method = {"gossip_rounds": 3, "late": "wait"}
    for kind in ("goco", "dgd"):
        assert isinstance(lay_out(parse_config({"method": {**method, "kind": kind}}), 4).method, Chebyshev)
    assert not isinstance(lay_out(parse_config({"method": {"late": "wait"}}), 4).method, Chebyshev)


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"method": {"kind": "push_pull"}}, "goes with method.kind = 'goco' or 'dgd'"),
        ({"method": {"mixing": "running"}}, "goes with method.kind = 'goco' or 'dgd'"),
        ({"method": {"compression": "top_k"}}, "does not go with method.compression"),
        ({"method": {"momentum": 0.5}}, "does not go with method.compression, method.momentum"),
        ({"method": {"late": "memory"}, "deadline": {"gossip_s": "inf"}}, "not sound with method.late = 'memory'"),
        ({"method": {"late": "discard"}}, "needs every message of every round"),
        ({"stragglers": {"link_p": 0.1}}, "needs every message of every round"),
        ({"stop": {"gradient_norm": 0.1}}, "read off steps along the gradient"),
    ],
)
def test_it_is_refused_where_a_round_may_lack_a_message_or_a_gradient_is_not_its_own(tables, why):
    raw = {**tables, "method": {"gossip_rounds": 3, "late": "wait", **tables.get("method", {})}}
    with pytest.raises(InputError, match=rf"method.gossip_rounds = 3.*{why}|{why}"):
        parse_config(raw)
