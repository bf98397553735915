"""What is made of an allreduce's mean gradient: rates from theory, rounds, and the same rounds on stacked arrays."""

import functools

import numpy as np
import pytest

from goco_mpi.config import parse_config, to_dict
from goco_mpi.core import objectives, optimum
from goco_mpi.core.events import NONE, Events
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import METHODS, PRECONDITIONED, SOLVERS, Gradient, Place, allreduce_cg, allreduce_lbfgs
from goco_mpi.core.methods.allreduce_nesterov import momentum
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.replay import replay_allreduce
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import SOLVERS as STACKED_SOLVERS
from goco_mpi.core.stacked import start
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import lay_out, synchronous_curvature
from goco_mpi.problem import load_problem
from goco_mpi.replay import Replay
from goco_mpi.simulation.rounds import simulate_experiment

EVERY = {**SOLVERS, "preconditioned_cg": PRECONDITIONED["cg"]}
QUADRATIC_ALONE = "preconditioned_cg"
HELD = np.ones((1, 0), dtype=bool)
NO_MIXING = Mixing(np.empty(0), 0)
GAPS = (1e-3, 1e-6, 1e-10)


class Problem:
    """Least squares, ``n`` rows a worker: columns scaled geometrically, every worker with a solution of its own."""

    def __init__(self, *, n_workers=8, n=500, n_params=100, cond=100.0, seed=0, features=None):
        rng = np.random.default_rng(seed)
        drawn = rng.standard_normal((n_workers * n, n_params)) * np.geomspace(1.0, cond**-0.5, n_params)
        drawn = drawn if features is None else features
        own = rng.standard_normal(n_params) + 0.1 * rng.standard_normal((n_workers, n_params))
        targets = np.einsum("ij,ij->i", drawn, np.repeat(own, n, axis=0)) + 0.5 * rng.standard_normal(len(drawn))
        self.objective = objectives.build("least_squares", n_params, 0.0, None)
        self.pooled = WeightedRows(drawn, targets, np.full(len(drawn), 1.0 / len(drawn)), 1.0)
        self.shares = []
        for i in range(n_workers):
            part = slice(i * n, (i + 1) * n)
            rows = WeightedRows(drawn[part], targets[part], np.full(n, 1.0 / n), 1.0)
            self.shares.append(ModelShare(self.objective, rows, rows, [n], np.ones(1), rows))
        self.hessian = self.objective.hessian(np.zeros(n_params), self.pooled)
        self.best = np.linalg.solve(self.hessian, drawn.T @ (self.pooled.weights * targets))
        self.smallest, self.largest = np.linalg.eigvalsh(self.hessian)[[0, -1]]


class Bundled:
    """Bundled data, sorted by label and dealt to four workers, with its optimum to all digits."""

    def __init__(self, source, kind, l2, partition="by_label"):
        self.config = parse_config(
            {
                "data": {
                    "source": source,
                    "standardize": True,
                    "partition": partition,
                    "shards": 8,
                },
                "objective": {"kind": kind, "l2": l2},
                "method": {"kind": "allreduce"},
            }
        )
        layout, problem = lay_out(self.config, 4), load_problem(self.config)
        self.objective, self.pooled = problem.objective, problem.pooled_rows()
        self.shares = [problem.share(layout, worker) for worker in range(4)]
        start = np.zeros(self.objective.n_params)
        self.largest = objectives.curvature(
            lambda v: self.objective.hessian_product(start, self.pooled, v), self.objective.n_params
        )
        self.by_scipy = optimum.minimize(self.objective, self.pooled)[0]
        self.best = self.by_scipy
        for _ in range(2):  # from L-BFGS's digits to all of them
            hessian = self.objective.hessian(self.best, self.pooled)
            self.best = self.best - np.linalg.solve(hessian, self.objective.gradient(self.best, self.pooled))


BUNDLED = {
    "logistic": functools.cache(lambda: Bundled("breast_cancer", "logistic", 1e-2)),
    "softmax": functools.cache(lambda: Bundled("digits", "softmax", 1e-2)),
}


