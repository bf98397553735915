"""Quasi-global momentum: where it ends, how fast, and what a worker's own momentum would do."""

import numpy as np
import pytest
from test_simulate import EDGES, Network, decreasing, take_rounds

from goco_mpi.core import mixing, topology
from goco_mpi.core.methods.momentum import QuasiGlobalMomentum
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import Links, StackedMomentum, gossip_step, start
from goco_mpi.core.stragglers import StragglerModel

GRAPH = topology.from_edges(6, EDGES)
MATRIX = mixing.metropolis(GRAPH)
NOBODY_LATE = StragglerModel("none", 6)


@pytest.mark.parametrize("late", ["discard", "memory"])
@pytest.mark.parametrize("link_p", [0.0, 0.4])
@pytest.mark.parametrize("rule", ["stale", "fold", "symmetric"])
@pytest.mark.parametrize("beta", [0.3, 0.9])
def test_its_pure_functions_take_the_rounds_of_the_simulator(beta, rule, link_p, late):
    net = Network(rates=np.full(6, 0.5))
    stragglers = StragglerModel("bernoulli", 6, seed=3, p=0.5, link_p=link_p, paired_links=rule == "symmetric")
    step = StackedMomentum(start(net.shares), Links(MATRIX, stragglers, rule, 3), beta)
    expected = simulate(step, net.shares, decreasing, stragglers, 40, late=late)
    x = take_rounds(net, QuasiGlobalMomentum(beta), GRAPH, MATRIX, stragglers, 40, rule, 3, late)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    step = gossip_step(net.shares, MATRIX, stragglers, rule=rule, max_age=3)
    assert np.abs(simulate(step, net.shares, decreasing, stragglers, 40, late=late) - expected).max() > 1e-5


def constant_steps(net, beta, eta, n_rounds):
    """Return where so many rounds without stragglers lead."""
    if beta:
        step = StackedMomentum(start(net.shares), Links(MATRIX, NOBODY_LATE, "stale", 0), beta)
    else:
        step = gossip_step(net.shares, MATRIX, NOBODY_LATE)
    return simulate(step, net.shares, lambda t: eta, NOBODY_LATE, n_rounds)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_it_ends_where_goco_ends_and_a_workers_own_momentum_elsewhere(beta, seed):
    net, eta = Network(seed=seed), 0.1
    with_momentum, without = (constant_steps(net, b, eta, 4000) for b in (beta, 0.0))
    np.testing.assert_allclose(with_momentum, without, rtol=0, atol=1e-10)
    x, m = np.zeros((6, 4)), np.zeros((6, 4))
    for _ in range(4000):
        m = beta * m + [share.gradient(row) for share, row in zip(net.shares, x, strict=True)]
        x = MATRIX @ (x - eta * m)
    np.testing.assert_allclose(without, fixed_point(net, eta), rtol=0, atol=1e-10)
    np.testing.assert_allclose(x, fixed_point(net, eta / (1 - beta)), rtol=0, atol=1e-9)
    spread, own_spread = (np.linalg.norm(end - end.mean(axis=0)) for end in (without, x))
    assert own_spread > 1.5 * spread > 0.01


def fixed_point(net, eta):
    """Solve X = W (X - eta G(X)) for all workers at once."""
    local, constant = np.zeros((24, 24)), []
    for i, share in enumerate(net.shares):
        local[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] = np.eye(4) - eta * share.hessian(np.zeros(4))
        constant.append(-eta * share.gradient(np.zeros(4)))
    mixes = np.kron(MATRIX.toarray(), np.eye(4))
    return np.linalg.solve(np.eye(24) - mixes @ local, mixes @ np.concatenate(constant)).reshape(6, 4)


@pytest.mark.parametrize("seed", range(3))
def test_where_rounds_are_many_for_bad_scaling_it_is_several_times_faster(seed):
    net = Network(seed=seed)
    net.objective.l2 = 0.01
    for share in net.shares:
        share.coded.features[:] *= [1.0, 0.3, 0.3, 0.3]
    end = fixed_point(net, 0.01)
    with_momentum, without = (np.linalg.norm(constant_steps(net, b, 0.01, 1000) - end) for b in (0.9, 0.0))
    assert without > 0.1 * np.linalg.norm(end)
    assert with_momentum < 0.1 * without
