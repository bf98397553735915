"""A master, its codes and its solvers: against the stacked arrays, theory and the optimum."""

import itertools
import math

import numpy as np
import pytest
from test_table_newton import Problem

from goco_mpi.config import parse_config, to_dict
from goco_mpi.core import codes, encoding, objectives, placement
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import SOLVERS, Gradient, Place
from goco_mpi.core.methods.gradient_coding import GRADIENT_CODING
from goco_mpi.core.methods.master_cg import MASTER_CG
from goco_mpi.core.methods.sgc import SGC
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import SOLVERS as STACKED_SOLVERS
from goco_mpi.core.stacked import StackedCentral, start
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.simulation.rounds import Simulation, simulate_experiment

NO_MIXING = Mixing(np.empty(0), 0)
INF = math.inf


def coded(problem, method, kind, replication, rates=None, seed=0):
    """Return the problem's shares under a method's encoding, and its code."""
    n = len(problem.shares)
    placed = placement.build(kind, n, n, replication, seed)
    code = codes.build(kind, placed, seed) if method.exact else None
    a = encoding.coverage(placed, np.ones(n) if rates is None else rates) if code is None else code.encoding
    shares = []
    for i in range(n):
        held = placed.shards_of(i)
        shares.append(share_of(problem, held).reweighted(a[i, held]))
    return shares, code


def share_of(problem, held):
    """Return some shards of a problem that has as many as workers, each with weight 1."""
    n = len(problem.features) // len(problem.shares)
    index = np.array([row for k in held for row in range(k * n, (k + 1) * n)], dtype=np.intp)
    rows = WeightedRows(problem.features[index], problem.targets[index], np.full(len(index), 1.0 / n), float(len(held)))
    return ModelShare(problem.objective, rows, rows, [n] * len(held), np.ones(len(held)), rows)


class Star:
    """The states of a master and its workers, round by round."""

    def __init__(self, method, shares, code):
        self.method, self.shares = method, shares
        n = len(shares)
        self.states = [
            method.start(
                np.zeros(shares[0].n_params),
                Place(
                    i,
                    n,
                    tuple(range(1, n)) if i == 0 else (0,),
                    share,
                    share.weight,
                    np.ones((n, 0), bool),
                    0,
                    code=code,
                ),
            )
            for i, share in enumerate(shares)
        ]
        self.round_ = 0
        self.messages = [None] * n

    def round(self, finished=lambda i: True, step_size=1.0, silent=()):
        """Take a round in which some finish, and the ``silent`` send nothing: their last message stays."""
        for i, (state, share) in enumerate(zip(self.states, self.shares, strict=True)):
            gradient = Gradient(share.gradient(state.params), state.params.copy()) if finished(i) else None
            out = np.full(self.method.message_size(share.n_params), np.nan)
            self.method.send(state, gradient, step_size, self.round_, out)
            if i not in silent:
                self.messages[i] = (self.round_, out)
        inbox = [
            Received(None, 0) if message is None else Received(message[1], self.round_ - message[0])
            for message in self.messages[1:]
        ]
        self.method.receive(self.states[0], self.messages[0][1], inbox, NO_MIXING, step_size)
        self.round_ += 1
        x = np.empty_like(self.messages[0][1])
        self.method.send(self.states[0], None, step_size, self.round_, x)
        for state in self.states[1:]:
            self.method.receive(state, x, [Received(x, 0)], NO_MIXING, step_size)

    @property
    def x(self):
        return np.stack([state.params for state in self.states])


def smoothness(problem):
    """Return L, a bound: the loss's largest second derivative times the Gram matrix's largest eigenvalue, and l2."""
    rows, objective = problem.pooled, problem.objective
    steepest = {"least_squares": 1.0, "logistic": 0.25, "softmax": 0.5}[objective.name]
    gram = rows.features.T @ (rows.weights[:, None] * rows.features)
    return steepest * np.linalg.eigvalsh(gram)[-1] + objective.l2 * rows.l2_weight