def unequal(problem):
    """Give the first worker's rows to the second: one holds nothing, and one twice as much as others."""
    n = len(problem.shares)
    first, second = problem.shares[0].coded, problem.shares[1].coded
    nothing = first.part(slice(0, 0), 0.0)
    both = WeightedRows(
        np.vstack([first.features, second.features]),
        np.concatenate([first.targets, second.targets]),
        np.concatenate([first.weights, second.weights]),
        first.l2_weight + second.l2_weight,
    )
    sizes = [first.n_rows, second.n_rows]
    problem.shares[0] = ModelShare(problem.objective, nothing, nothing, [], np.empty(0), nothing)
    problem.shares[1] = ModelShare(problem.objective, both, both, sizes, np.ones(2), both)
    assert [share.weight for share in problem.shares] == [0.0, 2.0] + [1.0] * (n - 2)
    return problem


def run(problem, solver, n_rounds, step_size=None, beta=None, turned=False):
    """Return everybody's parameters before every round and after the last, shape (n_rounds + 1, n_params)."""
    method, n = EVERY[solver], len(problem.shares)
    start = np.zeros(problem.objective.n_params)
    step_size = 1.0 / problem.largest if step_size is None else step_size
    states = [
        method.start(start, Place(i, n, (), share, share.weight, HELD, 0, momentum=beta))
        for i, share in enumerate(problem.shares)
    ]
    found = [start]
    out = np.empty((n, method.message_size(start.size)))
    for t in range(n_rounds):
        for state, share, message in zip(states, problem.shares, out, strict=True):
            gradient = None
            if method.needs_gradient(state, t):
                gradient = Gradient(share.gradient(state.params), state.params.copy())
            method.send(state, gradient, step_size, t, message)
        mean = functools.reduce(np.add, out[::-1] if turned else out) / n
        for state, message in zip(states, out, strict=True):
            method.receive(state, message, [Received(mean.copy(), 0)], NO_MIXING, step_size)
        for state in states:
            np.testing.assert_array_equal(state.params, states[0].params)  # to the last bit
        found.append(states[0].params.copy())
    return np.array(found)


def gaps(problem, points):
    """Return (F(x) - F*) / (F(0) - F*) at each point."""
    least = problem.objective.loss(problem.best, problem.pooled)
    losses = np.array([problem.objective.loss(x, problem.pooled) for x in points])
    return (losses - least) / (losses[0] - least)


def rounds_to(problem, points):
    """Return after how many rounds the gap is below each of GAPS for good, None where it never is."""
    above = [np.flatnonzero(gaps(problem, points) > limit)[-1] + 1 for limit in GAPS]
    return [int(rounds) if rounds < len(points) else None for rounds in above]


def best_of(problem, solver):
    """Return the step size and momentum that a run finds by itself."""
    config = parse_config({"method": {"kind": "allreduce", "solver": solver.removeprefix("preconditioned_")}})
    start = np.zeros(problem.objective.n_params)

    def product(v):
        return problem.objective.hessian_product(start, problem.pooled, v)

    curvature, beta = synchronous_curvature(config, product, start.size, problem.objective.quadratic)
    return 1.0 / curvature, beta


# Rates and rounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("solver", "most"),
    [("descent", (65, 240, 500)), ("nesterov", (21, 57, 108)), ("cg", (14, 31, 49)), ("lbfgs", (18, 40, 62))],
)
def test_rounds_on_a_condition_number_of_100_with_nothing_tuned(solver, most, seed):
    # A well tuned Nesterov method takes 18, 53 and 105, and conjugate gradients 12, 28 and 45, of textbook form.
    problem = Problem(seed=seed)
    step_size, beta = best_of(problem, solver)
    found = rounds_to(problem, run(problem, solver, most[-1], step_size, beta))
    assert None not in found
    assert all(rounds <= limit for rounds, limit in zip(found, most, strict=True)), found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cond", [1e2, 1e4])
