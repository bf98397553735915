"""Runs whose ranks leave as if they had died, by script: the others end in the simulator's parameters.

Real deaths are in tests/cluster. Here a rank that is to die leaves its round loop, and the others are told of it in the
rounds that the script says, on any MPI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from scripted_deaths import run, script, stacked_step

from goco_mpi.config import parse_config
from goco_mpi.core.stacked.deaths import Deaths
from goco_mpi.engine import regrouping, setting_up, train
from goco_mpi.engine.recovery import Recovery
from goco_mpi.engine.session import Session
from goco_mpi.engine.surviving_exchange import SurvivingExchange
from goco_mpi.experiment import Layout, lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.problem import load_problem

INF = math.inf


class LeftError(Exception):
    """A rank has left, as if it had died."""


class ScriptedFailures:
    """Tells of the deaths that a script lets this rank hear of."""

    def __init__(self, deaths: Deaths, rank: int) -> None:
        self.noticed, self.round, self.dead = deaths.noticed[rank], -1, set()

    def look(self) -> list[int]:
        news = sorted({int(k) for k in np.flatnonzero(self.noticed <= self.round)} - self.dead)
        self.dead.update(news)
        return news


def scripted_exchange(deaths: Deaths) -> type[SurvivingExchange]:
    """Return an exchange in which ranks leave and hear of that as the script says."""

    class ScriptedExchange(SurvivingExchange):
        def __init__(self, comm: MPI.Intracomm, *given: Any, **named: Any) -> None:
            super().__init__(comm, *given, **named)
            self._failures = ScriptedFailures(deaths, comm.Get_rank())

        def begin(self, round_: int, step: int, params: np.ndarray) -> None:
            if round_ == deaths.dies.get(self._rank):
                raise LeftError
            self._failures.round = round_
            super().begin(round_, step, params)

    return ScriptedExchange


def train_with_deaths(raw: dict, deaths: Deaths, monkeypatch: pytest.MonkeyPatch) -> Outcome | None:
    """Train on all ranks, of which some leave; return the outcome on the first that does not. Collective."""
    living = [rank for rank in range(MPI.COMM_WORLD.size) if rank not in deaths.dies]

    def regroup(session: Session, time_limit_s: float) -> None:
        session.comm = session.comm.Create_group(session.comm.Get_group().Incl(living))

    def together(session: Session, action: Callable[[], Any], time_limit_s: float) -> Any:
        return action()

    monkeypatch.setattr(setting_up, "SurvivingExchange", scripted_exchange(deaths))
    monkeypatch.setattr(train, "regroup", regroup)
    monkeypatch.setattr(train, "together", together)
    session = Session()
    session.survives, everybody, outcome = True, session.comm, None
    try:
        outcome = train.train(parse_config(raw), session)
        session.comm.Free()
    except LeftError:
        assert session.rank in deaths.dies
    session.comm = everybody
    session.barrier()
    session.close()
    return outcome


def experiment(**tables: Any) -> dict:
    raw = {
        "seed": 3,
        "rounds": 25,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 12, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "exponential"},
        "placement": {"replication": 3},
        "method": {"late": "wait", "weights": "plain"},
        "step": {"kind": "constant", "size": 0.05},
        "record": {"every": 5},
    }
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table}
    return raw


def heard_one_by_one(layout: Layout, dies: dict[int, int]) -> Deaths:
    """Return deaths of which those hear later who are no neighbours, and wait for nothing."""
    deaths = script(layout.n_workers, dies)
    for k, round_ in dies.items():
        for i in set(range(layout.n_workers)) - {k, *layout.topology.neighbors(k)}:
            deaths.noticed[i, k] = round_ + 1 + (i + k) % 3
    return deaths


METHODS = [
    {"kind": "push_pull"},
    {"kind": "exact_diffusion"},
    {"kind": "goco"},
    {"kind": "goco", "mixing": "running"},
]


@pytest.mark.mpi(min_size=4)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.get("mixing", method["kind"]))
def test_with_deaths_a_run_ends_in_the_simulators_parameters(
    method: dict, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    size = MPI.COMM_WORLD.size
    raw = experiment(method=method)
    layout = lay_out(parse_config(raw), size)
    dies = {0: 6, 2: 11} if size >= 6 else {0: 6}
    deaths = heard_one_by_one(layout, dies)
    outcome = train_with_deaths(raw, deaths, monkeypatch)
    if outcome is None:
        return
    problem = load_problem(layout.config)
    shares = [problem.share(layout, worker) for worker in range(size)]
    living = [rank for rank in range(size) if rank not in dies]
    expected = run(stacked_step(layout, problem.objective.n_params, deaths), shares, 0.05, 25)[living]
    np.testing.assert_allclose(outcome.stacked_params, expected, rtol=1e-12, atol=1e-14)
    assert np.abs(expected).max() > 1e-3
    loss = problem.objective.loss(expected.mean(axis=0), problem.pooled_rows())
    assert outcome.history[-1]["loss"] == pytest.approx(loss, rel=1e-10)
    assert [death.rank for death in outcome.deaths] == sorted(dies)
    for death in outcome.deaths:
        assert death.noticed == {i: int(deaths.noticed[i, death.rank]) for i in living}
    assert (outcome.stopped_by, outcome.lost, outcome.events) == ("rounds", None, None)
    said = capfd.readouterr().err
    assert f"going on with {size - len(dies)} of {size} ranks" in said


@pytest.mark.mpi(min_size=4)
@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_the_last_copy_of_a_shard_stops_the_run_or_is_gone_on_without(
    choice: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    size = MPI.COMM_WORLD.size
    raw = experiment(method={"kind": "push_pull"}, placement={"replication": 1}, stop={"on_lost_shard": choice})
    layout = lay_out(parse_config(raw), size)
    outcome = train_with_deaths(raw, script(size, {1: 6}), monkeypatch)
    if outcome is None:
        return
    sizes = [len(rows) for rows in load_problem(layout.config).shards]
    lost = layout.placement.shards_of(1)
    rows = sum(sizes[k] for k in lost)
    assert outcome.lost is not None
    assert outcome.lost.endswith(f"({rows} of {sum(sizes)} rows)")
    assert [int(word) for word in outcome.lost.replace(",", "").split("(")[0].split() if word.isdigit()] == lost
    assert outcome.stopped_by == ("lost_shard" if choice == "stop" else "rounds")
    assert (outcome.history[-1]["round"] < 25) == (choice == "stop")
    assert f"{outcome.lost} lost" in capfd.readouterr().err


@pytest.mark.mpi(min_size=4)
def test_who_can_no_longer_reach_each_other_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    size = MPI.COMM_WORLD.size
    raw = experiment(method={"kind": "push_pull"}, topology={"kind": "star"})
    outcome = train_with_deaths(raw, script(size, {0: 6}), monkeypatch)
    if outcome is not None:
        assert (outcome.stopped_by, outcome.lost) == ("disconnected", None)


@pytest.mark.mpi(min_size=4)
def test_a_target_is_judged_by_losses_told_since_the_last_death(monkeypatch: pytest.MonkeyPatch) -> None:
    size = MPI.COMM_WORLD.size
    raw = experiment(method={"kind": "push_pull"}, stop={"target_loss": 0.25, "every": 2})
    raw["rounds"] = 400
    outcome = train_with_deaths(raw, heard_one_by_one(lay_out(parse_config(raw), size), {1: 6}), monkeypatch)
    if outcome is not None:
        assert outcome.stopped_by == "target_loss"
        assert 0.2 < outcome.history[-1]["loss"] < 0.26


@pytest.mark.mpi(min_size=1)
def test_where_a_death_ends_the_job_nothing_is_done_twice() -> None:
    with Session() as session:
        assert not session.survives
        seen: list[int] = []
        assert regrouping.together(session, lambda: seen.append(1) or "done", 1.0) == "done"
        assert seen == [1]


@pytest.mark.mpi(min_size=1)
def test_automatic_steps_shorten_with_growing_weights_and_given_ones_stay() -> None:
    class Stopping:
        def forget(self) -> None:
            pass

        def stop(self, reason: str) -> None:
            raise AssertionError(reason)

    for step in ({"kind": "auto"}, {"kind": "constant", "size": 0.1}):
        raw = experiment()
        raw["step"] = step
        layout = lay_out(parse_config(raw), 6)
        share = load_problem(layout.config).share(layout, 0)
        recovery = Recovery(layout, 0, share)
        recovery.lose([2], 7, Stopping())
        assert recovery.dead == {2: 7}
        assert recovery.encoding is not None
        assert recovery.encoding.weights.sum() > share.weights.sum() * 5 / 6
        assert (recovery.step_scale < 1.0) == (step["kind"] == "auto")
