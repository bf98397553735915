"""When a run ends before its last round: one rank decides, and all of them stop."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core import topology
from goco_mpi.core.gossip import Received
from goco_mpi.core.pace.counts import ExchangeCounts
from goco_mpi.engine import stopping as stopping_module
from goco_mpi.engine.allreduce_exchange import AllreduceExchange
from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.requests import Requests
from goco_mpi.engine.session import Session
from goco_mpi.engine.signals import StopSignals
from goco_mpi.engine.stopping import Stopping
from goco_mpi.engine.train import train
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.problem import load_problem
from goco_mpi.schema import StopConfig, replace

INF = math.inf
GUARD_S = 60.0
"""Bound on anything that would go on if it were wrong."""
TARGET = 0.12
"""Where the test problem starts at 0.69, and its optimum is 0.105."""


class TellingExchange(Exchange):
    """Keeps what this rank tells, and is told what a test says."""

    def __init__(self, told: float = math.nan) -> None:
        self.sum = told
        self.said: list[tuple[int, float]] = []
        self.rounds = INF

    def pace(self) -> float:
        return self.rounds

    def tell(self, round_: int, value: float) -> None:
        self.said.append((round_, value))

    def told(self) -> float:
        return self.sum

    def stop(self) -> None:
        self.stopped = True

    def drain(self) -> None:
        raise AssertionError("a stop condition exchanges nothing")

    def blank(self) -> np.ndarray:
        raise AssertionError("a stop condition exchanges nothing")

    def offer(self, round_: int, step: int) -> None:
        raise AssertionError("a stop condition exchanges nothing")

    def wait(self, round_: int) -> None:
        raise AssertionError("a stop condition exchanges nothing")

    def inbox(self, round_: int) -> tuple[np.ndarray, list[Received]]:
        raise AssertionError("a stop condition exchanges nothing")

    def close(self, round_: int, step: int, failed: bool, time_limit_s: float) -> None:
        raise AssertionError("a stop condition exchanges nothing")

    def counts(self) -> ExchangeCounts:
        raise AssertionError("a stop condition exchanges nothing")


def conditions(exchange: Exchange, **config: Any) -> Stopping:
    stopping = Stopping(StopConfig(**config), exchange, lambda params: float(params.sum()))
    stopping.start(np.zeros(2))
    return stopping


def test_without_conditions_nothing_is_told_and_nothing_stops() -> None:
    exchange = TellingExchange(told=-INF)
    stopping = conditions(exchange)
    for round_ in range(1, 50):
        stopping.after_round(round_, 0.1, True, np.zeros(2))
        assert not stopping.out_of_time()
    assert (exchange.said, stopping.reason) == ([], None)


def test_the_loss_is_told_at_first_and_then_every_so_many_rounds() -> None:
    exchange = TellingExchange()
    stopping = conditions(exchange, target_loss=1.0, every=4)
    rounds = [1, 2, 3, 4, 5, 6, 13, 13, 14, 16, 17, 30]  # with jumps, and a round twice
    for round_ in rounds:
        stopping.after_round(round_, 0.1, True, np.full(2, float(round_)))
    assert exchange.said == [(1, 2.0), (5, 10.0), (13, 26.0), (17, 34.0), (30, 60.0)]
    assert not stopping.out_of_time()  # nobody else has told anything


@pytest.mark.parametrize(("told", "stops"), [(math.nan, False), (1.0 + 1e-9, False), (1.0, True), (-3.0, True)])
def test_the_target_is_reached_at_or_below_it_once_all_have_told(told: float, stops: bool) -> None:
    exchange = TellingExchange()
    stopping = conditions(exchange, target_loss=1.0)
    stopping.after_round(1, 0.1, True, np.zeros(2))
    assert not stopping.out_of_time()
    exchange.sum = told
    stopping.after_round(2, 0.1, True, np.zeros(2))
    assert stopping.out_of_time() == stops
    assert stopping.reason == ("target_loss" if stops else None)


def test_the_first_reason_stays() -> None:
    exchange = TellingExchange()
    stopping = conditions(exchange, target_loss=1.0, gradient_norm=1.0, every=2)
    for round_ in range(1, 20):
        stopping.after_round(round_, 0.1, True, np.zeros(2))
        if stopping.reason is not None:
            break
    assert stopping.reason == "gradient_norm"
    exchange.sum = 0.0
    stopping.after_round(round_ + 1, 0.1, True, np.zeros(2))
    assert stopping.reason == "gradient_norm"


def test_another_rank_decides() -> None:
    exchange = TellingExchange()
    stopping = conditions(exchange, time_limit_s=1e9)
    assert not stopping.out_of_time()
    exchange.stopped = True
    assert stopping.out_of_time()
    assert stopping.reason is None  # it was not this one


def test_the_clock_stops_at_the_limit_also_where_no_round_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 1000.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(stopping_module, "time", clock)
    exchange = TellingExchange()
    stopping = conditions(exchange, time_limit_s=2.5)
    for now, over in ((1000.0, False), (1002.4, False), (1002.5, True), (1000.0, True)):
        clock.now = now
        assert stopping.out_of_time() == over
    assert stopping.reason == "time_limit_s"


class Probe(float):
    """A threshold that keeps what it is compared with: a float's subclass is asked first."""

    def __new__(cls, value: float) -> Probe:
        probe = super().__new__(cls, value)
        probe.seen = []
        return probe

    seen: list[float]

    def __ge__(self, other: float) -> bool:
        self.seen.append(float(other))
        return super().__ge__(other)


