"""Completion rates as workers see and tell them, and the weights that follow."""

import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.config import parse_config
from goco_mpi.core import encoding, mixing, placement, rates, topology
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Gradient, Place
from goco_mpi.core.methods.goco import GOCO, Goco
from goco_mpi.core.methods.rated import Rated
from goco_mpi.core.stacked import Links
from goco_mpi.core.stacked.goco import StackedDescent
from goco_mpi.core.stacked.rated import StackedRated
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem
from goco_mpi.simulation.rounds import simulate_experiment


def feed(kind, steps):
    """Return the rate after ``(round, part)`` steps."""
    estimate = rates.RateEstimate(kind)
    rate = 1.0
    for round_, part in steps:
        rate = estimate.update(round_, part)
    return rate


@pytest.mark.parametrize("kind", ["counted", "ema"])
def test_whoever_always_finishes_has_rate_one_without_any_rounding(kind):
    estimate = rates.RateEstimate(kind)
    assert {estimate.update(t, 1.0) for t in range(500)} == {1.0}


@pytest.mark.parametrize("kind", ["counted", "ema"])
@settings(max_examples=50, deadline=None)
@given(done=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=200))
def test_a_rate_is_the_weighted_mean_of_what_was_finished(kind, done):
    beta = rates.decay(kind)
    powers = beta ** np.arange(len(done), -1.0, -1.0)
    expected = powers @ np.array([1.0, *done]) / powers.sum()  # one finished round comes before the first
    assert feed(kind, enumerate(done)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["counted", "ema"])
@settings(max_examples=50, deadline=None)
@given(gaps=st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_rounds_jumped_over_are_rounds_without_a_gradient(kind, gaps):
    rounds = np.cumsum(gaps) - 1
    every = [(t, float(t in rounds)) for t in range(rounds[-1] + 1)]
    # Gossip in the middle of a gradient is a step of no new round, or of no gradient.
    interim = [step for t in rounds for step in ((t, 0.0), (t, 1.0))]
    expected = feed(kind, every)
    assert feed(kind, ((t, 1.0) for t in rounds)) == pytest.approx(expected, rel=1e-12)
    assert feed(kind, interim) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("kind", "spread"), [("counted", 1.0 / 3000), ("ema", 0.5 * (1.0 - 0.99))])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_a_rate_estimates_the_probability_to_finish(kind, spread, q):
    # A mean with weights w has the variance q (1 - q) sum w^2; for an average with decay beta that is (1 - beta) / 2.
    deviation = np.sqrt(q * (1.0 - q) * spread)
    for seed in range(5):
        done = np.random.default_rng(seed).random(3000) < q
        assert abs(feed(kind, enumerate(done.astype(float))) - q) < 4.5 * deviation + 1.0 / 3000


@settings(max_examples=100, deadline=None)
@given(spells=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 0.5]), st.integers(1, 60)), min_size=1, max_size=12))
def test_the_stacked_arrays_forget_in_the_same_rounds(spells):
    done = np.repeat([part for part, _ in spells], [length for _, length in spells])[:, None]
    links = Links(mixing.metropolis(topology.ring(1)), StragglerModel("none", 1), "stale", 0)
    twin = StackedRated(StackedDescent(np.zeros((1, 1)), links, []), links, "ema", lambda worker, q, own: q)
    estimate = rates.RateEstimate("ema")
    for t, part in enumerate(done):
        twin.work(part, t)
        twin.advance(np.zeros((1, 1)), part > 0.0, 0.1, t)
        assert twin.q[0, 0] == pytest.approx(estimate.update(t, float(part[0])), rel=1e-9)


@pytest.mark.parametrize("usual", [1.0, 0.5, 0.1])
def test_who_was_frozen_and_is_back_is_not_taken_for_slow(usual):
    done = [(t, float(np.random.default_rng(t).random() < usual)) for t in range(1000)]
    assert feed("ema", done) < 0.7 or usual == 1.0
    assert feed("ema", [*done, *((2000 + t, 1.0) for t in range(3))]) == 1.0


