"""A master on MPI: a run ends in the simulator's parameters, or in its replay's, and nobody waits for a slow rank."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_runs
from whole_runs import INF, LEAST_SQUARES, LOGISTIC, assert_ends_as_simulated

from goco_mpi.api import minimize
from goco_mpi.api import train as api_train
from goco_mpi.config import parse_config
from goco_mpi.core.events import NONE
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.outcome import Outcome
from goco_mpi.schema import RunConfig
from goco_mpi.simulation.rounds import simulate_experiment

CASES = [
    ("gradient_coding", "descent", "cyclic", LOGISTIC),
    ("gradient_coding", "nesterov", "fractional_repetition", LOGISTIC),
    ("gradient_coding", "cg", "cyclic", LEAST_SQUARES),
    ("gradient_coding", "lbfgs", "cyclic", LOGISTIC),
    ("sgc", "descent", "pairwise_balanced", LEAST_SQUARES),
    ("sgc", "nesterov", "cyclic", LOGISTIC),
]
EVERY_CASE = pytest.mark.parametrize(
    ("kind", "solver", "placement", "problem"), CASES, ids=[" ".join(case[:3]) for case in CASES]
)
SLOW = {"kind": "slow", "factor": 10.0, "work_s": 2e-3}


def experiment(
    session: Session, kind: str, solver: str, placement: str, problem: dict[str, Any], **tables: Any
) -> RunConfig:
    replication = min(2, session.size)
    if placement == "fractional_repetition" and session.size % 2:
        replication = session.size  # what divides it
    raw = {
        "seed": 3,
        "rounds": 25,
        "placement": {"kind": placement, "replication": replication},
        "method": {"kind": kind, "solver": solver},
        "record": {"every": 5, "optimum": True},
        **problem,
    }
    for name, value in tables.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(raw)


def assert_replays(session: Session, config: RunConfig, outcome: Outcome | None, directory: Path) -> None:
    whole_runs.assert_replays(session, config, outcome, directory)
    if outcome is not None:  # whatever ended the run, all are where the master is
        master = np.tile(outcome.stacked_params[0], (session.size, 1))
        np.testing.assert_array_equal(outcome.stacked_params, master)


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize(
    "stragglers",
    [{"kind": "bernoulli", "p": 0.3}, {"kind": "persistent", "ranks": [0], "factor": 4.0, "p": 0.2}],
    ids=["bernoulli", "persistent"],
)
@EVERY_CASE
def test_a_scripted_run_ends_in_the_simulators_parameters(
    session: Session, kind: str, solver: str, placement: str, problem: dict[str, Any], stragglers: dict[str, Any]
) -> None:
    if session.size == 1 and stragglers["kind"] == "persistent":
        stragglers = {**stragglers, "ranks": []}
    # Few rounds: what agrees at the optimum alone would agree on any way there.
    for rounds in (4, 25):
        config = experiment(
            session, kind, solver, placement, problem, rounds=rounds, stragglers=stragglers, deadline={"compute_s": INF}
        )
        outcome = train(config, session)
        if outcome is None:
            continue
        # In sgc the master waits for every answer, so that all ranks are in the same round.
        assert_ends_as_simulated(outcome, simulate_experiment(config, session.size), history=kind == "sgc")


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize(
    "stragglers",
    [SLOW, {"kind": "delays", "delay_p": 0.2, "delay_s": 4e-3, "work_s": 5e-4}],
    ids=["slow", "delays"],
)
@EVERY_CASE
def test_a_run_with_real_stragglers_ends_in_its_replay(
    session: Session,
    kind: str,
    solver: str,
    placement: str,
    problem: dict[str, Any],
    stragglers: dict[str, Any],
    tmp_path: Path,
) -> None:
    if stragglers is SLOW:
        stragglers = {**stragglers, "ranks": [session.size - 1] if session.size > 1 else []}
    config = experiment(session, kind, solver, placement, problem, rounds=60, stragglers=stragglers)
    assert_replays(session, config, train(config, session), tmp_path)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("kind", ["gradient_coding", "sgc"])
def test_a_slow_rank_finishes_few_gradients_and_holds_nobody_up(
    session: Session, kind: str, slow: int, tmp_path: Path
) -> None:
    n_rounds = 100
    config = experiment(
        session,
        kind,
        "descent",
        "cyclic",
        LEAST_SQUARES,
        rounds=n_rounds,
        stragglers={**SLOW, "ranks": [slow], "factor": 20.0},
    )
    outcome = train(config, session)
    assert_replays(session, config, outcome, tmp_path)
    if outcome is None:
        return
    assert outcome.events is not None
    master, ranks = outcome.events[0], outcome.ranks
    assert len(master) == n_rounds + 1  # a step a round, and the goodbye
    # Had a round waited for it, it would have finished a gradient. In sgc the first does, to learn what is usual.
    assert ranks[slow]["gradients"] <= n_rounds // 5
    # Nor does it go on with what is of no more use: a gradient lasts twenty rounds.
    assert ranks[slow]["late_gradients"] >= n_rounds // 10
    used = master[:-1, 1] != NONE if slow == 0 else counted(outcome, slow)
    assert used.sum() <= n_rounds // 5
    gap = outcome.history[-1]["loss"] - outcome.loss_optimum
    # On a busy machine others miss a deadline now and then, too, and that is sgc's noise.
    assert gap < (1e-6 if kind == "gradient_coding" else 0.1) * (outcome.history[0]["loss"] - outcome.loss_optimum)


def counted(outcome: Outcome, worker: int) -> np.ndarray:
    """Return in which of the master's steps the worker's gradient was of the master's round, and finished."""
    assert outcome.events is not None
    master, theirs = outcome.events[0][:-1], outcome.events[worker]
    steps = master[:, 1 + worker]
    heard = steps != NONE
    return heard & (theirs[steps, 0] == master[:, 0]) & (theirs[steps, 1] != NONE)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("stop", [{"target_loss": 0.3}, {"time_limit_s": 0.2}], ids=lambda stop: next(iter(stop)))
