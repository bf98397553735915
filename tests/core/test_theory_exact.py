"""Methods that end at the optimum, whoever is late, and the neighbourhood at which goco ends."""

import itertools

import numpy as np
import pytest
from quadratic import Quadratic

SEEDS = range(5)


def worst_gaps(problem, step_size, n_rounds):
    """Return the suboptimality of the worst worker in every round."""
    gaps = []
    problem.run(step_size, n_rounds, lambda t, x: gaps.append(problem.gap(x).max()))
    return np.array(gaps)


def late_links(seed, n):
    link_p = np.zeros(n)
    link_p[np.random.default_rng(seed).permutation(n)[: n // 4]] = 0.9
    return link_p.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_push_pull_is_linear_to_1e_10_where_half_the_gradients_and_a_quarter_of_the_links_are_late_and_goco_stalls(
    seed,
):
    stragglers = {"kind": "bernoulli", "p": 0.5, "link_p": late_links(seed, 32)}
    push_pull, goco = (
        worst_gaps(Quadratic(seed, 32, method={"kind": kind}, stragglers=stragglers), 0.1, 1000)
        for kind in ("push_pull", "goco")
    )
    assert push_pull[1000] < 1e-10
    # Every 100 rounds take off a factor of ten at least, so that it is linear and no accident.
    for before, after in itertools.pairwise(push_pull[::100]):
        assert after < 0.1 * before
    assert goco[500:].mean() > 1e-3
    assert goco[500:].min() > 1e5 * push_pull[500:].max()


@pytest.mark.parametrize("method", [{"kind": "push_pull"}, {"kind": "exact_diffusion"}], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_fixed_point_of_exact_methods_is_the_optimum_to_rounding(seed, method):
    stragglers = {"kind": "bernoulli", "p": 0.5}
    gaps = worst_gaps(Quadratic(seed, 16, method=method, stragglers=stragglers), 0.1, 1500)
    # Rounding of parameters of size 1 is 1e-16, of which the gap is the square.
    assert gaps[-1] < 1e-26


@pytest.mark.parametrize("seed", SEEDS)
def test_without_stragglers_goco_ends_at_the_fixed_point_of_its_equations(seed):
    problem = Quadratic(seed, 16)
    end = problem.run(0.05, 2000, lambda t, x: None)
    np.testing.assert_allclose(end, problem.stationary(0.05, np.ones(16)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_its_workers_then_lie_about_the_optimum_at_a_distance_proportional_to_the_step(seed):
    # To first order in eta: X = 1 x* - eta (W + W^2 + ...) (G - mean G), and the mean is x* but for second order.
    problem = Quadratic(seed, 16)
    coded = np.einsum("iab,b->ia", problem.coded_hessians, problem.best) - problem.coded_targets
    np.testing.assert_allclose(coded.mean(axis=0), 0.0, atol=1e-12)
    mixing = problem.layout.mixing_matrix.toarray()
    series = np.linalg.inv(np.eye(16) - mixing + 1.0 / 16) @ mixing
    remainders = []
    for eta in (0.01, 0.005):
        x = problem.stationary(eta, np.ones(16))
        spread = x - x.mean(axis=0)
        first_order = -eta * (series @ coded)
        first_order -= first_order.mean(axis=0)
        remainders.append(np.linalg.norm(spread - first_order) / np.linalg.norm(first_order))
    assert remainders[0] < 0.05
    assert remainders[1] == pytest.approx(remainders[0] / 2, rel=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_stragglers_the_neighbourhood_of_the_mean_is_proportional_to_the_step(seed):
    # The stationary covariance C of x <- x - eta (H x + noise) solves H C + C H = eta S, to first order in eta:
    # what is random of the gap is tr(H C) / 2 = eta tr(S) / 4. Mandt, Hoffman & Blei, JMLR 18 (2017).
    p, eta, n_rounds, skipped, n = 0.5, 0.02, 4000, 500, 16
    problem = Quadratic(seed, n, placement={"replication": n}, stragglers={"kind": "bernoulli", "p": p})
    # With every shard everywhere all workers' gradients are grad F / q, so that nothing is left of the noise at the
    # optimum: they all end there.
    assert worst_gaps(problem, eta, n_rounds)[-1] < 1e-12
    problem = Quadratic(seed, n, topology={"kind": "complete"}, stragglers={"kind": "bernoulli", "p": p})
    rates = np.full(n, 1.0 - p)
    coded = np.einsum("iab,b->ia", problem.coded_hessians, problem.best) - problem.coded_targets
    noise = float(np.sum(coded**2) * p * (1 - p) / n**2)
    gaps = []
    problem.run(eta, n_rounds, lambda t, x: gaps.append(problem.gap(x[0])))
    found = np.mean(gaps[skipped:]) - problem.gap(problem.stationary(eta, rates).mean(axis=0))
    expected = eta * noise / 4 / problem.gap_at_zero
    # Nine directions, each forgotten in 1 / (eta lambda) rounds: some hundreds of independent squares, whose mean is
    # known to about a tenth, and eta L / 2 of higher order.
    assert found == pytest.approx(expected, rel=0.35)