def test_rounds_preconditioned_by_the_workers_own_hessians(cond, seed):
    # 4, 6 and 10 without the first round, which goes to the mean of the workers' minima.
    problem = Problem(cond=cond, seed=seed)
    points = run(problem, "preconditioned_cg", 12, best_of(problem, "cg")[0])
    found = rounds_to(problem, points)
    assert all(rounds <= limit for rounds, limit in zip(found, (1, 5, 7), strict=True)), found
    # Every other round is without a gradient.
    minima = [np.linalg.solve(share.hessian(points[0]), share.gradient(points[0])) for share in problem.shares]
    np.testing.assert_allclose(points[1], -np.mean(minima, axis=0), rtol=1e-10)
    np.testing.assert_array_equal(points[2], points[1])
    assert (points[3] != points[2]).all()


def test_a_preconditioned_round_has_no_use_for_a_gradient_and_one_vector():
    problem = Problem(n_workers=3, n=60, n_params=8, cond=10.0)
    method, share = EVERY[QUADRATIC_ALONE], problem.shares[0]
    state = method.start(np.zeros(8), Place(0, 3, (), share, 1.0, HELD, 0))
    out, asked, rng = np.empty(method.message_size(8)), [], np.random.default_rng(0)
    assert out.shape == (8,)
    for t in range(6):
        asked.append(method.needs_gradient(state, t))
        gradient = Gradient(rng.standard_normal(8), state.params.copy()) if asked[-1] else None
        method.send(state, gradient, 0.1, t, out)
        if t == 0:
            np.testing.assert_allclose(share.hessian(np.zeros(8)) @ out, gradient.vector, rtol=1e-10)
        elif t == 2:
            np.testing.assert_allclose(share.hessian(np.zeros(8)) @ out, state.gradient, rtol=1e-10)
        elif asked[-1]:
            np.testing.assert_array_equal(out, gradient.vector)
        method.advance(state, problem.hessian @ state.params + np.ones(8) if t % 2 else out.copy(), 0.1)
    assert asked == [True, True, False, True, False, True]


def test_preconditioned_gradients_rest_at_the_optimum_without_any_work():
    problem = Problem(n_workers=3, n=200, n_params=8, cond=10.0)
    points = run(problem, QUADRATIC_ALONE, 40)
    np.testing.assert_array_equal(points[-20:], np.tile(points[-1], (20, 1)))
    np.testing.assert_allclose(points[-1], problem.best, rtol=0, atol=1e-13 * np.abs(problem.best).max() * 10)


def test_few_rows_a_worker_cost_rounds_and_no_accuracy():
    problem = unequal(Problem(n_workers=4, n=15, n_params=20))
    points = run(problem, QUADRATIC_ALONE, 60)
    assert rounds_to(problem, points)[-1] is not None


