"""Heterogeneous least squares on a simulated network, for which theory gives numbers."""

from __future__ import annotations

import numpy as np

from goco_mpi.config import parse_config
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import gossip_step
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem


class Quadratic:
    """Every shard has a solution of its own; two shards for each worker, each on three of them.

    Parameters
    ----------
    seed, n_workers : int
    **tables
        Of the experiment file, beside or over those below.
    """

    def __init__(self, seed: int, n_workers: int = 16, **tables: dict) -> None:
        raw = {
            "seed": seed,
            "data": {
                "source": "synthetic",
                "partition": "in_order",
                "heterogeneity": 1.0,
                "n_samples": 40 * n_workers,
                "n_features": 8,
                "shards": 2 * n_workers,
                "noise": 0.1,
                "test_fraction": 0.0,
            },
            "objective": {"kind": "least_squares", "l2": 1e-2},
            "placement": {"replication": 3},
            "deadline": {"gossip_s": float("inf")},
        }
        for name, table in tables.items():
            raw[name] = {**raw.get(name, {}), **table}
        self.config = parse_config(raw)
        self.layout, problem = lay_out(self.config, n_workers), load_problem(self.config)
        self.n_workers, self.n_params = n_workers, problem.objective.n_params
        self.shares = [problem.share(self.layout, worker) for worker in range(n_workers)]
        zero, rows = np.zeros(self.n_params), problem.pooled_rows()
        self.hessian = problem.objective.hessian(zero, rows)
        self.best = np.linalg.solve(self.hessian, -problem.objective.gradient(zero, rows))
        self.gap_at_zero = 0.5 * self.best @ self.hessian @ self.best
        # Coded gradients are H_i x - b_i.
        self.coded_hessians = np.array([share.hessian(zero) for share in self.shares])
        self.coded_targets = np.array([-share.gradient(zero) for share in self.shares])

    def gap(self, x):
        """Return the suboptimality [F(x) - F*] / [F(0) - F*] of one or several x, without a difference of losses."""
        error = np.asarray(x) - self.best
        return 0.5 * ((error @ self.hessian) * error).sum(axis=-1) / self.gap_at_zero

    def run(self, step_size, n_rounds, observe):
        """Simulate; the step is a number or a function of the round, and ``observe(round, X)`` sees every X."""
        method = self.config.method
        return simulate(
            gossip_step(
                self.shares,
                self.layout.mixing_matrix,
                self.layout.stragglers,
                method=method.kind,
                rule=str(method.mixing),
                max_age=method.max_age,
            ),
            self.shares,
            step_size if callable(step_size) else lambda t: step_size,
            self.layout.stragglers,
            n_rounds,
            late=method.late,
            observe=lambda t, x: observe(t, x) is None,
        )

    def late_mean(self, step_size, n_rounds, skipped):
        """Return the mean over workers and over the rounds after the first ``skipped`` of X."""
        total = np.zeros(self.n_params)

        def observe(t, x):
            if t >= skipped:
                total[:] += x.mean(axis=0)

        self.run(step_size, n_rounds, observe)
        return total / (n_rounds + 1 - skipped)

    def stationary(self, step_size, rates, mixing_matrix=None):
        """Return the E X that X <- W (X - eta r (H X - b)) keeps, where E W and the rates r are given.

        Exact where W and who finishes are drawn anew in every round: both are then independent of X.
        """
        n, k = self.n_workers, self.n_params
        mixing = (self.layout.mixing_matrix if mixing_matrix is None else mixing_matrix) @ np.eye(n)
        step = np.zeros((n, k, n, k))
        step[np.arange(n), :, np.arange(n)] = np.eye(k) - step_size * rates[:, None, None] * self.coded_hessians
        moved = np.einsum("ij,jakb->iakb", mixing, step).reshape(n * k, n * k)
        drive = mixing @ (step_size * rates[:, None] * self.coded_targets)
        return np.linalg.solve(np.eye(n * k) - moved, drive.ravel()).reshape(n, k)

    def deviation_of_late_mean(self, x, rates, n_rounds):
        """Return the standard deviation of `late_mean` over ``n_rounds`` rounds about the stationary ``x``.

        The covariance of an average of T iterates is D^-1 S D^-1 / T, whatever the step, with D the derivative of
        the mean update and S its covariance: Polyak & Juditsky, SIAM J. Control Optim. 30 (1992).
        """
        coded = np.einsum("iab,ib->ia", self.coded_hessians, x) - self.coded_targets
        noise = (coded.T * (rates * (1.0 - rates))) @ coded / self.n_workers**2
        derivative = np.einsum("i,iab->ab", rates, self.coded_hessians) / self.n_workers
        inverse = np.linalg.inv(derivative)
        return np.sqrt(np.diag(inverse @ noise @ inverse.T) / n_rounds)