CASES = [
    (GRADIENT_CODING, "descent", "cyclic", "logistic"),
    (GRADIENT_CODING, "nesterov", "fractional_repetition", "softmax"),
    (GRADIENT_CODING, "master_cg", "cyclic", "least_squares"),
    (GRADIENT_CODING, "master_cg", "fractional_repetition", "least_squares"),
    (GRADIENT_CODING, "cg", "cyclic", "least_squares"),
    (GRADIENT_CODING, "lbfgs", "cyclic", "logistic"),
    (SGC, "descent", "pairwise_balanced", "logistic"),
    (SGC, "nesterov", "cyclic", "least_squares"),
]


@pytest.mark.parametrize("p", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(("method", "solver", "kind", "loss"), CASES)
def test_the_method_takes_the_same_rounds_as_the_stacked_arrays(method, solver, kind, loss, p):
    problem = Problem(n_workers=6, n=30, n_params=8, kind=loss, l2=0.1, unlike=1.0)
    rates = np.full(6, 1.0 - p)
    shares, code = coded(problem, method, kind, 3, rates, seed=1)
    stragglers = StragglerModel("bernoulli", 6, seed=5, p=p)
    step, expected = 0.5 / smoothness(problem), []
    stacked = StackedCentral(
        start(shares), shares, STACKED_SOLVERS[solver], None, None if code is None else code.encoding
    )
    simulate(
        stacked,
        shares,
        lambda t: step,
        stragglers,
        20,
        observe=lambda t, x: expected.append(x.copy()) is None,
    )
    star = Star(method.using({**SOLVERS, "master_cg": MASTER_CG}[solver]), shares, code)
    for t, x in enumerate(expected[1:]):
        star.round(finished=lambda i, t=t: stragglers.finishes(i, t), step_size=step)
        np.testing.assert_allclose(star.x, x, rtol=0, atol=1e-12 * max(1.0, np.abs(x).max()))
    assert np.abs(expected[-1]).max() > 0.05
    if p == 0.6 and code is not None:  # some rounds were not enough
        assert any((a == b).all() for a, b in itertools.pairwise(expected))


@pytest.mark.parametrize("kind", codes.KINDS)
def test_exact_decoding_makes_every_round_that_of_gradient_descent_whoever_is_late(kind):
    problem = Problem(n_workers=6, n=30, n_params=5, kind="logistic", l2=0.1, unlike=1.0)
    shares, code = coded(problem, GRADIENT_CODING, kind, 3)
    star = Star(GRADIENT_CODING, shares, code)
    step, x = 1.0 / smoothness(problem), np.zeros(5)
    for late in itertools.combinations(range(6), 2):
        star.round(finished=lambda i, late=late: i not in late, step_size=step)
        x = x - step * problem.objective.gradient(x, problem.pooled)
        np.testing.assert_allclose(star.x, np.tile(x, (6, 1)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", codes.KINDS)
def test_one_straggler_more_than_promised_is_counted_and_not_decoded(kind):
    problem = Problem(n_workers=6, n=30, n_params=5, unlike=1.0)
    shares, code = coded(problem, GRADIENT_CODING, kind, 3)
    star, expected = Star(GRADIENT_CODING, shares, code), 0
    for late in itertools.combinations(range(6), 3):
        before = star.x
        star.round(finished=lambda i, late=late: i not in late, step_size=0.01)
        enough = code.decodable(~np.isin(np.arange(6), late))
        expected += not enough
        assert (star.x != before).any() == enough
        assert GRADIENT_CODING.counts(star.states[0]) == {"undecoded": expected}
    assert expected > 0
    assert [GRADIENT_CODING.counts(state) for state in star.states[1:]] == [{"undecoded": 0}] * 5


def test_gradients_of_an_older_round_do_not_count():
    problem = Problem(n_workers=4, n=30, n_params=5, unlike=1.0)
    shares, code = coded(problem, GRADIENT_CODING, "cyclic", 1)
    star = Star(GRADIENT_CODING, shares, code)
    star.round(step_size=0.1)
    x = star.x.copy()
    assert np.abs(x).max() > 1e-3
    star.round(step_size=0.1, silent=(2,))  # without redundancy everybody is needed
    np.testing.assert_array_equal(star.x, x)
    star.round(step_size=0.1)
    assert (star.x != x).any()


@pytest.mark.parametrize("weights", ["paper", "coverage"])
def test_the_stochastic_gradient_is_unbiased_to_within_sampling_error(weights):
    # Persistent stragglers beside random ones: unequal rates, for which only coverage makes up.
    n, p, n_draws = 8, 0.3, 4000
    problem = Problem(n_workers=n, n=20, n_params=4, unlike=2.0)
    rates = np.full(n, 1.0 - p)
    if weights == "coverage":
        rates[:2] = 0.25
    placed = placement.build("pairwise_balanced", n, n, 3, 2)
    a = encoding.build(weights, placed, rates)
    x = np.random.default_rng(0).standard_normal(4)
    coded_gradients = []
    for i in range(n):
        held = placed.shards_of(i)
        coded_gradients.append(share_of(problem, held).reweighted(a[i, held]).gradient(x))
    exact = problem.objective.gradient(x, problem.pooled)
    for seed in range(3):
        random = StragglerModel("bernoulli", n, seed=seed, p=p)
        periodic = StragglerModel("persistent", n, seed=seed, p=p, ranks=(0, 1), factor=4.0)
        model = periodic if weights == "coverage" else random
        np.testing.assert_allclose(model.completion_rates(), rates)
        drawn = []
        for t in range(n_draws):
            finished = [i for i in range(n) if model.finishes(i, t)]
            drawn.append(sum((coded_gradients[i] for i in finished), start=np.zeros(4)) / n)
        error = np.mean(drawn, axis=0) - exact
        # Six standard errors of each of twelve components; a bias of the weights' size is a hundred.
        assert (np.abs(error) <= 6.0 * np.std(drawn, axis=0) / math.sqrt(n_draws)).all()
        assert np.std(drawn, axis=0).max() > 1e-2


def test_the_masters_step_is_the_mean_of_what_came():
    problem = Problem(n_workers=4, n=30, n_params=5, unlike=1.0)
    shares, _ = coded(problem, SGC, "pairwise_balanced", 2)
    star = Star(SGC, shares, None)
    star.round(finished=lambda i: i in (1, 2), step_size=0.5)
    expected = -0.5 * (shares[1].gradient(np.zeros(5)) + shares[2].gradient(np.zeros(5))) / 4
    np.testing.assert_allclose(star.x, np.tile(expected, (4, 1)), rtol=0, atol=1e-15)
    before = star.x.copy()
    star.round(finished=lambda i: False, step_size=0.5)
    np.testing.assert_array_equal(star.x, before)


# Conjugate gradients with the master's own Hessian ---------------------------------------------------------------


def alone(share):
    return Place(0, 1, (), share, 1.0, np.ones((1, share.n_shards), bool), share.n_shards)


def rounds_to(problem, gaps, limit):
    """Return in how many gradients the point is within each of the gaps, relative to the first."""
    best, hessian = problem.best(), problem.objective.hessian(np.zeros(problem.n_params), problem.pooled)
    state, first, reached = MASTER_CG.start(np.zeros(problem.n_params), alone(problem.shares[0])), None, []
    first = best @ hessian @ best
    for n_gradients in range(1, limit + 1):
        MASTER_CG.advance(state, hessian @ (state.params - best), math.nan)
        error = state.params - best
        while len(reached) < len(gaps) and error @ hessian @ error <= gaps[len(reached)] * first:
            reached.append(n_gradients)
    return reached


@pytest.mark.parametrize("cond", [1e2, 1e4])
def test_preconditioned_conjugate_gradients_take_the_rounds_they_are_known_for(cond):
    for seed in range(3):
        found = rounds_to(Problem(cond=cond, seed=seed), (1e-3, 1e-6, 1e-10), 12)
        assert len(found) == 3 and all(mine <= known for mine, known in zip(found, (3, 6, 9), strict=True)), found


@pytest.mark.parametrize("n_params", [1, 2, 5, 10])
def test_conjugate_gradients_end_within_as_many_gradients_as_parameters_and_a_few(n_params):
    # Unlike shards and few rows: the master's Hessian says little of the others'.
    problem = Problem(n_workers=4, n=12, n_params=n_params, l2=0.1, replication=1)
    hessian, best = problem.objective.hessian(np.zeros(n_params), problem.pooled), problem.best()
    state = MASTER_CG.start(np.zeros(n_params), alone(problem.shares[0]))
    # The first gradient shows no curvature; two more are for rounding, which breaks the conjugacy.
    for _ in range(n_params + 3):
        MASTER_CG.advance(state, hessian @ (state.params - best), math.nan)
    bound = np.linalg.cond(hessian) * np.abs(best).max()
    assert np.abs(state.params - best).max() <= 1e-10 * bound
    for _ in range(20):  # and stay there
        MASTER_CG.advance(state, hessian @ (state.params - best), math.nan)
        assert np.abs(state.params - best).max() <= 1e-12 * bound


def test_conjugate_gradients_stay_where_the_gradient_is_nothing():
    problem = Problem(n_workers=2, n=30, n_params=3)
    state = MASTER_CG.start(np.ones(3), alone(problem.shares[0]))
    for _ in range(3):
        MASTER_CG.advance(state, np.zeros(3), math.nan)
        np.testing.assert_array_equal(state.params, np.ones(3))


# Configuration ---------------------------------------------------------------------------------------------------


def configured(kind="gradient_coding", **tables):
    placed = {"kind": "cyclic"} if kind == "gradient_coding" else {}
    method = {"kind": kind, **tables.pop("method", {})}
    return parse_config({"placement": placed, **tables, "method": method})


def test_what_does_not_apply_is_settled_and_the_record_says_so():
    config = configured(method={"mixing": "running", "weights": "paper"}, topology={"kind": "ring"})
    assert (config.method.mixing, config.method.weights, config.method.solver) == (None, "plain", "descent")
    assert (config.topology.kind, config.deadline.compute_s, config.deadline.gossip_s) == ("star", INF, INF)
    assert parse_config(to_dict(config)) == config
    layout = lay_out(config, 4)
    assert layout.topology.neighbors(0) == (1, 2, 3) and layout.topology.neighbors(3) == (0,)
    np.testing.assert_array_equal(layout.encoding_weights, layout.code.encoding)
    assert lay_out(configured("sgc"), 4).code is None
    assert lay_out(configured("sgc", method={"solver": "nesterov"}), 4).method.solver is SOLVERS["nesterov"]
    least_squares = {"objective": {"kind": "least_squares"}, "method": {"solver": "cg"}}
    assert lay_out(configured(**least_squares), 4).method.solver is MASTER_CG
    assert lay_out(configured(method={"solver": "cg"}), 4).method.solver is SOLVERS["cg"]
    assert configured("sgc").deadline.compute_s == "auto"


@pytest.mark.parametrize(
    ("kind", "tables", "message"),
    [
        (
            "gradient_coding",
            {"placement": {}},
            "needs placement.kind = 'cyclic' or .* Got 'pairwise_balanced'. .* 'sgc'",
        ),
        ("gradient_coding", {"method": {"late": "memory"}}, "'memory' does not go with .* Use 'discard', or 'wait'"),
        ("sgc", {"method": {"late": "partial"}}, "'partial' does not go with method.kind = 'sgc'"),
        (
            "gradient_coding",
            {"method": {"solver": "cg", "preconditioner": "local"}},
            "'local' needs .* 'least_squares'",
        ),
        ("sgc", {"method": {"solver": "cg"}}, "method.solver .* must be one of descent, nesterov. Got 'cg'"),
        ("goco", {"method": {"solver": "cg"}}, "method.kind = 'goco' has none. Got 'cg'. Leave it out"),
        (
            "sgc",
            {"method": {"solver": "nesterov"}, "stop": {"gradient_norm": 0.1}},
            "gradient_norm does not go with method.solver = 'nesterov'.* Use stop.target_loss",
        ),
    ],
)
def test_what_is_wrong_with_it_is_refused_with_the_way_out(kind, tables, message):
    with pytest.raises(InputError, match=message):
        configured(kind, **tables)


def test_a_slow_worker_never_finishes_and_its_shards_are_made_up_for():
    slow = {"kind": "slow", "ranks": [1], "factor": 10.0}
    layout = lay_out(configured("sgc", placement={"replication": 2}, stragglers=slow), 4)
    assert layout.stragglers.completion_rates().tolist() == [1.0, 0.0, 1.0, 1.0]
    script = layout.stragglers.scripted()
    assert not any(script.finishes(1, t) for t in range(100)) and script.finishes(0, 3)
    # Whoever else holds a shard of it counts in full.
    others = np.delete(layout.encoding_weights, 1, axis=0)
    np.testing.assert_allclose(others.sum(axis=0), 1.0)
    with pytest.raises(InputError, match="No holder of shard"):
        lay_out(configured("sgc", placement={"kind": "uncoded"}, stragglers=slow), 4)


@pytest.mark.parametrize(("ranks", "rate"), [([1], 0.0), ([0, 1, 2], 0.1)])
def test_slow_workers_that_an_exact_code_cannot_do_without_are_waited_for(ranks, rate):
    slow = {"kind": "slow", "ranks": ranks, "factor": 10.0}
    layout = lay_out(configured(placement={"kind": "cyclic", "replication": 2}, stragglers=slow), 4)
    assert layout.code.decodable(mask_of(4, ranks)) is (rate == 0.0)
    assert layout.stragglers.completion_rates()[ranks].tolist() == [rate] * len(ranks)


def mask_of(n, missing):
    return ~np.isin(np.arange(n), missing)


def test_a_worker_that_is_slower_but_within_the_deadline_is_not_made_up_for():
    slow = {"kind": "slow", "ranks": [1], "factor": 1.6, "work_s": 0.01}
    for deadline, rate in (("auto", 0.5), (0.02, 0.5), (0.01, 0.0)):
        layout = lay_out(configured("sgc", deadline={"compute_s": deadline}, stragglers=slow), 4)
        assert layout.stragglers.completion_rates()[1] == rate
    waits = configured("sgc", deadline={"compute_s": INF}, stragglers=slow)
    assert waits.method.late == "wait"
    assert lay_out(waits, 4).stragglers.completion_rates is not None


def test_simulations_end_at_the_optimum_whoever_is_slow():
    for kind, solver in (("gradient_coding", "cg"), ("gradient_coding", "nesterov"), ("sgc", "nesterov")):
        config = configured(
            kind,
            rounds=60,
            data={"source": "synthetic", "shards": 9, "n_samples": 900, "n_features": 10},
            objective={"kind": "least_squares"},
            method={"solver": solver},
            stragglers={"kind": "slow", "ranks": [3]},
            record={"optimum": True},
        )
        outcome = simulate_experiment(config, 5)
        assert outcome.history[-1]["loss"] - outcome.loss_optimum < 1e-9
        np.testing.assert_array_equal(outcome.stacked_params, np.tile(outcome.stacked_params[0], (5, 1)))


@pytest.mark.parametrize("kind", codes.KINDS)
def test_the_automatic_step_is_that_of_the_pooled_loss_whatever_the_code_weighs(kind):
    tables = {"data": {"source": "synthetic", "shards": 9, "n_samples": 600}, "objective": {"kind": "least_squares"}}
    exact = Simulation(configured(placement={"kind": kind, "replication": 3}, **tables), 9)
    assert np.abs(exact.layout.encoding_weights).std() > 0.1
    smallest, largest = objectives.extreme_curvatures(
        lambda v: exact.problem.objective.hessian_product(np.zeros(51), exact.problem.pooled_rows(), v), 51
    )
    assert exact.step_size(0) == pytest.approx(2.0 / (largest + max(smallest, 0.1 * largest)), rel=1e-5)
