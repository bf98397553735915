"""GOCO on running sums: nothing that is sent is ever lost."""

import numpy as np
import pytest

from goco_mpi.core import mixing, topology
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Place
from goco_mpi.core.methods.running_sums import RUNNING_SUMS
from goco_mpi.core.stacked import Links, StackedRunningSums
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError

GRAPHS = {"ring": topology.ring(8), "star": topology.star(8), "exponential": topology.exponential(8)}
HELD = np.ones((8, 0), dtype=bool)
ALL = np.ones(8, dtype=bool)


@pytest.mark.parametrize("name", GRAPHS)
def test_all_mass_is_conserved_however_much_is_lost_and_ends_as_the_mean_everywhere(name):
    x = np.random.default_rng(1).standard_normal((8, 3))
    lossy = StragglerModel("none", 8, seed=2, link_p=0.5)
    step = StackedRunningSums(x, Links(mixing.metropolis(GRAPHS[name]), lossy, "running", 0), [])
    total = np.append(x.sum(axis=0), 8.0)
    most_under_way = 0.0
    for t in range(1500):
        step.advance(np.zeros_like(x), ALL, 0.1, t)
        np.testing.assert_allclose(step.total(), total, rtol=0, atol=1e-12 * np.abs(step.sigma).max())
        most_under_way = max(most_under_way, float(np.abs(step.mass.sum(axis=0) - total).max()))
    assert most_under_way > 0.1  # links that lose nothing would have shown nothing
    # Sums of a thousand rounds are known to one part in 1e16 of themselves a round.
    np.testing.assert_allclose(step.x, np.tile(x.mean(axis=0), (8, 1)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_worker_that_takes_and_gives_nothing_back_does_not_leave_the_others_with_rounding(name):
    # As one that is frozen: what neighbours send it is gone until it goes on.
    x = np.random.default_rng(5).standard_normal((8, 3))
    silent = StragglerModel("none", 8, seed=6, link_p=(1.0 - 1e-9, *[0.0] * 7))
    step = StackedRunningSums(x, Links(mixing.metropolis(GRAPHS[name]), silent, "running", 0), [])
    for t in range(3000):
        step.advance(np.zeros_like(x), ALL, 0.1, t)
        # Parameters are weighted means of the first ones, up to what 1e-16 of a sum is to a weight of 1e-7.
        assert (step.x >= x.min(axis=0) - 1e-7).all() and (step.x <= x.max(axis=0) + 1e-7).all()
    assert step.mass[:, -1].min() < 1e-6


def test_the_mass_changes_by_the_gradients_alone():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((8, 3))
    lossy = StragglerModel("none", 8, seed=4, link_p=0.5)
    step = StackedRunningSums(x, Links(mixing.metropolis(GRAPHS["star"]), lossy, "running", 0), [])
    for t in range(100):
        g, before = rng.standard_normal(x.shape), step.total()
        weights = step.mass[:, -1:].copy()
        step.advance(g, ALL, 0.1, t)
        change = np.append(-0.1 * (weights * g).sum(axis=0), 0.0)
        np.testing.assert_allclose(step.total() - before, change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_messages_that_come_late_or_never_take_nothing_with_them_in_an_asynchronous_network(seed):
    # The method's own functions; chance decides who takes a step, and how old what it hears is.
    rng = np.random.default_rng(seed)
    graph, n = GRAPHS["star"], 8
    x = rng.standard_normal((n, 3))
    neighbors = [graph.neighbors(i) for i in range(n)]
    # Shares and weights play no part in running sums.
    states = [RUNNING_SUMS.start(x[i], Place(i, n, neighbors[i], None, 1.0, HELD, 0)) for i in range(n)]
    sent = [[] for _ in range(n)]
    heard = [dict.fromkeys(near, -1) for near in neighbors]
    total = np.append(x.sum(axis=0), n)
    for _ in range(3000):
        i = int(rng.choice(n, p=np.arange(1, n + 1) / 36))  # some are eight times as fast as others
        message = np.empty(4)
        RUNNING_SUMS.send(states[i], None, 0.1, 0, message)
        sent[i].append(message)
        inbox = []
        for j in neighbors[i]:
            if sent[j] and rng.random() < 0.6:
                heard[i][j] = int(rng.integers(max(heard[i][j], 0), len(sent[j])))
            inbox.append(Received(None if heard[i][j] < 0 else sent[j][heard[i][j]], 0))
        RUNNING_SUMS.receive(states[i], message, inbox, Mixing(np.empty(0), 0), 0.1)
        under_way = sum(
            states[j].sigma - states[i].rho[place] for i in range(n) for place, j in enumerate(neighbors[i])
        )
        found = sum(state.mass for state in states) + under_way
        scale = max(1.0, max(np.abs(state.sigma).max() for state in states))
        np.testing.assert_allclose(found, total, rtol=0, atol=1e-12 * scale)
    for state in states:
        np.testing.assert_allclose(state.params, x.mean(axis=0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_average_stays_to_1e_12_over_1500_rounds_of_loss_lateness_and_overtaking(seed):
    # A message is lost, or takes up to nine rounds: a newer one may overtake it, and then it is not taken any more.
    rng = np.random.default_rng(seed)
    graph, n = GRAPHS["exponential"], 8
    x = rng.standard_normal((n, 3))
    neighbors = [graph.neighbors(i) for i in range(n)]
    states = [RUNNING_SUMS.start(x[i], Place(i, n, neighbors[i], None, 1.0, HELD, 0)) for i in range(n)]
    newest = [dict.fromkeys(near, (-1, None)) for near in neighbors]
    arriving = {}  # round -> [(dest, source, round sent, message)]
    n_overtaken = n_lost = 0
    for t in range(1500):
        sent = np.empty((n, 4))
        for i, state in enumerate(states):
            RUNNING_SUMS.send(state, None, 0.1, t, sent[i])
            for j in neighbors[i]:
                if rng.random() < 0.3:
                    n_lost += 1
                else:
                    arriving.setdefault(t + int(rng.integers(10)), []).append((j, i, t, sent[i].copy()))
        for i, j, sent_in, message in arriving.pop(t, []):
            if sent_in > newest[i][j][0]:
                newest[i][j] = (sent_in, message)
            else:
                n_overtaken += 1
        for i, state in enumerate(states):
            inbox = [Received(message, t - sent_in) for sent_in, message in (newest[i][j] for j in neighbors[i])]
            RUNNING_SUMS.receive(state, sent[i], inbox, Mixing(np.empty(0), 0), 0.1)
        total = sum(state.mass for state in states) + sum(
            states[j].sigma - states[i].rho[place] for i in range(n) for place, j in enumerate(neighbors[i])
        )
        np.testing.assert_allclose(total[:-1] / total[-1], x.mean(axis=0), rtol=0, atol=1e-12)
    assert min(n_lost, n_overtaken) > 1000
    for state in states:
        np.testing.assert_allclose(state.params, x.mean(axis=0), rtol=0, atol=1e-12)


def test_single_precision_is_refused_with_the_reason():
    place = Place(0, 8, GRAPHS["ring"].neighbors(0), None, 1.0, HELD, 0)
    with pytest.raises(InputError, match=r"'running' needs parameters of float64. Got float32: the sums grow .* Use"):
        RUNNING_SUMS.start(np.zeros(3, dtype=np.float32), place)


def test_single_precision_would_lose_the_average_a_thousand_times_beyond_what_is_promised():
    # The reason for the refusal: what a sum of t rounds rounds off in float32, t 2^-24 of a vector of size 1.
    values = np.random.default_rng(7).standard_normal(1500).astype(np.float32)
    lost = float(np.cumsum(values)[-1]) - float(np.cumsum(values.astype(np.float64))[-1])
    assert abs(lost) > 1e-9
