"""The search behind a plan: candidates simulated in seconds, methods first, then what could be changed of the best."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from goco_mpi.config import parse_config, to_dict
from goco_mpi.core import survival
from goco_mpi.core.costs import CostModel
from goco_mpi.core.gossip import HEADER
from goco_mpi.core.methods import method_of
from goco_mpi.errors import InputError, RunError, check_range
from goco_mpi.experiment import lay_out
from goco_mpi.planning.plan import Candidate, Choice, Plan, describe
from goco_mpi.problem import load_problem
from goco_mpi.schema import RunConfig
from goco_mpi.simulation.seconds import cost_model, simulate_in_time

SCALES = (1.0, 0.3, 1.8)
"""Step sizes tried for each candidate, as multiples of the experiment's."""
LONGER = 2
"""A candidate may take so many times the experiment's rounds."""
ALIKE = 1.1
"""Candidates whose times differ by less count as equally fast: the simpler one is chosen."""
HOPELESS = 2.0
"""A candidate is given up after so many times the best time so far."""
MANY = 64
"""Workers beyond which only the step that the experiment has is tried: each simulation takes minutes there."""
ROWS = 1000
"""Rows of a candidate's history, at most: how finely its time to the gap is known."""
SHARES_DEAD = (0.01, 0.05, 0.1)