def descend_along(stopping: Stopping, gradients: list[np.ndarray | None], step: float = 0.1) -> list[np.ndarray]:
    """Take steps with the given gradients, a round each; None is a round without one."""
    params = np.zeros(2)
    path = [params]
    for round_, gradient in enumerate(gradients, 1):
        if gradient is not None:
            params = params - step * gradient
        path.append(params)
        stopping.after_round(round_, step, gradient is not None, params)
    return path


def test_a_constant_gradient_is_measured_exactly() -> None:
    probe = Probe(1e-9)
    stopping = conditions(TellingExchange(), gradient_norm=probe, every=5)
    descend_along(stopping, [np.array([3.0, 4.0])] * 40)
    np.testing.assert_allclose(probe.seen, [5.0] * 8, rtol=1e-12)
    assert stopping.reason is None


@pytest.mark.parametrize(("threshold", "stops"), [(0.999, False), (1.001, True)])
def test_the_norm_is_compared_with_the_threshold(threshold: float, stops: bool) -> None:
    stopping = conditions(TellingExchange(), gradient_norm=threshold, every=5)
    descend_along(stopping, [np.array([0.6, 0.8])] * 60)
    assert (stopping.reason == "gradient_norm") == stops


def test_the_step_of_rounds_that_were_jumped_over_counts() -> None:
    # The neighbours went through those rounds, and this rank's parameters follow theirs.
    probe = Probe(1e-9)
    stopping = conditions(TellingExchange(), gradient_norm=probe, every=6)
    gradient, step, params = np.array([2.0, 0.0]), 0.1, np.zeros(2)
    round_ = 0
    for following in (1, 4, 5, 5, 9, 10, 16, 17, 20):
        params = params - (following - round_) * step * gradient
        round_ = following
        stopping.after_round(round_, step, True, params)
    np.testing.assert_allclose(probe.seen, [2.0] * len(probe.seen), rtol=1e-12)
    assert len(probe.seen) == 2  # in the rounds 9 and 16


def test_one_without_gradients_does_not_decide_that_they_are_small() -> None:
    stopping = conditions(TellingExchange(), gradient_norm=1.0, every=5)
    descend_along(stopping, [None] * 100)
    assert stopping.reason is None
    descend_along(stopping, [np.full(2, 0.1), *[None] * 60])
    assert stopping.reason is None  # one window with a gradient is not two in a row


