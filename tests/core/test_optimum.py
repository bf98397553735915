import numpy as np
import pytest

from goco_mpi.core import objectives, optimum
from goco_mpi.core.objectives import WeightedRows


def problem(kind, l2=0.01, n=60, d=5):
    rng = np.random.default_rng(11)
    targets = {
        "least_squares": rng.standard_normal(n),
        "logistic": rng.choice([-1.0, 1.0], n),
        "softmax": rng.integers(3, size=n).astype(float),
    }[kind]
    rows = WeightedRows(rng.standard_normal((n, d)), targets, np.full(n, 1.0 / n), 1.0)
    return objectives.build(kind, d, l2, 2 if kind == "logistic" else 3), rows


@pytest.mark.parametrize("kind", objectives.KINDS)
def test_gradient_vanishes_at_the_optimum_and_the_loss_is_the_one_there(kind):
    objective, rows = problem(kind)
    params, loss = optimum.minimize(objective, rows)
    start = np.linalg.norm(objective.gradient(np.zeros(objective.n_params), rows))
    # A loss exact to eps leaves a gradient of about sqrt(eps).
    assert np.linalg.norm(objective.gradient(params, rows)) < 1e-6 * start
    assert loss == pytest.approx(objective.loss(params, rows), rel=1e-14)


@pytest.mark.parametrize("kind", objectives.KINDS)
def test_no_point_nearby_is_better(kind):
    objective, rows = problem(kind)
    params, loss = optimum.minimize(objective, rows)
    rng = np.random.default_rng(0)
    for radius in (1e-3, 1e-1, 1.0):
        assert objective.loss(params + radius * rng.standard_normal(params.size), rows) > loss


def test_optimum_of_least_squares_solves_the_normal_equations():
    objective, rows = problem("least_squares")
    gram = rows.features.T @ (rows.weights[:, None] * rows.features) + 0.01 * np.eye(5)
    exact = np.linalg.solve(gram, rows.features.T @ (rows.weights * rows.targets))
    params, loss = optimum.minimize(objective, rows)
    # The loss is flat at its bottom: eps there is sqrt(eps) in the parameters.
    np.testing.assert_allclose(params, exact, rtol=0, atol=1e-6)
    assert loss == pytest.approx(objective.loss(exact, rows), rel=1e-13)
