"""Coded table Newton: its invariants, its rounds, and its round against the stacked arrays'."""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from goco_mpi.config import parse_config, to_dict
from goco_mpi.core import encoding, mixing, objectives, optimum, placement, topology
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Gradient, Place, table_newton
from goco_mpi.core.methods.scaling import Scaling, damping
from goco_mpi.core.methods.table_newton import TABLE_NEWTON
from goco_mpi.core.methods.table_newton_rook import TABLE_NEWTON_ROOK
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.reweighting import MOST_WORKERS, patience
from goco_mpi.core.shares import CustomShare, ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import gossip_step
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import lay_out

EXAMPLE = Path(__file__).parents[2] / "examples" / "table_newton_rounds.py"
EPS = np.finfo(np.float64).eps
NO_MIXING = Mixing(np.empty(0), 0)
HELD = np.ones((1, 0), dtype=bool)
"""Nobody here asks who else holds what."""


class Problem:
    """A linear model on as many workers as shards, of ``n`` rows each, every shard with its own solution."""

    def __init__(
        self, *, n_workers=8, n=500, n_params=100, cond=100.0, replication=2, seed=0, kind="least_squares", l2=0.0,
        unlike=0.1, holders="cyclic", features=None,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        drawn = rng.standard_normal((n_workers * n, n_params)) * np.geomspace(1.0, cond**-0.5, n_params)
        self.features = drawn if features is None else features
        common = rng.standard_normal(n_params)
        own = np.repeat(common + unlike * rng.standard_normal((n_workers, n_params)), n, axis=0)
        outputs = np.einsum("ij,ij->i", drawn, own) + 0.5 * rng.standard_normal(len(drawn))
        classes = None
        self.targets = outputs
        if kind == "logistic":
            self.targets, classes = np.where(outputs > 0.0, 1.0, -1.0), 2
        elif kind == "softmax":
            self.targets, classes = np.digitize(outputs, [-0.5, 0.5]).astype(float), 3
        self.objective = objectives.build(kind, n_params, l2, classes)
        self.pooled = WeightedRows(self.features, self.targets, np.full(len(drawn), 1.0 / len(drawn)), 1.0)
        placed = placement.build(holders, n_workers, n_workers, replication, seed)
        self.shares = []
        self.all_weights = encoding.plain(placed, np.ones(n_workers))
        for worker, weights in enumerate(self.all_weights):
            held = placed.shards_of(worker)
            index = np.array([row for k in held for row in range(k * n, (k + 1) * n)], dtype=np.intp)
            rows = WeightedRows(
                self.features[index], self.targets[index], np.repeat(weights[held] / n, n), float(weights.sum())
            )
            self.shares.append(ModelShare(self.objective, rows, rows, [n] * len(held), weights[held], rows))

    @property
    def n_params(self):
        return self.objective.n_params

    def best(self):
        if self.objective.quadratic:
            right = self.features.T @ (self.pooled.weights * self.targets)
            return np.linalg.solve(self.objective.hessian(np.zeros(self.n_params), self.pooled), right)
        x = optimum.minimize(self.objective, self.pooled)[0]
        for _ in range(3):  # from L-BFGS's digits to all of them
            x = x - np.linalg.solve(self.objective.hessian(x, self.pooled), self.objective.gradient(x, self.pooled))
        return x


class Network:
    """The method's own states on a complete graph, or rows of so many columns, round by round."""

    def __init__(self, shares, all_weights=None, columns=None):
        n = len(shares)
        self.t = 0
        self.method = TABLE_NEWTON if columns is None else TABLE_NEWTON_ROOK
        graph = topology.complete(n) if columns is None else topology.rook(n, rows=n // columns)
        neighbors = [graph.neighbors(i) for i in range(n)]
        self.shares = shares
        self.n_params = shares[0].n_params
        self.states = [
            self.method.start(
                np.zeros(self.n_params), Place(i, n, neighbors[i], share, share.weight, HELD, 0, all_weights)
            )
            for i, share in enumerate(shares)
        ]
        self.newest = {}
        self.gradients = [None] * n

    @property
    def x(self):
        return np.stack([state.params for state in self.states])

    def round(self, finished=lambda i: True, arrives=lambda source, dest: True, repeat=False):
        """Take a round; with ``repeat`` a late worker hands in its last gradient again."""
        messages = []
        for i, state in enumerate(self.states):
            gradient = self.gradients[i] if repeat else None
            if finished(i) and self.method.needs_gradient(self.states[i], self.t):
                encoding = self.method.encoding(state)
                share = self.shares[i] if encoding is None else self.shares[i].reweighted(encoding.weights)
                gradient = Gradient(share.gradient(state.params), state.params.copy(), encoding)
                self.gradients[i] = gradient
            out = np.full(self.method.message_size(self.n_params), np.nan)
            self.method.send(state, gradient, np.nan, self.t, out)
            messages.append(out)
        for i, state in enumerate(self.states):
            for j in state.place.neighbors:
                if arrives(j, i):
                    self.newest[i, j] = messages[j]
            inbox = [Received(self.newest.get((i, j)), 0) for j in state.place.neighbors]
            self.method.receive(state, messages[i], inbox, NO_MIXING, np.nan)
        self.t += 1


def fill(state, points, gradients, weights):
    """Put entries of all workers into a table, its worker's own too."""
    state.table.stamps[:] = 1.0
    state.table.weights[:] = weights
    state.table.points[:] = points
    state.table.gradients[:] = gradients


def filled(network, points):
    """Give every worker every worker's entry at that worker's point; return the sum of the sizes of the gradients."""
    gradients = np.stack([share.gradient(point) for share, point in zip(network.shares, points, strict=True)])
    for state in network.states:
        fill(state, points, gradients, [share.weight for share in network.shares])
    return np.abs(gradients).sum(axis=0).max()


def message(stamp, weight, numbers, *, round_=0, coded_without=0, declared=(0, 0)):
    return np.concatenate([declared, [stamp, round_, coded_without, weight], numbers])


SMALL = Problem(n_workers=6, n=10, n_params=2)


def no_news(state):
    TABLE_NEWTON.receive(state, np.empty(0), [Received(None, 0)] * len(state.place.neighbors), NO_MIXING, np.nan)


# Invariants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.03, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["least_squares", "logistic"])
def test_a_table_of_entries_at_the_optimum_leaves_everyone_there_with_any_step_and_scaling(kind, alpha):
    problem = Problem(n_workers=5, n=60, n_params=6, kind=kind, l2=0.1, unlike=1.0)
    best = problem.best()
    network = Network(problem.shares)
    size = filled(network, np.tile(best, (5, 1)))
    rng = np.random.default_rng(1)
    for state in network.states:
        root = rng.standard_normal((6, 6))
        state.scaling = state.first_scaling = Scaling(root @ root.T + np.eye(6), 0.0)  # P^-1 is at most 1
        state.alpha = alpha
        no_news(state)
        # What the gradients' sum, zero but for rounding, and the mean of equal points are off by.
        assert np.abs(state.params - best).max() <= 1e3 * EPS * (size + 1.0)
    # And with part of the news: the entries are the same, whoever brings them.
    for rounds in range(4):
        network.round(finished=lambda i: i != 2, arrives=lambda source, dest, t=rounds: (source + dest + t) % 3 > 0)
    np.testing.assert_allclose(network.x, np.tile(best, (5, 1)), rtol=0, atol=1e5 * EPS)


@pytest.mark.parametrize("holders", ["uncoded", "cyclic", "pairwise_balanced", "bernoulli"])
@pytest.mark.parametrize("kind", ["least_squares", "logistic", "softmax"])
def test_equal_points_make_the_tables_gradient_that_of_the_pooled_loss(kind, holders):
    replication = 1 if holders == "uncoded" else 3
    problem = Problem(n_workers=6, n=40, n_params=5, kind=kind, l2=0.1, holders=holders, replication=replication)
    point = np.random.default_rng(2).standard_normal(problem.n_params)
    network = Network(problem.shares)
    filled(network, np.tile(point, (6, 1)))
    for state in network.states:
        no_news(state)
        np.testing.assert_allclose(state.mean_point, point, rtol=1e-13)
        np.testing.assert_allclose(
            state.mean_gradient, problem.objective.gradient(point, problem.pooled), rtol=0, atol=1e-13
        )


def test_with_the_pooled_hessian_and_a_full_step_least_squares_take_one_round_from_any_points():
    # Equal Hessians, so that the mean of the gradients is the gradient at the mean.
    same = np.tile(np.random.default_rng(0).standard_normal((40, 5)), (6, 1))
    problem = Problem(n_workers=6, n=40, n_params=5, unlike=1.0, features=same, replication=1)
    best, hessian = problem.best(), problem.objective.hessian(np.zeros(5), problem.pooled)
    network = Network(problem.shares)
    filled(network, 10.0 * np.random.default_rng(3).standard_normal((6, 5)))
    for state in network.states:
        state.scaling, state.alpha = Scaling(hessian, 0.0), 1.0
        no_news(state)
        np.testing.assert_allclose(state.params, best, rtol=0, atol=1e4 * EPS * np.linalg.cond(hessian))


@given(st.data())
def test_delivery_duplicated_reordered_or_delayed_ends_in_the_same_table_bit_by_bit(data):
    n_workers, n_params, n_messages = 4, 2, 4
    rng = np.random.default_rng(0)
    sent = {
        j: [message(stamp, 1.0, rng.standard_normal(2 * n_params)) for stamp in range(1, n_messages + 1)]
        for j in (1, 2, 3)
    }
    share = SimpleNamespace(n_params=n_params, n_rows=0, quadratic=True, hessian=lambda params: np.eye(n_params))

    def state():
        return TABLE_NEWTON.start(np.zeros(n_params), Place(0, n_workers, (1, 2, 3), share, 1.0, HELD, 0))

    def deliver(state, messages):
        inbox = [Received(None if message is None else message.copy(), 0) for message in messages]
        TABLE_NEWTON.receive(state, np.empty(0), inbox, NO_MIXING, np.nan)

    plain, disturbed = state(), state()
    for stamp in range(n_messages):
        deliver(plain, [sent[j][stamp] for j in (1, 2, 3)])
    for _ in range(data.draw(st.integers(1, 8))):
        index = [data.draw(st.none() | st.integers(0, n_messages - 1)) for _ in sent]
        deliver(disturbed, [None if k is None else sent[j][k] for j, k in zip((1, 2, 3), index, strict=True)])
    for j in data.draw(st.permutations((1, 2, 3))):  # the newest of each comes at last, or came already
        deliver(disturbed, [sent[j][-1] if i == j else None for i in (1, 2, 3)])
    deliver(disturbed, [sent[j][0] for j in (1, 2, 3)])
    for name in ("stamps", "weights", "points", "gradients"):
        np.testing.assert_array_equal(getattr(plain.table, name), getattr(disturbed.table, name))
    np.testing.assert_array_equal(plain.mean_gradient, disturbed.mean_gradient)
    assert plain.table.points[1:].all()


def test_features_in_another_basis_give_the_same_points_in_that_basis():
    problem = Problem(n_workers=5, n=60, n_params=6, unlike=1.0)
    basis = np.random.default_rng(4).standard_normal((6, 6)) @ np.diag(np.geomspace(1.0, 1e-2, 6))
    turned = Problem(n_workers=5, n=60, n_params=6, unlike=1.0, features=problem.features @ basis)
    assert damping(problem.shares[0]) == 0.0
    plain, other = Network(problem.shares), Network(turned.shares)
    for _ in range(6):
        plain.round()
        other.round()
        expected = np.linalg.solve(basis, plain.x.T).T
        # cond(basis) is a few hundred, and squared in the Hessian.
        np.testing.assert_allclose(other.x, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def freeze_alpha(monkeypatch, alpha):
    monkeypatch.setattr(table_newton, "relaxation", lambda curvatures: alpha)


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_modes_of_the_mean_inverse_hessian_times_the_hessian_obey_their_recurrence(monkeypatch, alpha):
    # lambda^2 - (1 - alpha) lambda + alpha (k - 1) = 0 of an eigenvalue k
    problem = Problem(n_workers=4, n=12, n_params=6, replication=1, unlike=1.0)
    freeze_alpha(monkeypatch, alpha)
    network = Network(problem.shares)
    hessians = [share.hessian(np.zeros(6)) for share in problem.shares]
    for state, hessian in zip(network.states, hessians, strict=True):
        state.scaling, state.alpha = Scaling(hessian, 0.0), alpha
    inverse = np.mean([np.linalg.inv(hessian) for hessian in hessians], axis=0)
    k, vectors = np.linalg.eig(inverse @ np.mean(hessians, axis=0))
    assert np.ptp(k) > 1.0
    modes, best = [], problem.best()
    for _ in range(8):
        network.round()
        modes.append(np.linalg.solve(vectors, network.states[0].mean_point - best))
        np.testing.assert_allclose(network.states[0].mean_point, network.states[3].mean_point, rtol=1e-12)
    for before, now, after in zip(modes, modes[1:], modes[2:], strict=False):
        scale = max(np.abs(before).max(), np.abs(now).max())
        np.testing.assert_allclose(after, (1.0 - alpha) * now - alpha * (k - 1.0) * before, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize(("alpha", "stable"), [(0.45, True), (0.54, False), (None, True)])
def test_two_unlike_hessians_are_stable_below_a_step_of_one_over_k_minus_one_and_by_the_rule(
    monkeypatch, alpha, stable
):
    # H_1 = diag(1, 10), H_2 = diag(10, 1): k = 11^2 / 40 in both directions, the limit 1 / (k - 1) = 0.494.
    objective = objectives.build("least_squares", 2, 0.0, None)
    shares = []
    for diagonal in ([1.0, 10.0], [10.0, 1.0]):
        rows = WeightedRows(np.diag(np.sqrt(diagonal)), np.array([1.0, -2.0]), np.ones(2), 1.0)
        shares.append(ModelShare(objective, rows, rows, [2], np.ones(1), rows))
    network = Network(shares)
    for state, share in zip(network.states, shares, strict=True):
        state.scaling = Scaling(share.hessian(np.zeros(2)), 0.0)  # two rows: left to itself it would add to it
    best = np.linalg.solve(sum(s.hessian(np.zeros(2)) for s in shares), -sum(s.gradient(np.zeros(2)) for s in shares))
    if alpha is not None:
        freeze_alpha(monkeypatch, alpha)
        for state in network.states:
            state.alpha = alpha
    errors = []
    for _ in range(200):
        network.round()
        errors.append(np.abs(network.x - best).max())
    # |lambda|^2 = alpha (k - 1) = 0.91 and 1.09 a round: over 200 of them a factor of 1e-4 and 1e4 in |lambda|.
    assert errors[-1] < 1e-3 * errors[0] if stable else errors[-1] > 1e3 * errors[0]


def test_a_worker_of_weight_0_influences_nobody_not_even_with_nan():
    problem = Problem(n_workers=4, n=60, n_params=6, unlike=1.0)
    nothing = SimpleNamespace(n_params=6, n_rows=60, quadratic=True, weight=0.0)
    nothing.hessian = lambda params: np.full((6, 6), np.nan)
    nothing.gradient = lambda params: np.full(6, np.nan)
    alone, beside = Network(problem.shares), Network([*problem.shares, nothing])
    for _ in range(5):
        alone.round()
        beside.round()
        # The sums have one more term, a zero.
        np.testing.assert_allclose(beside.x[:4], alone.x, rtol=1e-12)
        # It follows the others, and holds nothing of its own.
        np.testing.assert_allclose(beside.x[4], beside.states[0].mean_point, rtol=1e-12)
    assert np.isfinite(beside.x).all()
    # Said by a message: weight 0 with numbers that are none.
    state = beside.states[0]
    before = state.params.copy()
    said = message(99.0, 0.0, np.full(12, np.nan))
    inbox = [Received(said if j == 4 else None, 0) for j in state.place.neighbors]
    TABLE_NEWTON.receive(state, np.empty(0), inbox, NO_MIXING, np.nan)
    np.testing.assert_array_equal(state.params, before)


@pytest.mark.parametrize("late", ["discard", "memory", "wait"])
@pytest.mark.parametrize("weights", ["paper", "own", "coverage", "plain"])
def test_the_weights_of_every_shard_sum_to_1_whoever_is_late(late, weights):
    config = configured(
        method={"kind": "table_newton", "late": late, "weights": weights},
        stragglers={"kind": "bernoulli", "p": 0.4},
        placement={"kind": "pairwise_balanced", "replication": 3},
    )
    layout = lay_out(config, 6)
    np.testing.assert_allclose(layout.encoding_weights.sum(axis=0), 1.0, rtol=1e-12)
    share = SimpleNamespace()
    assert sum(layout.place(i, share).weight for i in range(6)) == pytest.approx(6.0)


# Rounds ----------------------------------------------------------------------------------------------------------


def rounds_to(problem, targets, most=20):
    """Return the rounds until the worst worker's [F(x) - F*] / [F(0) - F*] is at most each target."""
    best, hessian = problem.best(), problem.objective.hessian(np.zeros(problem.n_params), problem.pooled)
    network = Network(problem.shares)
    gaps = []
    for _ in range(most):
        network.round()
        error = network.x - best
        gaps.append(np.einsum("ij,jk,ik->i", error, hessian, error).max() / (best @ hessian @ best))
    return [next((t for t, gap in enumerate(gaps, 1) if gap <= target), most + 1) for target in targets]


@pytest.mark.parametrize(("replication", "limits"), [(1, (1, 8, 13)), (2, (1, 7, 12))])
def test_it_takes_1_7_12_rounds_uncoded_and_1_6_11_with_two_copies_or_one_more(replication, limits):
    rounds = [rounds_to(Problem(replication=replication, seed=seed), (1e-3, 1e-6, 1e-10)) for seed in range(5)]
    assert (np.median(rounds, axis=0) <= limits).all(), rounds


@pytest.mark.parametrize(
    ("case", "copies", "limits"),
    [
        ("none slow", 1, (1, 7, 12)),
        ("none slow", 2, (1, 6, 11)),
        ("one 10x slow", 1, (10, 30, 70)),
        ("one 10x slow", 2, (1, 8, 13)),
        ("each 10x with p=.3", 1, (11, 49, 96)),
        ("each 10x with p=.3", 2, (11, 39, 75)),
        ("quarter late", 1, (1, 10, 20)),
        ("quarter late", 2, (1, 8, 16)),
    ],
)
def test_stragglers_cost_no_more_rounds_than_promised(case, copies, limits):
    rounds = runpy.run_path(str(EXAMPLE))["rounds"]
    found = np.median([rounds(case, 8, copies, 100.0, seed) for seed in range(5)], axis=0)
    assert (found <= np.add(limits, (2, 2, 3))).all(), found


@pytest.mark.parametrize("replication", [1, 2])
def test_the_condition_number_makes_no_difference_to_the_rounds(replication):
    medians = [
        np.median([rounds_to(Problem(replication=replication, cond=cond, seed=seed), (1e-10,)) for seed in range(3)])
        for cond in (1e2, 1e4)
    ]
    assert abs(medians[0] - medians[1]) <= 2, medians


@pytest.mark.parametrize(("kind", "l2"), [("logistic", 1e-3), ("softmax", 1e-3)])
def test_other_losses_come_to_the_optimum_too_with_lost_messages_and_late_gradients(kind, l2):
    problem = Problem(n_workers=6, n=200, n_params=10, kind=kind, l2=l2, unlike=0.3)
    network = Network(problem.shares)
    stragglers = StragglerModel("bernoulli", 6, seed=1, p=0.3, link_p=0.3)
    for t in range(60):
        network.round(
            finished=lambda i, t=t: stragglers.finishes(i, t),
            arrives=lambda source, dest, t=t: stragglers.arrives(source, dest, t),
        )
    best = problem.best()
    np.testing.assert_allclose(network.x, np.tile(best, (6, 1)), rtol=0, atol=1e-9 * np.abs(best).max())


# Against the stacked arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["discard", "memory", "wait"])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "least_squares", "l2": 0.0},
        {"kind": "least_squares", "l2": 1e-2, "n": 8, "replication": 1},  # few rows: c is 1, and the Hessians singular
        {"kind": "logistic", "l2": 1e-2},
        {"kind": "logistic", "l2": 1e-4, "cond": 1e4, "unlike": 3.0, "replication": 1},  # where the safeguards act
        {"kind": "softmax", "l2": 1e-2},
        {"kind": "least_squares", "l2": 1e-2, "holders": "bernoulli", "seed": 2},  # weights 0.33 to 2.08
        {"kind": "logistic", "l2": 1e-2, "holders": "bernoulli", "seed": 3},  # and worker 0 holds nothing
        {"kind": "least_squares", "l2": 1e-2, "n_workers": 1, "replication": 1},
    ],
    ids=["least squares", "few rows", "logistic", "hard logistic", "softmax", "unequal", "unequal logistic", "alone"],
)
@pytest.mark.parametrize("script", [{"kind": "bernoulli", "p": 0.4}, {"kind": "persistent", "ranks": (0,), "p": 0.05}])
def test_the_method_takes_the_same_rounds_as_the_stacked_arrays(options, late, script):
    problem = Problem(**{"n_workers": 5, "n": 60, "n_params": 10, "unlike": 1.0, **options})
    n = len(problem.shares)
    stragglers = StragglerModel(n_workers=n, seed=5, factor=10.0, link_p=0.3, **script)
    expected = []
    step = gossip_step(problem.shares, mixing.metropolis(topology.complete(n)), stragglers, "table_newton")
    step.all_weights = problem.all_weights
    simulate(
        step,
        problem.shares,
        lambda t: 1.0,
        stragglers,
        12 if script["kind"] == "bernoulli" else 40,
        late=late,
        observe=lambda t, x: expected.append(x.copy()) is None,
    )
    network = Network(problem.shares, all_weights=problem.all_weights)
    assert not expected[0].any()  # all begin where they are told to
    for t, x in enumerate(expected[1:]):
        network.round(
            finished=lambda i, t=t: late == "wait" or stragglers.finishes(i, t),
            arrives=lambda source, dest, t=t: stragglers.arrives(source, dest, t),
            repeat=late == "memory",
        )
        # Factors against elimination: some hundred roundings, times the condition number of P.
        np.testing.assert_allclose(network.x, x, rtol=0, atol=1e-11 * np.abs(x).max())
    assert np.abs(expected[-1]).max() > 0.1


# Rows and columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [{"kind": "none", "link_p": 0.0}, {"kind": "bernoulli", "p": 0.4, "link_p": 0.3}])
@pytest.mark.parametrize("kind", ["least_squares", "logistic"])
@pytest.mark.parametrize(("n_workers", "columns"), [(6, 3), (6, 2), (9, 3), (4, 2), (15, 5)])
def test_rows_and_columns_take_the_same_rounds_as_the_stacked_arrays(n_workers, columns, kind, script):
    problem = Problem(
        n_workers=n_workers, n=60, n_params=6, unlike=1.0, kind=kind, l2=1e-2, replication=min(2, n_workers)
    )
    stragglers = StragglerModel(n_workers=n_workers, seed=2, **script)
    expected = []
    matrix = mixing.metropolis(topology.rook(n_workers, rows=n_workers // columns))
    simulate(
        gossip_step(problem.shares, matrix, stragglers, "table_newton"),  # nobody is left out
        problem.shares,
        lambda t: 1.0,
        stragglers,
        16,
        late="memory",
        observe=lambda t, x: expected.append(x.copy()) is None,
    )
    network = Network(problem.shares, all_weights=problem.all_weights, columns=columns)
    for t, x in enumerate(expected[1:]):
        network.round(
            finished=lambda i, t=t: stragglers.finishes(i, t),
            arrives=lambda source, dest, t=t: stragglers.arrives(source, dest, t),
            repeat=True,
        )
        np.testing.assert_allclose(network.x, x, rtol=0, atol=1e-11 * np.abs(x).max())
    assert np.abs(expected[-1]).max() > 0.1


def test_rows_and_columns_are_for_graphs_that_are_not_complete():
    for n_workers, rows, method in (
        (6, 2, TABLE_NEWTON_ROOK),
        (6, 1, TABLE_NEWTON),
        (6, 6, TABLE_NEWTON),
        (5, None, TABLE_NEWTON),
    ):
        table = {"kind": "rook"} if rows is None else {"kind": "rook", "rows": rows}
        assert lay_out(configured(topology=table), n_workers).method is method


def test_everybody_hears_of_everybody_by_two_rounds_a_gradient():
    problem = Problem(n_workers=6, n=60, n_params=4, unlike=1.0)
    network = Network(problem.shares, columns=3)
    network.round()
    assert not network.x.any()
    network.round()
    for state in network.states:  # worker 1 hears of 0, 2, and of 4 alone in the other row
        assert np.count_nonzero(state.table.weights) == 4
        assert state.table.weights.sum() == pytest.approx(4.0)
    network.round()
    for state in network.states:
        assert state.table.weights.sum() == pytest.approx(6.0)
        assert state.entry[0] == 1.0


def test_nan_of_a_worker_of_weight_0_does_not_go_round_by_rows():
    problem = Problem(n_workers=5, n=60, n_params=6, unlike=1.0)
    nothing = SimpleNamespace(n_params=6, n_rows=60, quadratic=True, weight=0.0)
    nothing.gradient = lambda params: np.full(6, np.nan)
    network = Network([*problem.shares, nothing], columns=3)
    for _ in range(60):
        network.round()
    np.testing.assert_allclose(network.x, np.tile(problem.best(), (6, 1)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("copies", [1, 2])
def test_on_8_rows_of_8_it_takes_two_gradients_more_than_on_the_complete_graph_at_most(copies):
    rounds = runpy.run_path(str(EXAMPLE))["rounds"]
    complete, rook = (rounds("none slow", 64, copies, 100.0, 0, graph) for graph in ("complete", "rook"))
    assert np.isfinite(complete).all()
    gradients = [np.ceil(n_rounds / 2) for n_rounds in rook]
    assert (np.subtract(gradients, complete) <= 2).all(), (complete, rook)


# Slow workers left out -------------------------------------------------------------------------------------------


class Script:
    """Who finishes a gradient in which round, and which messages are lost."""

    def __init__(self, slow=(), factor=10, dead=(), since=10, until=10**9, link_p=0.0, p=0.0, seed=0):
        self.slow, self.factor, self.dead, self.since, self.until = slow, factor, dead, since, until
        self.links = StragglerModel("bernoulli", 8, seed=seed, link_p=link_p, p=p)

    def finishes(self, i, t):
        if i in self.dead:
            return t < self.since
        if i in self.slow and t < self.until:
            return (t + 1) % self.factor == 0
        return self.links.finishes(i, t)

    def arrives(self, source, dest, t):
        return self.links.arrives(source, dest, t)

    def play(self, network, rounds, after=lambda t: None):
        for t in range(rounds):
            network.round(
                finished=lambda i, t=t: self.finishes(i, t),
                arrives=lambda j, i, t=t: self.arrives(j, i, t),
                repeat=True,
            )
            after(t)


def check_table(network, whole):
    """Every entry is the gradient at its point under the weights of one set, and those sum to 1 for every shard."""
    for state in network.states:
        out, n = state.table.out, len(network.states)
        rows = np.stack([state.reweighting.row(j, out) for j in range(n)])
        np.testing.assert_allclose(rows.sum(axis=0), state.place.all_weights.sum(axis=0), rtol=1e-14)
        there = state.table.stamps > 0.0
        np.testing.assert_allclose(state.table.weights[there], rows.sum(axis=1)[there], rtol=1e-14, atol=0.0)
        for j in np.flatnonzero(there):
            share = network.shares[j].reweighted(rows[j][state.place.all_weights[j] > 0.0])
            expected = share.gradient(state.table.points[j])
            np.testing.assert_allclose(state.table.gradients[j], expected, rtol=0, atol=1e-12)
        whole[state.place.worker] |= bool(there[rows.any(axis=1)].all())
        if whole[state.place.worker]:  # once it is, it stays so
            assert state.table.weights.sum() == pytest.approx(n, rel=1e-14)
            assert there[rows.any(axis=1)].all()


SCRIPTS = {
    "one slow": Script(slow=(3,)),
    "two slow": Script(slow=(1, 5)),
    "two slow that share a shard": Script(slow=(2, 3)),
    "slow and fast again": Script(slow=(3,), until=45),
    "slow, with lost messages": Script(slow=(3,), link_p=0.4, seed=1),
    "dead": Script(dead=(2,)),
    "dead beside slow": Script(dead=(2,), slow=(3,), since=4),
    "dead and slow": Script(dead=(6,), slow=(3,), link_p=0.2, seed=2),
    "never there": Script(dead=(2,), since=0),
    "all late": Script(p=0.6, seed=3, link_p=0.3),
}


@pytest.mark.parametrize("holders", ["cyclic", "pairwise_balanced"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_weights_averaged_sum_to_1_for_every_shard_in_every_round(name, holders):
    problem = Problem(n=20, n_params=4, unlike=1.0, holders=holders, seed=1)
    network = Network(problem.shares, all_weights=problem.all_weights)
    whole = [False] * 8
    SCRIPTS[name].play(network, 60, after=lambda t: check_table(network, whole))
    assert all(whole) or name == "never there"


@pytest.mark.parametrize(
    "name", ["one slow", "two slow", "slow and fast again", "slow, with lost messages", "all late"]
)
@pytest.mark.parametrize("kind", ["least_squares", "logistic"])
def test_everyone_comes_to_the_optimum_whoever_is_left_out(name, kind):
    problem = Problem(n=60, n_params=5, unlike=1.0, kind=kind, l2=0.1)
    network = Network(problem.shares, all_weights=problem.all_weights)
    SCRIPTS[name].play(network, 150)
    best = problem.best()
    np.testing.assert_allclose(network.x, np.tile(best, (8, 1)), rtol=0, atol=1e-10 * np.abs(best).max())


def left_out(network):
    return [state.table.out for state in network.states]


def test_a_slow_workers_weight_goes_to_the_others_after_the_first_round_and_comes_back():
    problem = Problem(n=60, n_params=5)
    network, seen = Network(problem.shares, all_weights=problem.all_weights), []
    Script(slow=(3,), until=45).play(network, 70, after=lambda t: seen.append(left_out(network)))
    assert seen[0] == [0] * 8
    assert all(out == [0b1000] * 8 for out in seen[1:45])
    assert seen[-1] == [0] * 8
    # Once each way: nothing flaps.
    assert [state.declared for state in network.states] == [(2, 0)] * 8


class Flapping(StragglerModel):
    """Worker 0 has no gradient for 14 rounds, then one in each of 10, and so on."""

    def finishing(self, round_):
        return (np.arange(self.n_workers) != 0) | (round_ % 24 >= 14)


def test_a_worker_that_is_slow_now_and_then_comes_and_goes_ever_less_often():
    problem = Problem(n_workers=6, n=20, n_params=4, unlike=1.0)
    stragglers, expected, numbers = Flapping("none", 6), [], []
    step = gossip_step(problem.shares, mixing.metropolis(topology.complete(6)), stragglers, "table_newton")
    step.all_weights = problem.all_weights
    simulate(
        step,
        problem.shares,
        lambda t: 1.0,
        stragglers,
        170,
        late="memory",
        observe=lambda t, x: expected.append(x.copy()) is None,
    )
    network = Network(problem.shares, all_weights=problem.all_weights)
    for t, x in enumerate(expected[1:]):
        network.round(finished=stragglers.finishing(t).__getitem__, repeat=True)
        np.testing.assert_allclose(network.x, x, rtol=0, atol=1e-11 * np.abs(x).max())
        numbers.append(network.states[3].declared[0])
    declared = [numbers.index(number) for number in range(1, numbers[-1] + 1)]
    assert len(declared) >= 5
    waits = np.diff(declared)
    assert (waits >= [patience(number) for number in range(1, numbers[-1])]).all(), declared
    assert (waits >= 64).any()


def test_declarations_keep_their_distance_however_opinions_change(monkeypatch):
    problem = Problem(n_workers=6, n=20, n_params=4)
    state = Network(problem.shares, all_weights=problem.all_weights).states[0]
    opinions = itertools.cycle([0b1, 0b10])
    monkeypatch.setattr(state.pace, "slow", lambda now, before: next(opinions))
    declared = []
    for t in range(250):
        state.round = t
        table_newton._judge(state, state.reweighting)
        declared.append(state.declared[0])
    found = [declared.index(number) for number in range(1, declared[-1] + 1)]
    assert found[0] == 0
    # The first moment at which the other set is asked for, and enough rounds have passed.
    assert all(0 <= wait - patience(number) <= 1 for number, wait in enumerate(np.diff(found), 1)), found
    assert len(found) == 7


def test_more_workers_than_a_number_in_a_message_has_bits_go_on_without_leaving_anybody_out():
    share = SimpleNamespace(n_params=1, n_rows=0, quadratic=True, hessian=lambda params: np.eye(1))
    for n, known in ((MOST_WORKERS, True), (MOST_WORKERS + 1, False)):
        place = Place(0, n, tuple(range(1, n)), share, 1.0, HELD, n, np.eye(n))
        assert (TABLE_NEWTON.start(np.zeros(1), place).reweighting is not None) is known


def test_two_slow_workers_are_left_out_at_once_and_neither_where_they_share_a_shard():
    for slow, out in (((1, 5), 0b100010), ((2, 3), 0)):
        problem = Problem(n=60, n_params=5)
        network = Network(problem.shares, all_weights=problem.all_weights)
        Script(slow=slow).play(network, 30)
        assert left_out(network) == [out] * 8
        assert {state.declared for state in network.states} == {(1, out) if out else (0, 0)}


def test_nobody_follows_the_weights_of_a_worker_left_out_not_even_to_nan():
    problem = Problem(n=60, n_params=5, unlike=1.0)
    network = Network(problem.shares, all_weights=problem.all_weights)

    class Broken(Script):
        def play(self, network, rounds, after=None):
            def spoil(t):
                gradient = network.gradients[3]
                if t > 12 and gradient is not None:  # left out, and now out of its mind
                    gradient.vector[:] = np.nan
                    network.states[3].entry[9:] = np.nan

            super().play(network, rounds, spoil)

    Broken(slow=(3,)).play(network, 60)
    best = problem.best()
    np.testing.assert_allclose(network.x, np.tile(best, (8, 1)), rtol=0, atol=1e-10 * np.abs(best).max())


def test_a_dead_workers_data_survive_in_the_other_copies():
    problem = Problem(n=60, n_params=5, unlike=1.0)
    network = Network(problem.shares, all_weights=problem.all_weights)
    Script(dead=(2,)).play(network, 60)
    assert left_out(network) == [0b100] * 8
    best = problem.best()
    np.testing.assert_allclose(network.x, np.tile(best, (8, 1)), rtol=0, atol=1e-10 * np.abs(best).max())


def test_a_dead_worker_whose_shard_nobody_else_has_keeps_the_others_about_where_it_was():
    problem = Problem(n=60, n_params=5, unlike=1.0, replication=1)
    best = problem.best()
    for since, least in ((4, 1e-3), (8, 1e-6)):
        network = Network(problem.shares, all_weights=problem.all_weights)
        Script(dead=(2,), since=since).play(network, 150)
        assert left_out(network) == [0] * 8
        distance = np.abs(network.states[0].table.points[2] - best).max()
        assert distance > least
        assert np.abs(network.x - best).max() < distance


def test_a_worker_that_dies_while_all_wait_for_its_new_gradient_is_waited_for_no_longer():
    # Worker 3 is slow; of the holders of its shards, 2 and 7, worker 2 dies before it has a gradient with new weights.
    problem = Problem(n=60, n_params=5, unlike=1.0)
    network = Network(problem.shares, all_weights=problem.all_weights)
    script = Script(slow=(3,), dead=(2,), since=1)
    script.play(network, 10)
    assert {state.declared for state in network.states} == {(1, 0b1000)}
    assert all(state.coming is not None for state in network.states)
    script.play(network, 60)
    whole = [True] * 8
    check_table(network, whole)
    assert len({state.declared for state in network.states}) == 1
    for state in network.states:
        assert state.coming is None
        fast = [0, 1, 4, 5, 6, 7]
        assert (state.table.stamps[fast] == 70.0).all()


@given(st.data())
def test_declarations_of_several_at_once_end_in_the_same_set_in_any_order_of_delivery(data):
    n = 6
    problem = SMALL
    network = Network(problem.shares, all_weights=problem.all_weights)
    network.round()
    sets = [0b1, 0b10, 0b100, 0b1010, 0b11, 0]  # the ring of holders is 3-5-1-2-4-0
    said = {}
    for i in range(n):
        if i == 0 or data.draw(st.booleans()):
            said[i] = (data.draw(st.integers(1, 3)), data.draw(st.sampled_from(sets)))
            table_newton._obey(network.states[i], network.states[i].reweighting, said[i])
    for _ in range(data.draw(st.integers(0, 3))):
        network.round(arrives=lambda source, dest: data.draw(st.booleans()))
        for state in network.states:
            state.since = network.t  # too early for anybody to declare anew
    network.round()
    network.round()
    largest = max(said.values())
    assert {state.declared for state in network.states} == {largest}
    assert left_out(network) == [largest[1]] * n
    check_table(network, [True] * n)


# Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "added"), [(400, False), (20, True)])
def test_the_first_entry_of_least_squares_is_the_minimiser_of_the_own_model_and_the_gradient_there(n, added):
    problem = Problem(n_workers=3, n=n, n_params=30, replication=1)
    network = Network(problem.shares)
    network.round()
    state, share = network.states[1], problem.shares[1]
    assert bool(state.scaling.added.any()) is added
    point = state.table.points[1]
    np.testing.assert_allclose(state.table.gradients[1], share.gradient(point), rtol=0, atol=1e-12)
    if not added:
        np.testing.assert_allclose(share.gradient(point), 0.0, atol=1e-12)
    assert np.abs(point).max() > 0.1


def test_a_gradient_counts_once_and_at_the_point_where_it_was_taken():
    problem = Problem(n_workers=3, n=60, n_params=4, kind="logistic", l2=0.1)
    state = Network(problem.shares).states[0]
    out = np.empty(14)
    TABLE_NEWTON.send(state, None, np.nan, 0, out)
    assert not out.any()  # nothing to tell: stamp 0
    elsewhere = np.ones(4)
    gradient = Gradient(problem.shares[0].gradient(elsewhere), elsewhere)
    TABLE_NEWTON.send(state, gradient, np.nan, 3, out)
    first = out.copy()
    np.testing.assert_array_equal(first, message(1.0, 1.0, [*elsewhere, *gradient.vector], round_=3))
    for repeated in (gradient, None):
        TABLE_NEWTON.send(state, repeated, np.nan, 0, out)
        np.testing.assert_array_equal(out, first)
    TABLE_NEWTON.send(state, Gradient(gradient.vector, elsewhere), np.nan, 0, out)
    assert out[2] == 2.0


def test_without_any_entry_a_worker_stays_where_it_is_and_a_table_as_it_was_leaves_alpha():
    problem = Problem(n_workers=3, n=60, n_params=4)
    network = Network(problem.shares)
    network.round(finished=lambda i: False)
    assert not network.x.any()
    network.round()
    network.round()
    alpha, x = [state.alpha for state in network.states], network.x
    network.round(finished=lambda i: False)
    np.testing.assert_array_equal(network.x, x)
    assert [state.alpha for state in network.states] == alpha


def test_alpha_is_the_inverse_of_the_largest_of_the_last_three_curvatures_within_bounds():
    problem = Problem(n_workers=2, n=60, n_params=2, replication=1)
    state = Network(problem.shares).states[0]
    state.scaling = Scaling(np.eye(2), 0.0)
    seen = []
    for k in (2.0, 1.5, 1.25, 1.0, 0.1, 0.1, 0.1, 100.0, -1.0):
        # One step along the first axis: s = 1, y = k; then k is what the rule measures.
        before = (np.zeros(2), np.zeros(2)) if state.mean_point is None else (state.mean_point, state.mean_gradient)
        state.mean_point, state.mean_gradient = before
        table_newton._step(state, before[0] + np.array([1.0, 0.0]), before[1] + np.array([k, 0.0]), False)
        seen.append(state.alpha)
    np.testing.assert_allclose(seen, [1 / 2, 1 / 2, 1 / 2, 1 / 1.5, 1 / 1.25, 1.0, 1.0, 0.03, 0.03])
    state.curvatures.clear()
    table_newton._step(
        state, state.mean_point + np.array([1.0, 0.0]), state.mean_gradient - np.array([1.0, 0.0]), False
    )
    assert state.alpha == 1 / 4


@pytest.mark.parametrize("noise", [0.0, 1e-15, -1e-15])
def test_rounding_is_not_taken_for_curvature(noise):
    scaling, point = Scaling(np.eye(2), 0.0), np.array([1.0, -2.0])
    nothing, something = np.array([noise, noise]), np.array([1.0, 3.0])
    assert table_newton.curvature(scaling, point, nothing, nothing) is None
    assert table_newton.curvature(scaling, point, nothing, something) == 4.0
    assert table_newton.curvature(scaling, point, something, nothing) == 4.0
    assert table_newton.curvature(scaling, point, 1e-9 * something, 2e-9 * something) == pytest.approx(2.0)


def test_no_step_is_longer_than_the_first_and_a_setback_falls_back_on_the_first_scaling():
    problem = Problem(n_workers=2, n=60, n_params=3, kind="logistic", l2=0.1, replication=1)
    state = Network(problem.shares).states[0]
    state.first_scaling, state.scaling, state.alpha = Scaling(4.0 * np.eye(3), 0.0), Scaling(np.eye(3), 0.0), 1.0
    point = np.ones(3)

    def step(gradient, grown=False):
        state.mean_point = state.mean_gradient = None  # no news for alpha
        table_newton._step(state, point, np.array(gradient), grown)
        return point - state.params

    np.testing.assert_allclose(step([0.0, 2.0, 0.0], grown=True), [0.0, 2.0, 0.0])
    np.testing.assert_allclose(step([0.0, 0.0, 2.5]), [0.0, 0.0, 2.0])  # capped at the first step's length
    np.testing.assert_allclose(step([1.0, 0.0, 0.0]), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(step([1.4, 0.0, 0.0]), [1.4, 0.0, 0.0])  # 1.5 times the smallest is still fine
    np.testing.assert_allclose(step([1.6, 0.0, 0.0]), [0.4, 0.0, 0.0])  # by the first P
    np.testing.assert_allclose(step([1.2, 0.0, 0.0]), [1.2, 0.0, 0.0])  # for that round only
    # A worker more, and another mean: no step is too long, none too much worse than before.
    np.testing.assert_allclose(step([0.0, 5.0, 0.0], grown=True), [0.0, 5.0, 0.0])
    np.testing.assert_allclose(step([6.0, 0.0, 0.0]), [5.0, 0.0, 0.0])
    np.testing.assert_allclose(step([1.0, 0.0, 0.0], grown=True), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(step([1.4, 0.0, 0.0]), [1.4, 0.0, 0.0])


def test_a_first_table_that_knows_of_one_worker_alone_sets_no_measure_for_the_others():
    # Rows in pairs of both classes: worker 0 is at its optimum to begin with, and its first step has no length.
    problem = Problem(n_workers=2, n=60, n_params=3, kind="logistic", l2=0.1, replication=1)
    balanced, rows = problem.shares[0], problem.shares[0].coded
    twice = np.tile(rows.features[:30], (2, 1))
    balanced.coded = WeightedRows(twice, np.repeat([1.0, -1.0], 30), rows.weights, rows.l2_weight)
    network = Network(problem.shares)
    network.round(arrives=lambda source, dest: False)
    assert np.abs(network.x[0]).max() < 1e-12
    for _ in range(12):
        network.round()
    gradient = sum(share.gradient(network.x[0]) for share in problem.shares)
    assert np.abs(gradient).max() < 1e-9
    assert np.abs(network.x[0]).max() > 0.1


def test_quadratic_losses_have_no_such_safeguards():
    problem = Problem(n_workers=2, n=60, n_params=3, replication=1)
    state = Network(problem.shares).states[0]
    state.scaling, state.alpha = Scaling(np.eye(3), 0.0), 1.0
    for gradient in ([1.0, 0.0, 0.0], [9.0, 0.0, 0.0]):
        state.mean_point = state.mean_gradient = None
        table_newton._step(state, np.zeros(3), np.array(gradient), False)
        np.testing.assert_allclose(state.params, [-gradient[0], 0.0, 0.0])


def test_scaling_adds_to_the_diagonal_what_it_is_told_or_what_it_needs():
    hessian = np.array([[2.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(Scaling(hessian, 0.5).solve(np.array([4.0, 5.5])), [1.0, 1.0])
    assert Scaling(hessian, 0.5).square(np.array([1.0, 2.0])) == pytest.approx(3.0 + 2 * 2.0 + 4 * 4.5)
    singular = np.ones((2, 2))
    np.testing.assert_allclose(Scaling(singular, 0.0).solve(np.array([3.0, 3.0])), [1.0, 1.0])
    # Up to rounding singular, and of very different scales.
    badly = np.diag([1e6, 1e-6]) @ (singular + 1e-12 * np.eye(2)) @ np.diag([1e6, 1e-6])
    np.testing.assert_allclose(Scaling(badly, 0.0).solve(np.array([3e6, 3e-6])), [1e-6, 1e6], rtol=1e-9)
    # A feature that is always zero keeps its coefficient, whose gradient is zero.
    blank = np.diag([2.0, 0.0])
    np.testing.assert_allclose(Scaling(blank, 0.0).solve(np.array([4.0, 0.0])), [1.0, 0.0])
    # Bad scaling alone is no reason to add anything.
    assert not Scaling(np.diag([1e12, 1e-12]), 0.0).added.any()


@pytest.mark.parametrize("hessian", [-np.eye(2), np.array([[1.0, 3.0], [3.0, 1.0]]), np.full((2, 2), np.nan)])
def test_a_loss_that_is_not_convex_is_refused_at_the_start_and_later_falls_back_on_the_first_scaling(hessian):
    share = SimpleNamespace(n_params=2, n_rows=0, quadratic=False, weight=1.0, hessian=lambda params: hessian)
    with pytest.raises(InputError, match=r"needs a convex loss .* rank 0's .* Use method.kind = 'push_pull'"):
        Network([share])
    share.hessian = lambda params: hessian if params.any() else np.eye(2)
    state = Network([share]).states[0]
    TABLE_NEWTON.send(state, Gradient(np.ones(2), np.ones(2)), np.nan, 0, np.empty(10))
    assert state.scaling is state.first_scaling


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["least_squares", "logistic", "softmax"])
def test_the_hessian_has_the_columns_of_its_products(kind, sparse):
    problem = Problem(n_workers=5, n=20, n_params=4, kind=kind, l2=0.3, holders="bernoulli", seed=2)
    share = problem.shares[1]
    assert abs(share.weight - 1.0) > 0.1
    if sparse:
        share.coded = WeightedRows(
            sp.csr_array(share.coded.features), share.coded.targets, share.coded.weights, share.coded.l2_weight
        )
    share.objective.block_bytes = 500
    assert len(list(share.coded.blocks(500))) > 1
    point = np.random.default_rng(6).standard_normal(share.n_params)
    products = np.stack([share.hessian_product(point, unit) for unit in np.eye(share.n_params)])
    hessian = share.hessian(point)
    np.testing.assert_allclose(hessian, products, rtol=0, atol=1e-14)
    # And with the shares' weights the mean over all workers is that of the pooled loss.
    mean = np.mean([s.hessian(point) for s in problem.shares], axis=0)
    np.testing.assert_allclose(mean, problem.objective.hessian(point, problem.pooled), rtol=0, atol=1e-14)


class Quartic:
    """A user's own loss: sum of fourth powers of linear forms, plus a quadratic one."""

    def loss(self, x, shard):
        return float(np.sum((shard @ x) ** 4) / 4.0 + 0.5 * x @ x)

    def gradient(self, x, shard, out):
        out[:] = shard.T @ (shard @ x) ** 3 + x


def test_the_hessian_of_an_objective_of_ones_own_comes_of_differences():
    rng = np.random.default_rng(7)
    shards = [rng.standard_normal((5, 3)) for _ in range(2)]
    weights = np.array([0.5, 1.5])
    share = CustomShare(Quartic(), 3, shards, weights, np.array([0.5, 0.5]))
    assert share.weight == 2.0 and not share.quadratic
    x = rng.standard_normal(3)
    exact = sum(w * (3.0 * s.T @ np.diag((s @ x) ** 2) @ s + np.eye(3)) for w, s in zip(weights, shards, strict=True))
    found = share.hessian(x)
    # Central differences with a step of eps^(1/3): eps^(2/3) times third derivatives.
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e3 * EPS ** (2 / 3) * np.abs(exact).max())
    np.testing.assert_array_equal(found, found.T)


def test_a_run_that_diverges_is_not_told_to_lower_a_step_that_it_has_not():
    problem = Problem(n_workers=2, n=20, n_params=2)
    problem.shares[0].coded.targets[:] *= 1e200
    with pytest.raises(RunError, match=r"diverged in round 0: .* Raise objective.l2, or use method.kind = 'push_pull'"):
        simulate(
            gossip_step(
                problem.shares,
                mixing.metropolis(topology.complete(2)),
                StragglerModel("none", 2),
                method="table_newton",
            ),
            problem.shares,
            lambda t: 1.0,
            StragglerModel("none", 2),
            5,
        )


# Configuration ---------------------------------------------------------------------------------------------------


def configured(**tables):
    return parse_config({"topology": {"kind": "complete"}, "method": {"kind": "table_newton"}, **tables})


def test_mixing_and_steps_do_not_apply_and_the_record_says_so():
    config = configured(
        method={"kind": "table_newton", "mixing": "running"}, step={"kind": "decreasing", "size": 0.1, "tau": 9.0}
    )
    assert config.method.mixing is None
    assert (config.step.kind, config.step.size, config.step.tau) == ("constant", 1.0, None)
    assert lay_out(config, 4).method is TABLE_NEWTON
    assert parse_config(to_dict(config)) == config


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"topology": {"kind": "ring"}}, "needs topology.kind = 'complete' or 'rook': .* Got 'ring'. .* 'push_pull'"),
        ({"topology": {}}, "needs topology.kind = 'complete' or 'rook': .* Got 'exponential'"),
        (
            {"method": {"kind": "table_newton", "late": "partial"}},
            "'partial' is not sound .* Use 'memory' or 'discard'",
        ),
        ({"stop": {"gradient_norm": 1e-3}}, "stop.gradient_norm does not go with .* Use stop.target_loss"),
    ],
)
def test_what_is_wrong_with_it_is_refused_with_the_way_out(tables, message):
    with pytest.raises(InputError, match=message):
        configured(**tables)


def test_every_pair_of_workers_is_asked_for():
    graph = lay_out(configured(), 5).topology
    assert all(j in graph.neighbors(i) for i, j in itertools.permutations(range(5), 2))
