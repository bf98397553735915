"""What `goco bench train` compares a run with: programs on one process with all cores, on the same problem.

Prints seconds as `goco_mpi.engine.training` returns them. They begin with the data in memory, as the runs do.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import parse_config
from goco_mpi.problem import Problem, load_problem

Array = NDArray[np.float64]

TOLERANCES = tuple(10.0**-k for k in range(1, 11))
"""Of scikit-learn's own measure of being done, of which the first that reaches a target counts."""


class Rivals:
    """Everybody else on a problem.

    Parameters
    ----------
    problem : Problem
    targets : sequence of float
        Gaps.
    """

    def __init__(self, problem: Problem, targets: Sequence[float]) -> None:
        self._features, self._labels = problem.train.features, problem.train.targets
        self._objective, self._rows = problem.objective, problem.pooled_rows()
        self._targets = targets
        self._least = problem.optimum()
        self._start = self._objective.loss(np.zeros(self._objective.n_params), self._rows)

    def _reached(self, path: Sequence[tuple[float, Array]]) -> list[float]:
        """Return the seconds to each target, of points with their times; no set-up."""
        scale = self._start - self._least
        gaps = [(seconds, (self._objective.loss(x, self._rows) - self._least) / scale) for seconds, x in path]
        return [0.0, *(next((s for s, gap in gaps if gap <= target), math.inf) for target in self._targets)]

    def scipy_lbfgs(self) -> list[float]:
        """Run scipy's L-BFGS on the loss as numpy users write it: two products with all rows."""
        import scipy.optimize
        from scipy.special import expit

        features, labels, l2 = self._features, self._labels, self._objective.l2
        transposed, n = features.T, len(labels)

        def squares(x: Array) -> tuple[float, Array]:
            residuals = features @ x - labels
            return 0.5 * residuals @ residuals / n + 0.5 * l2 * x @ x, transposed @ residuals / n + l2 * x

        def logistic(x: Array) -> tuple[float, Array]:
            margins = labels * (features @ x)
            loss = np.logaddexp(0.0, -margins).mean() + 0.5 * l2 * x @ x
            return loss, transposed @ (-labels * expit(-margins)) / n + l2 * x

        path: list[tuple[float, Array]] = []
        start = time.perf_counter()
        scipy.optimize.minimize(
            squares if self._objective.quadratic else logistic,
            np.zeros(self._objective.n_params),
            jac=True,
            method="L-BFGS-B",
            callback=lambda x: path.append((time.perf_counter() - start, x.copy())),
            options={"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10},
        )
        return self._reached(path)

    def linear_regression(self) -> list[float]:
        """Fit scikit-learn's, which factorises the rows."""
        from sklearn.linear_model import LinearRegression

        return self._reached([self._fit(LinearRegression(fit_intercept=False))])

    def ridge(self) -> list[float]:
        """Fit scikit-learn's, which solves the normal equations."""
        from sklearn.linear_model import Ridge

        return self._reached([self._fit(Ridge(alpha=self._objective.l2 * len(self._labels), fit_intercept=False))])

    def logistic_regression(self) -> list[float]:
        """Fit scikit-learn's to ever smaller tolerances; each fit begins anew, and the first in time counts."""
        from sklearn.linear_model import LogisticRegression

        strength = 1.0 / (self._objective.l2 * len(self._labels))
        fits = []
        for tolerance in TOLERANCES:
            model = LogisticRegression(C=strength, fit_intercept=False, tol=tolerance, max_iter=10_000)
            fits.append(self._fit(model))
            if math.isfinite(max(self._reached(fits))):
                break
        return self._reached(fits)

    def _fit(self, model: Any) -> tuple[float, Array]:
        start = time.perf_counter()
        model.fit(self._features, self._labels)
        return time.perf_counter() - start, np.ravel(model.coef_)

    def all(self) -> dict[str, Callable[[], list[float]]]:
        """Return those that solve such a problem, by name."""
        if self._objective.quadratic:
            return {
                "scipy L-BFGS": self.scipy_lbfgs,
                "sklearn LinearRegression": self.linear_regression,
                "sklearn Ridge": self.ridge,
            }
        return {"scipy L-BFGS": self.scipy_lbfgs, "sklearn LogisticRegression": self.logistic_regression}


def main(options: dict[str, Any]) -> None:
    """Measure those that are named, in turn, after one of each that is thrown away."""
    known = Rivals(load_problem(parse_config(options["tables"])), options["targets"]).all()
    rivals = {name: known[name] for name in options["names"]}
    for measure in rivals.values():
        measure()
    found: dict[str, list[list[float]]] = {name: [] for name in rivals}
    for _ in range(options["repeats"]):
        for name, measure in rivals.items():
            found[name].append(measure())
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