class Planner:
    """Tries candidates for one experiment on one number of workers.

    Parameters
    ----------
    config : RunConfig
    n_workers : int
    cost : CostModel or None
        Of a recorded run; None: that of the experiment's ``[cost]``.
    gap : float
        Suboptimality to reach, in (0, 1).
    progress : callable (str) -> None
        Hears of each candidate.

    Raises
    ------
    InputError
        If data and number of workers do not fit, or a value is not allowed.
    """

    def __init__(
        self,
        config: RunConfig,
        n_workers: int,
        cost: CostModel | None = None,
        gap: float = 0.01,
        progress: Callable[[str], None] = lambda words: None,
    ) -> None:
        check_range("--nodes", n_workers, 2, 2**31, "A plan is for several nodes.")
        if not 0.0 < gap < 1.0:
            raise InputError(f"--gap must be above 0 and below 1. Got {gap:g}. It is a part of F(0) - F*.")
        self._config = config
        self._n_workers = n_workers
        self._gap = gap
        self._progress = progress
        self._problem = load_problem(config)
        self._measured = cost is not None
        self._cost = cost or cost_model(config, self._rows_each)
        optimum = self._problem.optimum()
        pooled = self._problem.pooled_rows()
        first = self._problem.objective.loss(np.zeros(self._problem.objective.n_params), pooled)
        self._target = optimum + gap * (first - optimum)
        self._tried: dict[Choice, Candidate] = {}

    def plan(self) -> Plan:
        """Try what is worth trying: methods and replications first, then each choice of the best of them."""
        allreduce = self._try(Choice("allreduce", 1, self._graph), limited=False)
        self._try(Choice("goco", 1, self._graph), limited=False)
        for choice in self._first_choices():
            self._try(choice)
        dead = self._dead()
        for choice in self._variations(self._fastest(len(dead))):
            self._try(choice)
        fastest = self._fastest(len(dead))
        if fastest is not None:  # the control: the same without replication
            self._try(dataclasses.replace(fastest.choice, replication=1), limited=False)
        best = self._simplest_of_the_fastest(len(dead))
        uncoded = min(
            (c for c in self._tried.values() if not c.choice.coded and c.choice.kind != "allreduce"), key=_seconds
        )
        layout = lay_out(self._with((best or uncoded).choice.settings()), self._n_workers)
        return Plan(
            n_workers=self._n_workers,
            gap=self._gap,
            candidates=list(self._tried.values()),
            best=best,
            verdict=_verdict(best),
            allreduce=allreduce,
            uncoded=uncoded,
            survives=survival.survives(layout.placement),
            loss_probability={rho: survival.loss_probability(layout.placement, rho) for rho in SHARES_DEAD},
            n_shards=layout.placement.n_shards,
            gradient_dissimilarity=self._problem.gradient_dissimilarity(),
            message_share=self._message_share(),
            dead=dead,
        )

    @property
    def _graph(self) -> str:
        return "exponential" if self._n_workers <= MANY else "random_regular"

    def _first_choices(self) -> Iterator[Choice]:
        n, problem = self._n_workers, self._problem
        yield Choice("dgd", 1, self._graph)
        yield Choice("goco", 1, self._graph, late="memory")
        for replication in (2, 3, 4):
            if replication <= n:
                yield Choice("goco", replication, self._graph)
        yield Choice("push_pull", 2, self._graph, late="memory")
        if n <= 32 and problem.objective.n_params <= 1000:
            for replication in (1, 2):
                yield Choice("table_newton", replication, "complete", late="memory")

    def _variations(self, found: Candidate | None) -> Iterator[Choice]:
        """Yield choices that differ from the fastest so far in one respect."""
        if found is None or found.choice.kind == "allreduce":
            return
        base = found.choice
        varied = partial(dataclasses.replace, base)
        remembers = method_of(base.kind).remembers
        for late in ("discard", "memory") if remembers else ("discard", "partial", "memory"):
            yield varied(late=late)
        yield varied(late="wait", compute_s="inf", gossip_s="inf")
        yield varied(gossip_s=0.0)
        yield varied(compute_s="inf")
        if base.kind != "table_newton":
            if self._n_workers > 5:
                yield varied(graph="random_regular", degree=4)
            if self._n_workers <= 32:
                yield varied(graph="complete")
            if self._n_workers <= 16:
                yield varied(graph="ring")
        if method_of(base.kind).coded and base.replication < self._n_workers:
            yield varied(replication=base.replication + 1)
        if base.replication > 1:
            yield varied(replication=base.replication - 1)

    def _try(self, choice: Choice, limited: bool = True) -> Candidate:
        """Simulate a candidate to the gap, at its best step size."""
        if choice not in self._tried:
            self._progress(describe(choice))
            scales = SCALES if self._n_workers <= MANY and choice.kind != "table_newton" else SCALES[:1]
            found = [self._simulate(choice, scale, limited) for scale in scales]
            reached = [candidate for candidate in found if candidate.seconds is not None]
            self._tried[choice] = min(reached, key=_seconds) if reached else found[0]
        return self._tried[choice]

    def _simulate(self, choice: Choice, scale: float, limited: bool) -> Candidate:
        best = min((_seconds(candidate) for candidate in self._tried.values()), default=math.inf)
        limit = best * HOPELESS if limited and math.isfinite(best) else None
        rounds, step = self._config.rounds * LONGER, self._step(scale)
        settings = {
            **choice.settings(),
            "rounds": rounds,
            "step": step,
            "stop": {"target_loss": self._target, "time_limit_s": limit},
            "record": {"every": max(rounds // ROWS, 1), "optimum": False},
        }
        cost, set_up_s = self._cost, 0.0
        if choice.kind == "table_newton":
            cost, set_up_s = self._with_hessians(choice.replication)
        try:
            found = simulate_in_time(self._with(settings), self._n_workers, cost=cost, measured=self._measured).outcome
        except (InputError, RunError) as error:
            return Candidate(choice, step, reason=re.split("[:.] ", str(error))[0].rstrip("."))
        last = found.history[-1]
        if last["loss"] <= self._target:
            return Candidate(choice, step, float(last["wall_s"]) + set_up_s, int(last["round"]))
        if found.stopped_by == "time_limit_s":
            return Candidate(choice, step, reason=f"given up after {HOPELESS:g} times the best time")
        return Candidate(choice, step, reason=f"not within {rounds} rounds")

    def _with_hessians(self, replication: int) -> tuple[CostModel, float]:
        """Return the cost of gradients that come with a Hessian, and the seconds of the first one.

        By floating-point operations: r n^2 + n^3 / 3 for n parameters and r rows, and 4 r n for a gradient. A loss
        that is no quadratic has one for each gradient.
        """
        n, objective = self._problem.objective.n_params, self._problem.objective
        cost, rows = self._cost, self._rows_each * replication
        gradients = n / 4.0 + n * n / (12.0 * rows)
        set_up_s = gradients * self._usual_gradient_s() * replication
        return cost if objective.quadratic else dataclasses.replace(cost, rows=cost.rows / (1.0 + gradients)), set_up_s

    def _step(self, scale: float) -> dict[str, Any]:
        step = self._config.step
        if method_of(self._config.method.kind).name == "table_newton":  # its config has no step of its own
            return {"kind": "auto", "scale": scale}
        if step.kind == "auto":
            return {"kind": "auto", "scale": step.scale * scale, "tau": step.tau}
        return {"kind": step.kind, "size": (step.size or 1.0) * scale, "tau": step.tau}

    def _with(self, settings: dict[str, Any]) -> RunConfig:
        """Return the experiment with whole sections replaced."""
        return parse_config({**to_dict(self._config), **settings})

    def _fastest(self, n_dead: int) -> Candidate | None:
        reached = [c for c in self._tried.values() if c.seconds is not None and c.choice.replication > n_dead]
        return min(reached, key=_seconds, default=None)

    def _simplest_of_the_fastest(self, n_dead: int) -> Candidate | None:
        fastest = self._fastest(n_dead)
        if fastest is None:
            return None
        alike = [
            candidate
            for candidate in self._tried.values()
            if _seconds(candidate) <= ALIKE * _seconds(fastest) and candidate.choice.replication > n_dead
        ]
        return min(alike, key=lambda candidate: (_complexity(candidate.choice, self._graph), _seconds(candidate)))

    def _dead(self) -> list[int]:
        """Return the workers that do not finish a single gradient while the others go through the whole run."""
        stragglers = lay_out(self._config, self._n_workers).stragglers
        times = np.array([self._cost.gradient_s(worker, 0, 1) for worker in range(self._n_workers)])
        if not self._measured:
            times *= [stragglers.slowness(worker) for worker in range(self._n_workers)]
        return [int(i) for i in np.flatnonzero(times > LONGER * self._config.rounds * np.median(times))]

    @property
    def _rows_each(self) -> float:
        return self._problem.train.n_samples / self._n_workers

    def _usual_gradient_s(self) -> float:
        """Return the median of the gradients' times over an equal part of the rows."""
        times = [self._cost.gradient_s(worker, k, 1) for worker in range(self._n_workers) for k in range(5)]
        return float(np.median(times)) * self._rows_each

    def _message_share(self) -> float:
        cost = self._cost
        n_bytes = 8 * (HEADER + self._problem.objective.n_params)
        graph = lay_out(self._with({"topology": {"kind": "exponential"}}), self._n_workers).topology
        messages_s = float(np.median(graph.degrees)) * (2 * cost.overhead_s + cost.sending_s(n_bytes)) + cost.latency_s
        return messages_s / self._usual_gradient_s()


def _complexity(choice: Choice, graph: str) -> tuple[int, ...]:
    """Order choices by what they need: gradient work, what the method keeps and sends, unusual rules."""
    kinds = {"allreduce": 0, "dgd": 1, "goco": 1, "push_pull": 2, "table_newton": 3}
    unusual = (choice.late not in ("discard", "memory")) + (choice.graph != graph) + (choice.compute_s != "auto")
    return choice.replication, kinds[choice.kind], unusual + (choice.gossip_s != "auto")


def _verdict(best: Candidate | None) -> str:
    if best is None:
        return "none"
    if best.choice.kind == "allreduce":
        return "allreduce"
    return "code" if best.choice.coded else "uncoded"


def _seconds(candidate: Candidate) -> float:
    return math.inf if candidate.seconds is None else candidate.seconds