def test_who_is_slow_no_more_has_rate_one_after_a_few_gradients_in_a_row():
    slow = [(t, float(t % 10 == 9)) for t in range(1000)]
    assert feed("ema", slow) == pytest.approx(0.1, abs=0.01)
    assert feed("ema", [*slow, *((1000 + t, 1.0) for t in range(2))]) < 0.2  # chance alone does that now and then
    assert feed("ema", [*slow, *((1000 + t, 1.0) for t in range(6))]) == 1.0


@pytest.mark.parametrize("period", [3, 30, 100])
def test_who_is_slow_from_the_first_round_is_not_forgotten_again_and_again(period):
    slow = [(t, float(t % period == period - 1)) for t in range(3000)]
    assert feed("ema", slow[: 2990 // period * period]) == pytest.approx(1.0 / period, rel=0.7)


@pytest.mark.parametrize("late", [(2, 3, 4, 5), tuple(range(8))], ids=["half of all", "all"])
def test_ranks_that_come_back_do_not_blow_the_parameters_up(monkeypatch, late):
    # Nobody finishes anything for 700 rounds, and then everybody all: weights of 100 on every gradient would be steps
    # fifty times too long, round after round.
    def finishing(self, t):
        finished = np.ones(8, dtype=bool)
        finished[list(late)] = not 100 <= t < 800
        return finished

    monkeypatch.setattr(StragglerModel, "finishing", finishing)
    config = parse_config(
        {
            "rounds": 1000,
            "data": {"source": "breast_cancer", "partition": "by_label", "shards": 8, "standardize": True},
            "objective": {"kind": "least_squares", "l2": 1e-2},
            "topology": {"kind": "ring"},
            "method": {"rates": "ema"},
            "stragglers": {"kind": "bernoulli", "p": 0.1},
            "record": {"every": 10},
        }
    )
    losses = {row["round"]: row["loss"] for row in simulate_experiment(config, 8).history}
    assert max(losses[t] for t in range(800, 1000, 10)) < 1.5 * losses[100]


@pytest.mark.parametrize("kind", ["counted", "ema"])
def test_a_silent_worker_s_rate_goes_on_as_if_it_finished_nothing(kind):
    said, n_silent = 1500, 35
    done = [(t, float(t % 3 > 0)) for t in range(said + 1)]
    expected = feed(kind, done + [(said + k, 0.0) for k in range(1, n_silent + 1)])
    now = said + rates.QUIET_ROUNDS + n_silent
    (present,) = rates.present(kind, np.array([feed(kind, done)]), np.array([float(said)]), now)
    # An average does not say how far it looks back; after 1500 rounds that is all of its horizon but 0.99^1500.
    assert present == pytest.approx(expected, rel=1e-12 if kind == "counted" else 1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), kind=st.sampled_from(["paper", "own", "coverage"]))
def test_a_worker_s_weights_are_its_row_of_all_weights(seed, kind):
    rng = np.random.default_rng(seed)
    placed = placement.pairwise_balanced(6, 9, int(rng.integers(1, 5)), seed=seed)
    q = rng.uniform(0.1, 1.0, 6)
    everything = encoding.build(kind, placed, q)
    for worker in range(6):
        held = placed.shards_of(worker)
        mine = encoding.of_worker(kind, placed.held[:, held], q, worker, rates.LEAST_RATE)
        np.testing.assert_allclose(mine, everything[worker, held], rtol=1e-14)


def test_weights_stay_finite_where_all_holders_are_silent():
    held = np.ones((3, 2), dtype=bool)
    for kind in ("paper", "own", "coverage"):
        assert (encoding.of_worker(kind, held, np.zeros(3), 0, rates.LEAST_RATE) == 1.0 / rates.LEAST_RATE).all()


PULLING_APART = """
[data]
source = "synthetic_regression"
partition = "in_order"
n_samples = 300
n_features = 4
condition_number = 10.0
heterogeneity = 1.0
shards = 12
[objective]
kind = "least_squares"
"""


def with_any_news(said, n_workers=6):
    """Yield shares of an experiment with what is ``said``, and their weights after news of all kinds."""
    config = parse_config({**tomllib.loads(PULLING_APART), **said})
    layout, problem = lay_out(config, n_workers), load_problem(config)
    rng = np.random.default_rng(0)
    for worker in range(n_workers):
        share = problem.share(layout, worker)
        state = layout.method.start(np.zeros(problem.objective.n_params), layout.place(worker, share))
        for round_ in range(1000, 30000, 1000):
            state.round = round_  # those of whom nothing is said now are silent for long
            for other in np.flatnonzero(rng.random(n_workers) < 0.5):
                state.table.post(other, round_, rng.choice([0.0, 0.01, 0.1, 0.5, 1.0]))
            yield share, layout.method.encoding(state).weights


def curvature(share):
    return float(np.linalg.eigvalsh(share.hessian(np.zeros(share.n_params)))[-1])


@pytest.mark.parametrize("kind", ["counted", "ema", "live"])
@pytest.mark.parametrize("weights", ["paper", "own", "coverage"])
def test_no_news_make_an_automatic_step_lead_away(weights, kind):
    """I - eta H_i has no eigenvalue below -1 for whoever finishes all its gradients, whatever it hears of others."""
    found = list(with_any_news({"method": {"weights": weights, "rates": kind}}))
    step_size = 1.0 / max(curvature(share) for share, _ in found)
    steepest = max(step_size * curvature(share.reweighted(now)) for share, now in found)
    assert 1.0 - 1e-9 <= steepest <= 2.0 + 1e-9


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("weights", ["paper", "coverage"])
def test_all_weights_of_a_worker_grow_at_most_as_an_automatic_step_allows(weights, scale):
    def growth(step):
        said = {"method": {"weights": weights, "rates": "ema"}, "placement": {"replication": 4}, "step": step}
        return max(now.sum() / share.weights.sum() for share, now in with_any_news(said))

    any_growth = growth({"kind": "constant", "size": 0.1})
    assert any_growth > 3.0
    assert growth({"scale": scale}) == pytest.approx(min(max(2.0 / scale, 1.0), any_growth), rel=1e-12)


def test_a_worker_that_jumps_over_rounds_does_not_make_up_for_them_in_one_step():
    method, state = started(0, kind="ema")
    own = np.empty(method.message_size(1))
    for round_ in range(0, 5000, 50):
        method.send(state, Gradient(np.ones(1), np.zeros(1)), 0.1, round_, own)
    assert state.table.entries[1, 0] < 0.1  # what others make up for
    assert state.estimate.of_steps == 1.0
    assert method.encoding(state).weights == pytest.approx(1.0, rel=0.01)  # with others silent: the shard is its own


class Counting(Goco):
    """A method from outside that counts, and grows rounding."""

    sensitive = True

    def counts(self, state):
        return {"undecoded": 3}


class EveryOther(Goco):
    """A method from outside that has no use for a gradient in odd rounds."""

    def needs_gradient(self, state, round_):
        return round_ % 2 == 0


def test_what_a_method_says_of_itself_it_says_with_observed_rates_too():
    method = Rated(Counting(), "coverage", "ema", 3)
    place = Place(0, 3, (), None, 1.0, np.ones((3, 2), dtype=bool), 3)
    assert method.counts(method.start(np.zeros(1), place)) == {"undecoded": 3}
    assert method.sensitive
    assert not Rated(GOCO, "coverage", "ema", 3).sensitive


def test_a_method_that_wants_no_gradient_in_some_rounds_is_refused():
    # They would count as rounds in which its workers were late.
    with pytest.raises(
        InputError, match=r"rates = 'ema' .* every round.* Got EveryOther.* Use method.rates = 'stated'"
    ):
        Rated(EveryOther(), "coverage", "ema", 3)


def started(worker, n_workers=3, kind="live"):
    method = Rated(GOCO, "coverage", kind, n_workers)
    place = Place(worker, n_workers, (), None, 1.0, np.ones((n_workers, 2), dtype=bool), n_workers)
    return method, method.start(np.zeros(1), place)


def test_news_travels_over_workers_that_hold_nothing_in_common():
    # 0 - 1 - 2: the ends hear of each other through the one between them.
    method, _ = started(0, kind="counted")
    states = [started(worker, kind="counted")[1] for worker in range(3)]
    near = [(1,), (0, 2), (1,)]
    gradient = Gradient(np.ones(1), np.zeros(1))
    for t in range(30):
        own = [np.empty(method.message_size(1)) for _ in states]
        for i, state in enumerate(states):
            method.send(state, gradient if i or t % 2 else None, 0.1, t, own[i])
        for i, state in enumerate(states):
            inbox = [Received(own[j], 0) for j in near[i]]
            method.receive(state, own[i], inbox, Mixing(np.full(len(inbox), 0.3), 0), 0.1)
    # Everybody knows all; what comes over two hops is one round older.
    assert [state.table.entries[0].tolist() for state in states] == [[29, 29, 28], [29, 29, 29], [28, 29, 29]]
    assert states[2].table.entries[1].tolist() == [pytest.approx(15.0 / 30.0, abs=0.02), 1.0, 1.0]
    assert method.encoding(states[2]).weights == pytest.approx(3.0 / 3.0 / 2.5, rel=0.01)


def test_the_weights_of_a_silent_worker_go_to_those_who_are_heard_of():
    method, state = started(0)
    own = np.empty(method.message_size(1))
    heard = np.full(method.message_size(1), -1.0)
    heard[-3:] = 1.0
    weights = []
    for t in range(2 * rates.DEAD_ROUNDS):
        method.send(state, Gradient(np.ones(1), np.zeros(1)), 0.1, t, own)
        heard[:1] = 0.0
        heard[2] = t  # worker 1 goes on; worker 2 never says anything
        method.receive(state, own, [Received(heard, 0)], Mixing(np.array([0.3]), 0), 0.1)
        weights.append(method.encoding(state).weights[0])
    # Worker 2 counts as last heard of in round -1.
    assert weights[: rates.DEAD_ROUNDS] == [pytest.approx(1.0 / 3.0)] * rates.DEAD_ROUNDS
    assert weights[rates.DEAD_ROUNDS :] == [0.5] * rates.DEAD_ROUNDS


def test_the_same_weights_are_the_same_object_so_that_no_rows_are_weighed_again():
    method, state = started(1)
    assert method.encoding(state) is method.encoding(state)


@pytest.mark.parametrize("kind", ["counted", "ema"])
def test_coverage_by_observed_rates_comes_near_coverage_by_true_ones(kind):
    # Holders that are not neighbours (a ring), unequal rates, lost messages.
    def laid_out(rates_kind):
        raw = {
            "data": {"source": "synthetic", "n_samples": 160, "n_features": 3, "shards": 16},
            "objective": {"kind": "least_squares"},
            "topology": {"kind": "ring"},
            "method": {"rates": rates_kind},
            "stragglers": {"kind": "persistent", "ranks": [1, 4], "factor": 5, "p": 0.2, "link_p": 0.3},
        }
        return lay_out(parse_config(raw), 8), parse_config(raw)

    true = laid_out("stated")[0].encoding_weights
    layout, config = laid_out(kind)
    method, late, problem = layout.method, layout.stragglers, load_problem(config)
    shares = [problem.share(layout, i) for i in range(8)]
    states = [method.start(np.zeros(4), layout.place(i, shares[i])) for i in range(8)]
    newest = {}
    for t in range(600):
        own = [np.empty(method.message_size(4)) for _ in states]
        for i, state in enumerate(states):
            gradient = Gradient(np.zeros(4), state.params) if late.finishes(i, t) else None
            method.send(state, gradient, 0.0, t, own[i])
        for i, state in enumerate(states):
            near = layout.topology.neighbors(i)
            newest |= {(j, i): own[j] for j in near if late.arrives(j, i, t)}
            inbox = [Received(newest.get((j, i)), 0) for j in near]
            method.receive(state, own[i], inbox, layout.mixing(i), 0.0)
    # Two holders' rates, each within 4.5 deviations: q (1 - q) <= 1/4 times 1/200 for an average over 100 rounds.
    bound = 4.5 * np.sqrt(2.0 * 0.25 / (200.0 if kind == "ema" else 600.0))
    for i, state in enumerate(states):
        held = layout.placement.shards_of(i)
        seen = method.encoding(state).weights * 16 / 8
        assert np.abs(1.0 / seen - 1.0 / true[i, held]).max() < bound
        assert not np.array_equal(seen, true[i, held])