@pytest.mark.parametrize("cond", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradients_need_hardly_more_rounds_than_parameters_at_any_condition_number(cond, seed):
    problem = Problem(n_workers=4, n=100, n_params=40, cond=cond, seed=seed)
    found = gaps(problem, run(problem, "cg", 43))
    # The loss itself has no more digits than these: rounding of two losses, and that of the optimum.
    assert found[-1] < 1e-10, found[-5:]
    assert found[12] > 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_accelerated_descent_on_a_quadratic_loss_keeps_to_its_rate(seed):
    problem = Problem(n_workers=4, n=150, n_params=40, cond=300.0, seed=seed)
    step_size, beta = best_of(problem, "nesterov")
    points = run(problem, "nesterov", 200, step_size, beta)
    q = problem.smallest / problem.largest
    assert beta == pytest.approx(momentum(1.0 / q), rel=1e-5)
    # x+ of each round from y: F(x_k) - F* <= (1 - sqrt q)^k (F(x_0) - F* + mu / 2 |x_0 - x*|^2)
    iterates = [y - step_size * problem.objective.gradient(y, problem.pooled) for y in points]
    least = problem.objective.loss(problem.best, problem.pooled)
    losses = np.array([problem.objective.loss(x, problem.pooled) for x in iterates]) - least
    first = (
        problem.objective.loss(points[0], problem.pooled) - least + problem.smallest / 2.0 * problem.best @ problem.best
    )
    bound = (1.0 - np.sqrt(q)) ** np.arange(1, len(points) + 1) * first
    assert (losses <= bound * (1.0 + 1e-5) + 1e-15).all()
    # It says something: descent does not keep to it.
    plain = run(problem, "descent", 200)[-1]
    assert problem.objective.loss(plain, problem.pooled) - least > 10.0 * bound[200]


@pytest.mark.parametrize("cond", [4.0, 300.0])
def test_descent_on_a_quadratic_loss_contracts_every_component_as_its_step_says(cond):
    problem = Problem(n_workers=4, n=150, n_params=30, cond=cond)
    step_size, beta = best_of(problem, "descent")
    mu = max(problem.smallest, 0.1 * problem.largest)
    assert beta is None
    assert step_size == pytest.approx(2.0 / (problem.largest + mu), rel=1e-5)
    values, vectors = np.linalg.eigh(problem.hessian)
    points = run(problem, "descent", 10, step_size)
    parts = np.abs((points - problem.best) @ vectors)
    np.testing.assert_allclose(parts[10], np.abs(1.0 - step_size * values) ** 10 * parts[0], rtol=1e-7, atol=1e-14)
    # No component contracts slower than with the step 1 / L, up to a tenth, and the slowest nearly twice as fast.
    assert step_size * problem.largest > 1.5


@pytest.mark.parametrize("kind", BUNDLED)
def test_every_solver_finds_scipys_optimum_of_bundled_data_and_beats_descent(kind):
    problem = BUNDLED[kind]()
    found = {solver: rounds_to(problem, run(problem, solver, 150)) for solver in SOLVERS}
    assert found["cg"][-1] is not None
    assert found["lbfgs"][-1] is not None
    for place in range(3):
        order = [found[solver][place] or 999 for solver in ("lbfgs", "cg", "nesterov", "descent")]
        assert order == sorted(order), found
        assert order[0] < 0.5 * order[-1] or place == 0
    end = run(problem, "lbfgs", 120)[-1]
    # scipy's stops at gradients of 1e-10.
    assert np.abs(end - problem.by_scipy).max() < 1e-10 / problem.objective.l2 * 10
    assert np.abs(end - problem.best).max() < 1e-12 / problem.objective.l2


@pytest.mark.parametrize("solver", ["cg", "lbfgs"])
def test_at_the_optimum_everyone_stays(solver):
    # More rounds than are of use: what is left to divide is rounding, and must not be divided.
    for problem in (Problem(n_workers=3, n=60, n_params=8, cond=10.0), BUNDLED["logistic"]()):
        step_size, beta = best_of(problem, solver)
        points = run(problem, solver, 80, step_size, beta)
        assert np.abs(points[-20:] - problem.best).max() < 1e-8 * np.abs(problem.best).max()


def test_rounding_does_not_grow_where_the_loss_is_quadratic():
    # Sums in the other order end in the same parameters after any number of rounds, so that replays agree.
    problem = Problem(n_workers=4, n=100, n_params=60, cond=1e6)
    for solver in ("cg", "nesterov", "descent"):
        one, other = run(problem, solver, 70), run(problem, solver, 70, turned=True)
        # The condition number times a few roundings is what the minimum itself is uncertain by.
        assert np.abs(one - other).max() < 1e-9 * np.abs(problem.best).max()
        assert np.abs(one[:30] - other[:30]).max() < 1e-12 * np.abs(problem.best).max()


@pytest.mark.parametrize(("row", "point"), [(2, 2), (3, NONE), (4, 3)])
def test_events_with_a_gradient_too_many_or_too_few_are_refused(row, point):
    problem = Problem(n_workers=2, n=60, n_params=12, cond=30.0)
    places = [Place(i, 2, (), share, share.weight, HELD, 0) for i, share in enumerate(problem.shares)]
    table = np.array([[0, 0], [1, 1], [2, NONE], [3, 3], [4, NONE], [5, NONE]], dtype=np.int32)
    events = [Events(table, 0)] * 2
    assert np.abs(replay_allreduce(PRECONDITIONED["cg"], places, lambda t: 0.1, events, np.zeros(12))).max() > 0.1
    table[row, 1] = point
    with pytest.raises(RunError, match=f"round {row} of an allreduce without its gradient, or with one that it has no"):
        replay_allreduce(PRECONDITIONED["cg"], places, lambda t: 0.1, events, np.zeros(12))


@pytest.mark.parametrize("solver", EVERY)
def test_disturbed_sums_move_a_replay_a_little_and_more_where_rounding_grows(solver):
    problem = Problem(n_workers=3, n=60, n_params=12, cond=1e4)
    places = [Place(i, 3, (), share, share.weight, HELD, 0) for i, share in enumerate(problem.shares)]
    table = np.array([[t, t] for t in range(9)] + [[9, NONE]], dtype=np.int32)
    if solver == QUADRATIC_ALONE:
        table[[2, 4, 6, 8], 1] = NONE
    method, step_size = EVERY[solver], 1.0 / problem.largest
    one, other = (
        replay_allreduce(method, places, lambda t: step_size, [Events(table, 0)] * 3, np.zeros(12), disturbed=disturbed)
        for disturbed in (False, True)
    )
    difference = np.abs(one - other).max() / np.abs(one).max()
    assert 0.0 < difference < 1e-10
    assert method.sensitive == (solver in ("cg", "lbfgs"))


def test_a_replay_agrees_within_what_rounding_grew_to_and_never_by_more_than_a_thousandth():
    for grown, tolerance in ((0.0, 1e-12), (1e-15, 1e-12), (1e-12, 1e-10), (1.0, 1e-3)):
        assert Replay(np.array([0.99 * tolerance, 0.0]), 9, grown).agrees
        assert not Replay(np.array([0.0, 1.01 * tolerance]), 9, grown).agrees


# Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 50.0, 1e4])
@pytest.mark.parametrize("n_params", [1, 7, 150])
def test_extreme_curvatures_are_those_of_the_matrix(n_params, condition):
    rng = np.random.default_rng(n_params)
    basis = np.linalg.qr(rng.standard_normal((n_params, n_params)))[0]
    values = np.geomspace(3.0 / condition, 3.0, n_params)
    matrix = basis * values @ basis.T
    smallest, largest = objectives.extreme_curvatures(lambda v: matrix @ v, n_params)
    assert largest == pytest.approx(values[-1], rel=1e-5)
    # With fewer products than parameters, from above.
    assert values[0] * (1.0 - 1e-5) <= smallest <= values[0] * (1.0 + (1e-5 if n_params <= 100 else 0.5))


def test_a_curvature_that_is_rounding_is_none():
    matrix = np.ones((4, 4))
    assert objectives.extreme_curvatures(lambda v: matrix @ v, 4) == (0.0, 4.0)
    assert objectives.extreme_curvatures(lambda v: 0.0 * v, 4) == (0.0, 0.0)


def test_two_loops_are_the_matrix_that_maps_every_y_of_a_conjugate_set_to_its_s():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    hessian = root @ root.T + np.eye(5)
    directions = allreduce_cg.Directions(5, 5)
    pairs = []
    for _ in range(5):
        p = directions.conjugate(rng.standard_normal(5))
        q = hessian @ p
        directions.add(p, q, float(p @ q))
        pairs.append((p, q, 1.0 / float(p @ q)))
    for p, q, _ in pairs:
        np.testing.assert_allclose(allreduce_lbfgs.two_loops(pairs, q, 0.1), p, rtol=1e-9)
    vector = rng.standard_normal(5)
    np.testing.assert_allclose(allreduce_lbfgs.two_loops([], vector, 0.1), 0.1 * vector)
    np.testing.assert_allclose(directions.conjugate(vector), 0.0, atol=1e-9)  # nothing is left in five dimensions


def test_directions_beyond_the_memory_take_the_place_of_the_oldest():
    directions = allreduce_cg.Directions(3, 2)
    for axis in np.eye(3):
        directions.add(2.0 * axis, 8.0 * axis, 16.0)
    np.testing.assert_allclose(directions.conjugate(np.ones(3)), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(directions.conjugate(np.array([1.0, -1.0, 1.0]), least=0.0), [1.0, 0.0, 1.0])


def test_a_step_uphill_takes_all_momentum_away_where_none_is_given():
    share = Problem(n_workers=1, n=2, n_params=1).shares[0]
    method = SOLVERS["nesterov"]
    state = method.start(np.array([1.0]), Place(0, 1, (), share, 1.0, HELD, 0))
    points = []
    for _ in range(60):
        method.advance(state, 0.02 * state.params, 1.0)  # F = 0.01 x^2
        points.append(state.params[0])
    turned = int(np.argmax(np.array(points) < 0.0))  # past the minimum, from where it would go uphill
    assert 5 < turned < 50
    assert abs(points[turned + 1]) <= 0.98 * abs(points[turned])


def test_a_trial_that_went_uphill_is_shortened_and_not_taken():
    # F(x) = x^2 / 2 from x = 1, with a first step eight times too long.
    method = SOLVERS["lbfgs"]
    state = method.start(
        np.array([1.0]), Place(0, 1, (), Problem(n_workers=1, n=2, n_params=1).shares[0], 1.0, HELD, 0)
    )
    method.advance(state, state.params.copy(), 8.0)
    np.testing.assert_allclose(state.params, [-7.0])
    method.advance(state, state.params.copy(), 8.0)
    np.testing.assert_allclose(state.base, [1.0])
    np.testing.assert_allclose(state.params, [0.0], atol=1e-15)  # where the secant says
    method.advance(state, state.params.copy(), 8.0)
    np.testing.assert_allclose(state.params, [0.0], atol=1e-15)


def test_a_gradient_far_above_the_smallest_sends_conjugate_gradients_back():
    problem = BUNDLED["logistic"]()
    method = SOLVERS["cg"]
    state = method.start(np.zeros(31), Place(0, 1, (), problem.shares[0], 1.0, HELD, 0))
    small = np.full(31, 1e-3)
    method.advance(state, small, 0.5)
    np.testing.assert_allclose(state.params, -0.5 * small)
    method.advance(state, np.full(31, 1.0), 0.5)
    np.testing.assert_allclose(state.params, -0.25 * small)  # again from zero, and half as far
    method.advance(state, np.full(31, 0.05), 0.5)
    assert state.n_setbacks == 1  # fifty times is still fine


# Against the stacked arrays, and replayed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "solver"),
    [(kind, solver) for kind in ("least squares", *BUNDLED) for solver in SOLVERS]
    + [("least squares", QUADRATIC_ALONE), ("few rows", QUADRATIC_ALONE), ("unequal", QUADRATIC_ALONE)],
)
def test_the_solvers_take_the_same_rounds_as_on_stacked_arrays(kind, solver):
    if kind in BUNDLED:
        problem = BUNDLED[kind]()
    else:
        problem = Problem(n_workers=3, n=14 if kind == "few rows" else 60, n_params=12, cond=30.0)
    if kind == "unequal":
        problem = unequal(problem)
    step_size, beta = best_of(problem, solver)
    expected = []
    end = simulate(
        STACKED_SOLVERS[solver](start(problem.shares), problem.shares, beta),
        problem.shares,
        lambda t: step_size,
        StragglerModel("none", len(problem.shares)),
        40,
        late="wait",
        observe=lambda t, x: expected.append(x[0].copy()) is None,
    )
    np.testing.assert_array_equal(end, np.tile(expected[-1], (len(problem.shares), 1)))
    points = run(problem, solver, 40, step_size, beta)
    # What a method on the way makes of rounding it may not keep: 40 rounds of it, at most.
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-11 * np.abs(points).max())
    np.testing.assert_allclose(points[:10], expected[:10], rtol=0, atol=1e-12 * np.abs(points).max())
    assert np.abs(points).max() > 0.1