def test_standing_still_between_neighbours_that_do_is_no_standstill() -> None:
    exchange = TellingExchange()
    stopping = conditions(exchange, gradient_norm=1.0, every=5)
    exchange.rounds = 4
    for round_ in range(1, 60):  # nothing moves
        stopping.after_round(round_, 0.1, True, np.zeros(2))
    assert stopping.reason is None
    # Two windows of the slowest neighbour's rounds, the second one round longer.
    for rounds in range(5, 12):
        assert stopping.reason is None
        exchange.rounds = rounds
        stopping.after_round(60 + rounds, 0.1, True, np.zeros(2))
    assert stopping.reason == "gradient_norm"


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 10])
def test_jumping_to_and_fro_is_no_standstill(every: int) -> None:
    # Back where it was after an even number of rounds: too large a step, and gradients of norm 10. What is left
    # of them over an odd number of rounds is one step.
    stopping = conditions(TellingExchange(), gradient_norm=9.9 / (every + 1), every=every)
    descend_along(stopping, [np.array([10.0, 0.0]), np.array([-10.0, 0.0])] * 100)
    assert stopping.reason is None


# Runs on MPI.


def experiment(size: int, **tables: Any) -> dict[str, Any]:
    """Return an experiment on shards that are all alike, synchronous unless told otherwise."""
    raw: dict[str, Any] = {
        "seed": 3,
        "rounds": 2000,
        "data": {"source": "breast_cancer", "partition": "iid", "shards": 8, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "ring"},
        "placement": {"replication": min(2, size)},
        "deadline": {"compute_s": INF, "gossip_s": INF},
        "stragglers": {"kind": "bernoulli", "p": 0.1},
        "record": {"every": 50},
    }
    for name, value in tables.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return raw


def graph(kind: str, size: int) -> dict[str, Any]:
    """Return the topology's table; a line is given by its edges."""
    if kind == "line":
        return {"kind": "edges", "edges": [[i, i + 1] for i in range(size - 1)]}
    return {"kind": kind}


def diameter(raw: dict[str, Any], size: int) -> int:
    """Return how many rounds the word to stop takes; none where all hear it in the same reduction."""
    if raw.get("method", {}).get("kind") == "allreduce" or size == 1:
        return 0
    return int(nx.diameter(nx.Graph(list(lay_out(parse_config(raw), size).topology.edges))))


def run(session: Session, raw: dict[str, Any]) -> Outcome | None:
    outcome = train(parse_config(raw), session)
    if outcome is not None:
        assert np.isfinite(outcome.stacked_params).all()
        assert outcome.wall_s is not None
        assert outcome.wall_s < GUARD_S
        if outcome.stopped_by != "rounds":
            assert all(row["rounds"] < raw["rounds"] for row in outcome.ranks)
            assert outcome.history[-1]["round"] < raw["rounds"]
    return outcome


KINDS = ["ring", "line", "star", "exponential", "allreduce"]


def tables_of(kind: str, size: int) -> dict[str, Any] | None:
    """Return the tables that say who exchanges with whom; None where so many ranks form no such graph."""
    if kind == "allreduce":
        return {"method": {"kind": "allreduce"}}
    table = graph(kind, size)
    try:
        topology.build(table["kind"], size, **{key: value for key, value in table.items() if key != "kind"})
    except InputError:
        return None
    return {"topology": table}