@pytest.mark.parametrize("kind", ["gradient_coding", "sgc"])
def test_a_run_that_is_stopped_ends_with_the_masters_parameters_everywhere(
    session: Session, kind: str, stop: dict[str, float], tmp_path: Path
) -> None:
    config = experiment(
        session,
        kind,
        "descent",
        "cyclic",
        LOGISTIC,
        rounds=10**6,
        stop={"every": 4, **stop},
        stragglers={**SLOW, "ranks": [1], "work_s": 1e-3},
    )
    outcome = train(config, session)
    assert_replays(session, config, outcome, tmp_path)
    if outcome is not None:
        assert outcome.stopped_by == next(iter(stop))


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("asks", [0, -1], ids=["the master", "a worker"])
@pytest.mark.parametrize("kind", ["gradient_coding", "sgc"])
def test_whoever_asks_for_it_the_run_ends(session: Session, kind: str, asks: int, tmp_path: Path) -> None:
    config = experiment(session, kind, "nesterov", "cyclic", LOGISTIC, rounds=10**6)

    def callback(round_: int, params: np.ndarray) -> None:
        if session.rank == asks % session.size and round_ >= 10:
            raise StopIteration

    outcome = train(config, session, callback=callback)
    assert_replays(session, config, outcome, tmp_path)
    if outcome is not None:
        assert outcome.stopped_by == "callback"
        assert outcome.ranks[0]["rounds"] >= 10


@pytest.mark.mpi(min_size=2)
def test_a_frozen_worker_costs_exact_gradients_nothing(session: Session, tmp_path: Path) -> None:
    config = experiment(
        session, "gradient_coding", "descent", "cyclic", LOGISTIC, rounds=300, stragglers={"work_s": 5e-4}
    )
    pids = session.comm.allgather(os.getpid())

    def progress(round_: int) -> None:
        if session.rank == 0 and round_ == 20:
            os.kill(pids[-1], signal.SIGSTOP)
        elif session.rank == 0 and round_ == 200:
            os.kill(pids[-1], signal.SIGCONT)

    try:
        outcome = train(config, session, progress)
    finally:
        if session.rank == 0:
            os.kill(pids[-1], signal.SIGCONT)
    assert_replays(session, config, outcome, tmp_path)
    if outcome is not None:
        # What was under way when it was frozen may still have come.
        assert counted(outcome, session.size - 1)[25:195].sum() <= 5
        assert outcome.ranks[0]["missed"] >= 170


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("kind", ["gradient_coding", "sgc"])
def test_a_run_that_diverges_ends_on_all_ranks(session: Session, kind: str) -> None:
    from goco_mpi.errors import RunError

    config = experiment(session, kind, "descent", "cyclic", LEAST_SQUARES, step={"kind": "constant", "size": 1e6})
    with pytest.raises(RunError, match="diverged"):
        train(config, session)


@pytest.mark.mpi(min_size=1)
def test_a_progress_thread_and_a_wait_for_all_go_with_it(session: Session, tmp_path: Path) -> None:
    config = experiment(
        session,
        "gradient_coding",
        "descent",
        "cyclic",
        LOGISTIC,
        method={"late": "wait"},
        deadline={"progress_thread": True},
    )
    outcome = train(config, session)
    assert_replays(session, config, outcome, tmp_path)
    if outcome is not None:
        assert [row["gradients"] for row in outcome.ranks] == [25] * session.size


class Distance:
    """A user's own loss: half the squared distance to a shard."""

    def loss(self, x: np.ndarray, shard: np.ndarray) -> float:
        return 0.5 * float(np.sum((x - shard) ** 2))

    def gradient(self, x: np.ndarray, shard: np.ndarray, out: np.ndarray) -> None:
        np.subtract(x, shard, out=out)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("kind", ["gradient_coding", "sgc"])
def test_an_objective_of_ones_own_is_minimised(kind: str) -> None:
    shards = list(np.random.default_rng(1).standard_normal((9, 3)))
    result = minimize(
        Distance(), np.zeros(3), shards=shards, placement="cyclic", method={"kind": kind, "late": "wait"}, rounds=30
    )
    np.testing.assert_allclose(result.x, np.mean(shards, axis=0), rtol=0, atol=1e-9)
    assert result.success
    assert api_train is not minimize