@pytest.mark.parametrize("solver", EVERY)
def test_a_replayed_run_ends_where_the_rounds_do(solver):
    problem = Problem(n_workers=3, n=60, n_params=12, cond=30.0)
    step_size, beta = best_of(problem, solver)
    places = [Place(i, 3, (), share, share.weight, HELD, 0, momentum=beta) for i, share in enumerate(problem.shares)]
    table = np.array([[t, t] for t in range(9)] + [[9, NONE]], dtype=np.int32)
    if solver == QUADRATIC_ALONE:
        table[[2, 4, 6, 8], 1] = NONE
    found = replay_allreduce(EVERY[solver], places, lambda t: step_size, [Events(table, 0)] * 3, np.zeros(12))
    np.testing.assert_array_equal(found, np.tile(run(problem, solver, 9, step_size, beta)[-1], (3, 1)))


# Configuration ---------------------------------------------------------------------------------------------------


def test_descent_is_what_an_allreduce_is_for_unless_told_otherwise():
    assert parse_config({"method": {"kind": "allreduce"}}).method.solver == "descent"
    assert parse_config({"method": {"kind": "goco"}}).method.solver is None
    for solver, method in SOLVERS.items():
        config = parse_config({"method": {"kind": "allreduce", "solver": solver}})
        assert lay_out(config, 3).method is method
        assert parse_config(to_dict(config)) == config
    assert METHODS["allreduce"] is SOLVERS["descent"]
    method = {"kind": "allreduce", "solver": "cg", "preconditioner": "local"}
    config = parse_config({"method": method, "objective": {"kind": "least_squares"}})
    assert lay_out(config, 3).method is PRECONDITIONED["cg"]
    assert parse_config(to_dict(config)) == config


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"method": {"solver": "cg"}},
            "method.kind = 'goco' has none. Got 'cg'. Leave it out, or use method.kind = 'al",
        ),
        (
            {"method": {"kind": "allreduce", "solver": "newton"}},
            "must be one of descent, nesterov, cg, lbfgs. Got 'new",
        ),
        *(
            ({"method": {"kind": "allreduce", "solver": solver}, "step": step}, "finds the length of its steps itself")
            for solver in ("cg", "lbfgs")
            for step in ({"kind": "constant", "size": 0.1}, {"size": 0.1}, {"tau": 9.0})
        ),
        *(
            (
                {"method": {"kind": "allreduce", "solver": solver}, "stop": {"gradient_norm": 0.1}},
                "Use stop.target_loss",
            )
            for solver in ("nesterov", "cg", "lbfgs")
        ),
    ],
)
def test_what_does_not_go_with_a_solver_is_refused_with_the_way_out(tables, message):
    with pytest.raises(InputError, match=message):
        parse_config(tables)


def test_a_step_size_given_is_used_and_leaves_the_momentum_to_be_found():
    for solver in ("descent", "nesterov"):
        raw = {
            "rounds": 3,
            "data": {"source": "synthetic", "n_samples": 200, "n_features": 5, "shards": 4},
            "objective": {"kind": "least_squares"},
            "method": {"kind": "allreduce", "solver": solver},
        }
        given = simulate_experiment(parse_config({**raw, "step": {"kind": "constant", "size": 0.3}}), 2)
        assert (given.step_size, given.momentum) == (0.3, None)
        found = simulate_experiment(parse_config(raw), 2)
        assert found.step_size != 0.3
        assert (found.momentum is not None) == (solver == "nesterov")