CONDITIONS = {
    "target_loss": {"target_loss": TARGET},
    "gradient_norm": {"gradient_norm": 0.05},
    "time_limit_s": {"time_limit_s": 0.2},
}


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", CONDITIONS)
def test_all_ranks_stop_and_the_outcome_says_by_what(session: Session, reason: str, kind: str) -> None:
    tables = tables_of(kind, session.size)
    if tables is None:
        return
    rounds = 10**6 if reason == "time_limit_s" else 2000
    raw = experiment(session.size, rounds=rounds, stop=CONDITIONS[reason], record={"events": False}, **tables)
    outcome = run(session, raw)
    if outcome is None:
        return
    assert outcome.stopped_by == reason
    rounds_of = [row["rounds"] for row in outcome.ranks]
    # Without a vector of a round nobody gets past it, and whoever stops has a goodbye for that vector.
    assert max(rounds_of) - min(rounds_of) <= diameter(raw, session.size)
    assert outcome.history[-1]["round"] == max(rounds_of)
    if reason == "target_loss":
        # The loss falls by less than a tenth in the rounds that an estimate is old.
        assert 0.9 * TARGET <= outcome.history[-1]["loss"] <= 1.1 * TARGET
    if reason == "time_limit_s":
        assert outcome.wall_s is not None
        assert outcome.wall_s >= 0.2


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_reached_never_stops_a_run(session: Session, kind: str) -> None:
    tables = tables_of(kind, session.size)
    if tables is None:
        return
    stop = {"target_loss": 0.1, "gradient_norm": 1e-9, "time_limit_s": 10 * GUARD_S, "every": 3}
    outcome = run(session, experiment(session.size, rounds=120, stop=stop, **tables))
    if outcome is not None:
        assert outcome.stopped_by == "rounds"
        assert [row["rounds"] for row in outcome.ranks] == [120] * session.size
        assert outcome.history[-1]["round"] == 120
        assert outcome.history[-1]["loss"] > 0.1


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["partial", "memory"])
def test_other_policies_stop_as_well(session: Session, late: str) -> None:
    stop = {"target_loss": TARGET, "every": 4}
    outcome = run(session, experiment(session.size, stop=stop, method={"late": late}))
    if outcome is not None:
        assert outcome.stopped_by == "target_loss"
        assert 0.9 * TARGET <= outcome.history[-1]["loss"] <= 1.1 * TARGET


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("kind", "culprit", "reason"),
    [
        ("ring", "last", "target_loss"),
        ("star", "first", "target_loss"),  # all word goes through it
        ("star", "last", "gradient_norm"),
        ("line", "first", "gradient_norm"),
        ("exponential", "first", "target_loss"),
    ],
)
def test_a_rank_in_a_very_long_gradient_stops_with_the_others(
    session: Session, kind: str, culprit: str, reason: str
) -> None:
    # Its first gradient would last longer than the guard; what it tells the others it tells meanwhile.
    slow = 0 if culprit == "first" else session.size - 1
    tables = tables_of(kind, session.size)
    if tables is None:
        return
    stragglers = {"kind": "slow", "ranks": [slow], "factor": 1e3 * GUARD_S, "work_s": 2e-3, "p": 0.0}
    raw = experiment(
        session.size,
        stop=CONDITIONS[reason],
        stragglers=stragglers,
        deadline={"compute_s": INF, "gossip_s": 5e-3},
        **tables,
    )
    outcome = run(session, raw)
    if outcome is not None:
        assert outcome.stopped_by == reason
        late = outcome.ranks[slow]
        assert (late["gradients"], late["late_gradients"]) == (0, 1)
        assert late["rounds"] > 0
        if reason == "target_loss":
            assert outcome.history[-1]["loss"] <= 1.1 * TARGET


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("method", ["goco", "allreduce"])
@pytest.mark.parametrize("reason", CONDITIONS)
def test_a_run_with_a_slow_rank_stops(session: Session, reason: str, method: str) -> None:
    stragglers = {"kind": "slow", "ranks": [session.size - 1], "factor": 5.0, "work_s": 1e-3, "p": 0.0}
    raw = experiment(
        session.size,
        rounds=10**6 if reason == "time_limit_s" else 2000,
        stop=CONDITIONS[reason],
        stragglers=stragglers,
        method={"kind": method},
        deadline={"compute_s": "auto", "gossip_s": "auto"},
        record={"events": False},
    )
    outcome = run(session, raw)
    if outcome is not None:
        assert outcome.stopped_by == reason
        if method == "allreduce":
            assert len({row["rounds"] for row in outcome.ranks}) == 1
        if reason == "target_loss":
            assert outcome.history[-1]["loss"] <= 1.1 * TARGET


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("method", ["goco", "allreduce"])
def test_the_clock_ends_a_gradient_that_lasts_for_ever(session: Session, method: str) -> None:
    raw = experiment(
        session.size,
        stop={"time_limit_s": 0.1},
        stragglers={"kind": "delays", "work_s": GUARD_S * 10, "p": 0.0},
        method={"kind": method},
    )
    outcome = run(session, raw)
    if outcome is not None:
        assert outcome.stopped_by == "time_limit_s"
        for row in outcome.ranks:
            assert (row["rounds"], row["gradients"], row["late_gradients"]) == (0, 0, 1)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(("asked_in", "stopped_by"), [(7, "signal"), (20, "rounds")])
def test_a_run_that_has_done_all_its_rounds_was_not_stopped(session: Session, asked_in: int, stopped_by: str) -> None:
    signals = StopSignals()

    def callback(round_: int, params: np.ndarray) -> None:
        signals.received |= round_ == asked_in

    raw = experiment(session.size, rounds=20)
    outcome = train(parse_config(raw), session, callback=callback, requests=Requests(signals=signals))
    if outcome is not None:
        assert outcome.stopped_by == stopped_by
        assert [row["rounds"] for row in outcome.ranks] == [asked_in] * session.size


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("method", ["goco", "allreduce"])
def test_one_rank_alone_can_stop_all(session: Session, method: str) -> None:
    last = session.size - 1

    def callback(round_: int, params: np.ndarray) -> None:
        if session.rank == last and round_ == 7:
            raise StopIteration

    raw = experiment(session.size, method={"kind": method})
    outcome = train(parse_config(raw), session, callback=callback)
    if outcome is not None:
        assert outcome.stopped_by == "callback"
        rounds_of = [row["rounds"] for row in outcome.ranks]
        if method == "allreduce":
            assert rounds_of == [7] * session.size  # nobody uses the reduction that tells it
        else:
            ring = range(session.size)
            assert rounds_of == [7 + min((last - i) % session.size, (i - last) % session.size) for i in ring]


@pytest.mark.mpi(min_size=1)
def test_an_allreduce_tells_the_sum_of_a_round_only_if_all_ranks_told_for_it(session: Session) -> None:
    exchange = AllreduceExchange(session.comm, 3, poll_s=5e-5)
    last = session.size - 1
    for round_, tellers in enumerate(([], range(last + 1), [], [], range(last + 1), range(last))):
        assert not exchange.stopped
        exchange.blank()[:] = 1.0
        if session.rank in tellers:
            exchange.tell(round_, 2.0 ** -(session.rank + round_))
        exchange.offer(round_, round_)
        exchange.wait(round_)
        own, (mean,) = exchange.inbox(round_)
        assert (own == 1.0).all()
        assert mean.value is not None
        assert (mean.value == 1.0).all()  # what is told beside the vector does not touch it
        if len(tellers) == session.size:
            assert exchange.told() == sum(2.0 ** -(rank + round_) for rank in tellers)
        else:
            assert math.isnan(exchange.told())


@pytest.mark.mpi(min_size=2)
def test_who_leaves_an_allreduce_takes_the_others_with_it_and_nobody_uses_that_sum(session: Session) -> None:
    exchange = AllreduceExchange(session.comm, 3, poll_s=5e-5)
    if session.rank == 0:
        exchange.leave()
    else:
        exchange.offer(0, 0)
        exchange.wait(0)
    assert exchange.abandoned and exchange.stopped
    exchange.leave()  # they have left already: another reduction would hang


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("kind", ["ring", "exponential", "allreduce"])
def test_the_estimated_gradient_norm_is_that_at_the_mean_on_shards_that_are_alike(session: Session, kind: str) -> None:
    tables = tables_of(kind, session.size)
    if tables is None:
        return
    every, first, n_rounds = 40, 80, 400
    probe = Probe(1e-300)
    raw = experiment(session.size, rounds=n_rounds, stop={"gradient_norm": 1.0, "every": every}, **tables)
    config = parse_config(raw)
    config = replace(config, stop=replace(config.stop, gradient_norm=probe))
    path: list[np.ndarray] = [np.zeros(0)]
    train(config, session, callback=lambda round_, params: path.append(params.copy()))
    assert len(path) == n_rounds + 1  # synchronous: every rank went through every round
    assert len(probe.seen) == n_rounds // every
    paths = session.comm.gather(np.array(path[1:]))
    estimates = session.comm.gather(probe.seen)
    if paths is None or estimates is None:
        return
    problem = load_problem(config)
    mean, rows = np.mean(paths, axis=0), problem.pooled_rows()
    for window, start in enumerate(range(0, n_rounds, every)):
        if start < first:
            continue  # the gradient falls to a tenth within the first window
        # Over the window the gradient changes by some percent: that of its middle stands for it.
        true = float(np.linalg.norm(problem.objective.gradient(mean[start + every // 2 - 1], rows)))
        for mine in estimates:
            assert mine[window] == pytest.approx(true, rel=0.2)
