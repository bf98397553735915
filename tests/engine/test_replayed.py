"""Real asynchronous runs, computed once more from their events: they did what the equations say."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core.events import NONE, Events
from goco_mpi.core.methods import Place
from goco_mpi.core.methods.push_pull import PushPull, PushPullState
from goco_mpi.core.replay import replay_gossip
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.errors import RunError
from goco_mpi.experiment import lay_out, step_schedule
from goco_mpi.outcome import Outcome
from goco_mpi.problem import load_problem
from goco_mpi.record import read_run, write_run
from goco_mpi.replay import MOST, TOLERANCE, replay
from goco_mpi.schema import RunConfig

INF = math.inf


def experiment(size: int, **tables: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "seed": 7,
        "rounds": 60,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 8, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "ring"},
        "placement": {"replication": min(2, size)},
        "stragglers": {"work_s": 5e-4},
        # A round's number counts, too: the step depends on it.
        "step": {"kind": "auto", "tau": 100.0},
        "record": {"every": 20},
    }
    for name, value in tables.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(raw)


@contextlib.contextmanager
def recorded(config: RunConfig, outcome: Outcome) -> Iterator[Path]:
    """Write a run directory for as long as it is looked at."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        write_run(out, config, {}, outcome, force=False)
        yield out


def differences(config: RunConfig, outcome: Outcome) -> np.ndarray:
    with recorded(config, outcome) as out:
        return replay(read_run(out)).differences


def run_and_replay(
    session: Session, config: RunConfig, progress: Callable[[int], None] = lambda round_: None
) -> Outcome | None:
    """Run, and check on rank 0 that the replay ends in every rank's parameters."""
    outcome = train(config, session, progress)
    if outcome is None:
        return None
    assert TOLERANCE == 1e-12
    found = differences(config, outcome)
    assert found.shape == (session.size,)
    assert (found <= TOLERANCE).all(), found
    # The comparison is worth something only if the rounds moved the parameters.
    if any(row["gradients"] + row["partial_gradients"] for row in outcome.ranks):
        assert np.abs(outcome.stacked_params).max() > 1e-3
    assert outcome.events is not None
    for row, table in zip(outcome.ranks, outcome.events, strict=True):
        assert len(table) == row["rounds"] + 1  # and the goodbye
        used = row["gradients"] + row["partial_gradients"] + row["repeated"]
        # The end of a run leaves a gradient unused.
        assert used - 1 <= (table[:, 1] != NONE).sum() <= used
    return outcome


SLOW = {"kind": "slow", "ranks": [0], "factor": 10.0, "work_s": 1e-3}
DELAYS = {"kind": "delays", "delay_p": 0.2, "delay_s": 4e-3, "work_s": 5e-4}


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
@pytest.mark.parametrize("mixing", ["stale", "fold"])
@pytest.mark.parametrize("stragglers", [SLOW, DELAYS], ids=["slow", "delays"])
def test_stragglers_under_every_policy_and_mixing_rule(
    session: Session, late: str, mixing: str, stragglers: dict[str, Any]
) -> None:
    method = {"late": late, "mixing": mixing}
    outcome = run_and_replay(session, experiment(session.size, method=method, stragglers=stragglers))
    if outcome is not None and stragglers is SLOW and session.size > 1:
        slow = outcome.ranks[0]
        assert slow["rounds"] > slow["gradients"]  # the run was not a synchronous one
        if late == "memory":
            assert slow["repeated"] > 0


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
@pytest.mark.parametrize(
    "deadline",
    [
        {"gossip_s": 0.0},
        {"compute_s": 0.0},
        {"compute_s": 0.0, "gossip_s": 0.0},
        {"compute_s": 3e-3, "gossip_s": 1e-3},
    ],
    ids=["gossip 0", "compute 0", "both 0", "short"],
)
def test_short_deadlines_under_every_policy(session: Session, late: str, deadline: dict[str, float]) -> None:
    stragglers = {**SLOW, "work_s": 4e-4}
    outcome = run_and_replay(
        session, experiment(session.size, method={"late": late}, deadline=deadline, stragglers=stragglers)
    )
    if outcome is not None and deadline.get("compute_s") == 0.0 and late == "memory":
        # It carries on with a gradient over its deadlines, so that there are some nevertheless.
        assert sum(row["gradients"] for row in outcome.ranks) > 0


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("stragglers", [SLOW, {**DELAYS, "link_p": 0.7}], ids=["slow", "delays and lost links"])
@pytest.mark.parametrize(
    "method",
    [
        {"rates": "ema"},
        {"rates": "counted", "late": "partial"},
        {"rates": "ema", "weights": "own", "mixing": "running"},
        {"rates": "live", "late": "memory"},
    ],
    ids=lambda method: " ".join(method.values()),
)
def test_weights_by_the_rates_that_ranks_tell(
    session: Session, method: dict[str, Any], stragglers: dict[str, Any]
) -> None:
    run_and_replay(session, experiment(session.size, method=method, stragglers=stragglers))


class Watched(PushPull):
    """Push-pull that keeps every worker's state where the test can see it."""

    def __init__(self) -> None:
        self.states: list[PushPullState] = []
        self.neighbors: list[tuple[int, ...]] = []
        self.worst = self.under_way = 0.0

    def start(self, params: np.ndarray, place: Place) -> PushPullState:
        self.states.append(super().start(params, place))
        self.neighbors.append(place.neighbors)
        return self.states[-1]

    def receive(self, state: PushPullState, *what: Any) -> None:
        super().receive(state, *what)
        tracked = sum(other.tracker for other in self.states)
        under_way = sum(other.inflow for other in self.states)
        for other, near in zip(self.states, self.neighbors, strict=True):
            under_way = under_way + sum(self.states[j].sigma - rho for j, rho in zip(near, other.rho, strict=True))
        memory = sum(other.memory for other in self.states)
        scale = max(np.abs(other.memory).max() for other in self.states)
        self.worst = max(self.worst, float(np.abs(tracked + under_way - memory).max() / scale))
        self.under_way = max(self.under_way, float(np.abs(under_way).max() / scale))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("stragglers", [SLOW, {**DELAYS, "link_p": 0.3}], ids=["slow", "delays and lost links"])
def test_what_push_pull_tracks_is_conserved_at_every_step_of_a_real_run(
    session: Session, stragglers: dict[str, Any]
) -> None:
    step = {"kind": "constant", "size": 0.02}
    config = experiment(session.size, method={"kind": "push_pull"}, stragglers=stragglers, step=step)
    outcome = train(config, session)
    if outcome is None:
        return
    layout, problem, watched = lay_out(config, session.size), load_problem(config), Watched()
    assert outcome.events is not None
    found = replay_gossip(
        watched,
        [layout.place(rank, problem.share(layout, rank)) for rank in range(session.size)],
        [layout.mixing(rank) for rank in range(session.size)],
        step_schedule(config, 1.0),
        [Events(table, len(layout.topology.neighbors(rank))) for rank, table in enumerate(outcome.events)],
        np.zeros(problem.objective.n_params),
    )
    # These are the run's own steps, and the sum held after every one of them.
    np.testing.assert_allclose(found, outcome.stacked_params, rtol=1e-12, atol=1e-14)
    assert watched.worst < 1e-12
    assert watched.under_way > 1e-3


@pytest.mark.mpi(min_size=1)
def test_several_gossip_rounds_to_a_gradient(session: Session) -> None:
    config = experiment(
        session.size, method={"gossip_rounds": 3}, deadline={"gossip_s": INF}, stragglers={**SLOW, "factor": 3.0}
    )
    run_and_replay(session, config)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("method", [{"late": "wait"}, {"kind": "dgd"}, {"kind": "allreduce"}], ids=str)
def test_other_methods(session: Session, method: dict[str, Any]) -> None:
    run_and_replay(session, experiment(session.size, method=method, stragglers={**SLOW, "factor": 3.0}))


LEAST_SQUARES = {"data": {"source": "diabetes", "partition": "in_order"}, "objective": {"kind": "least_squares"}}


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("problem", [{}, LEAST_SQUARES], ids=["logistic", "least squares"])
@pytest.mark.parametrize("solver", ["nesterov", "cg", "lbfgs"])
def test_what_is_made_of_an_allreduce(session: Session, solver: str, problem: dict[str, Any]) -> None:
    method = {"kind": "allreduce", "solver": solver}
    step = {"tau": None}  # these find the length of their steps themselves
    config = experiment(session.size, **problem, method=method, step=step, stragglers={**SLOW, "factor": 3.0})
    outcome = run_and_replay(session, config)
    if outcome is not None:
        for row in outcome.ranks:
            assert row["gradients"] == row["messages_sent"] == 60


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("solver", ["cg", "lbfgs"])
def test_a_run_in_which_rounding_grew_agrees_with_its_replay_within_that(session: Session, solver: str) -> None:
    config = experiment(
        session.size,
        rounds=120,
        data={"source": "digits", "standardize": False},
        objective={"kind": "softmax", "l2": 1e-3},
        method={"kind": "allreduce", "solver": solver},
        step={"tau": None},
    )
    outcome = train(config, session)
    if outcome is None:
        return
    with recorded(config, outcome) as out:
        found = replay(read_run(out))
    assert found.agrees
    assert found.tolerance < MOST
    altered = outcome.stacked_params.copy()
    altered[-1] += 2.0 * found.tolerance * np.abs(altered).max()
    with recorded(config, dataclasses.replace(outcome, stacked_params=altered)) as out:
        assert not replay(read_run(out)).agrees


@pytest.mark.mpi(min_size=1)
def test_a_preconditioned_allreduce_with_every_other_round_without_a_gradient(session: Session) -> None:
    method = {"kind": "allreduce", "solver": "cg", "preconditioner": "local"}
    config = experiment(session.size, **LEAST_SQUARES, rounds=9, method=method, step={"tau": None}, stragglers=SLOW)
    outcome = run_and_replay(session, config)
    if outcome is not None:
        assert outcome.events is not None
        for row, table in zip(outcome.ranks, outcome.events, strict=True):
            assert row["messages_sent"] == 9
            assert row["gradients"] == (table[:, 1] != NONE).sum() <= 6  # it may be done before the end
            # One rank alone is at the minimum after the first round, and finds out in the second.
            assert (table[:4, 1] == [0, 1, NONE, 3 if session.size > 1 else NONE]).all()


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("stragglers", [SLOW, {**DELAYS, "link_p": 0.3}], ids=["slow", "delays and lost links"])
@pytest.mark.parametrize("late", ["discard", "memory"])
@pytest.mark.parametrize(
    "method",
    [
        {"kind": "push_pull", "mixing": "fold"},
        {"kind": "push_pull", "mixing": "stale", "max_age": 2},
        {"kind": "goco", "mixing": "running"},
        {"kind": "dgd", "mixing": "running"},
    ],
    ids=lambda method: " ".join(map(str, method.values())),
)
def test_methods_that_lose_nothing(
    session: Session, method: dict[str, Any], late: str, stragglers: dict[str, Any]
) -> None:
    step = {"kind": "constant", "size": 0.02}
    run_and_replay(session, experiment(session.size, method={**method, "late": late}, stragglers=stragglers, step=step))


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("stragglers", [SLOW, {**DELAYS, "link_p": 0.3}], ids=["slow", "delays and lost links"])
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
@pytest.mark.parametrize(
    "method",
    [
        {"compression": "top_k", "compression_ratio": 0.3},
        {"compression": "random_k", "max_age": 2},
        {"compression": "quantize", "compression_bits": 4},
        {"compression": "quantize", "kind": "dgd", "consensus_step": 0.5},
    ],
    ids=lambda method: " ".join(map(str, method.values())),
)
def test_compressed_messages(session: Session, method: dict[str, Any], late: str, stragglers: dict[str, Any]) -> None:
    run_and_replay(session, experiment(session.size, method={**method, "late": late}, stragglers=stragglers))


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
@pytest.mark.parametrize("method", [{}, {"compression": "quantize"}, {"kind": "allreduce"}, {"momentum": 0.8}], ids=str)
def test_minibatches(session: Session, method: dict[str, Any], late: str) -> None:
    config = experiment(session.size, method={**method, "late": late}, stragglers=SLOW, data={"batch_size": 7})
    run_and_replay(session, config)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("method", [{"kind": "push_pull"}, {"mixing": "running"}], ids=["push_pull", "running"])
def test_methods_that_lose_nothing_on_any_deadline(session: Session, method: dict[str, Any]) -> None:
    for deadline in ({"compute_s": 0.0, "gossip_s": 0.0}, {"compute_s": 3e-3, "gossip_s": 1e-3}):
        run_and_replay(
            session,
            experiment(
                session.size,
                method={**method, "late": "memory"},
                deadline=deadline,
                stragglers={**SLOW, "work_s": 4e-4},
                step={"kind": "constant", "size": 0.01},
            ),
        )


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(
    "method", [{"kind": "exact_diffusion"}, {"kind": "push_pull", "mixing": "symmetric"}], ids=["exact", "push_pull"]
)
def test_methods_that_wait_for_messages_but_not_for_gradients(session: Session, method: dict[str, Any]) -> None:
    run_and_replay(
        session,
        experiment(
            session.size,
            method=method,
            deadline={"gossip_s": INF},
            stragglers={**SLOW, "link_p": 0.3},
            step={"kind": "constant", "size": 0.02},
        ),
    )


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("mixing", ["stale", "fold"])
@pytest.mark.parametrize("kind", ["star", "complete", "exponential"])
def test_lost_links_other_graphs_and_a_short_memory(session: Session, kind: str, mixing: str) -> None:
    if session.size == 1:
        kind = "ring"
    stragglers = {"kind": "slow", "ranks": [session.size - 1], "factor": 6.0, "work_s": 1e-3, "link_p": 0.3}
    run_and_replay(
        session,
        experiment(
            session.size,
            topology={"kind": kind},
            method={"mixing": mixing, "max_age": 1, "weights": "paper"},
            stragglers=stragglers,
        ),
    )


@pytest.mark.mpi(min_size=1)
def test_more_shards_than_fit_one_word(session: Session) -> None:
    config = experiment(
        session.size,
        data={"shards": 40 * session.size},
        placement={"kind": "uncoded"},
        method={"late": "partial"},
        deadline={"compute_s": 2e-3, "gossip_s": 1e-3},
        stragglers={"kind": "delays", "work_s": 4e-3},
    )
    outcome = run_and_replay(session, config)
    if outcome is not None:
        assert sum(row["partial_gradients"] for row in outcome.ranks) > 0


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
@pytest.mark.parametrize(
    "stop", [{"target_loss": 0.3}, {"gradient_norm": 0.3}, {"time_limit_s": 0.1}], ids=lambda stop: next(iter(stop))
)
def test_runs_that_were_stopped(session: Session, stop: dict[str, float], late: str) -> None:
    config = experiment(
        session.size, rounds=10**6, stop={"every": 4, **stop}, method={"late": late}, stragglers={**SLOW, "factor": 4.0}
    )
    outcome = run_and_replay(session, config)
    if outcome is not None:
        assert outcome.stopped_by == next(iter(stop))


@pytest.mark.mpi(min_size=1)
def test_runs_with_a_progress_thread(session: Session) -> None:
    run_and_replay(session, experiment(session.size, deadline={"progress_thread": True}, stragglers=SLOW))


BEFORE, FROZEN_FOR = 20, 100
"""Steps of rank 0 before the last rank is frozen, and until it may go on."""


def run_with_a_freeze(session: Session, config: RunConfig) -> tuple[Outcome | None, list[int]]:
    """Run and replay; rank 0 stops the last rank's process, and lets it go on a hundred rounds later.

    Also return in which round it did either.
    """
    victim, keeper = session.size - 1, 0
    pids = session.comm.allgather(os.getpid())
    calls = 0
    rounds: list[int] = []

    def progress(round_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == BEFORE:
            os.kill(pids[victim], signal.SIGSTOP)
            rounds.append(round_)
        elif calls == BEFORE + FROZEN_FOR:
            rounds.append(round_)
            os.kill(pids[victim], signal.SIGCONT)

    try:
        return run_and_replay(session, config, progress if session.rank == keeper else lambda round_: None), rounds
    finally:
        if session.rank == keeper:
            os.kill(pids[victim], signal.SIGCONT)  # whatever went wrong: nobody is left frozen


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
def test_a_rank_that_is_frozen_in_the_middle(session: Session, late: str) -> None:
    max_age = 5
    config = experiment(
        session.size, rounds=400, method={"late": late, "max_age": max_age}, deadline={"gossip_s": 1e-3}
    )
    outcome, _ = run_with_a_freeze(session, config)
    if outcome is None:
        return
    assert outcome.events is not None
    place = lay_out(config, session.size).topology.neighbors(0).index(session.size - 1)
    steps = outcome.events[0][BEFORE : BEFORE + FROZEN_FOR]
    newest = steps[:, 2 + place]
    assert len(newest) == FROZEN_FOR
    # Nothing came of the frozen rank but what was under way, and that became too old: the margin is for that.
    ages = steps[:, 0] - outcome.events[-1][newest, 0]
    assert ((newest == NONE) | (ages > max_age)).sum() >= FROZEN_FOR - max_age - 25
    assert outcome.ranks[0]["missed"] >= FROZEN_FOR - 25


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_wakes_up_does_not_go_through_the_rounds_it_has_missed(session: Session) -> None:
    # Short messages that came meanwhile wait in a queue of MPI's, the oldest first.
    config = experiment(session.size, rounds=400, deadline={"gossip_s": 1e-3})
    outcome, rounds = run_with_a_freeze(session, config)
    if outcome is None:
        return
    assert outcome.events is not None
    stopped, went_on = rounds
    assert went_on - stopped >= FROZEN_FOR
    own = outcome.events[-1][:, 0]
    # Nobody else was there any more. The first ten it may have gone through before it was frozen.
    assert ((own > stopped + 10) & (own < went_on - 1)).sum() <= FROZEN_FOR // 5


# Altered events are caught.


def small_run(session: Session) -> tuple[RunConfig, Outcome | None]:
    config = experiment(session.size, rounds=30, stragglers={**SLOW, "factor": 3.0})
    return config, run_and_replay(session, config)


Alteration = Callable[[np.ndarray, int], None]
"""Takes a rank's table and a step of it in which its first neighbour's vector was used."""


def no_gradient(table: np.ndarray, step: int) -> None:
    table[np.flatnonzero(table[:, 1] != NONE)[2], 1] = NONE


def an_earlier_gradient(table: np.ndarray, step: int) -> None:
    table[np.flatnonzero(table[:, 1] != NONE)[2], 1] -= 1


def a_gradient_of_the_future(table: np.ndarray, step: int) -> None:
    table[step, 1] = step + 1


def another_round(table: np.ndarray, step: int) -> None:
    table[np.flatnonzero(table[:, 1] != NONE)[-1] :, 0] += 40


def back_in_rounds(table: np.ndarray, step: int) -> None:
    table[-1, 0] = -1


def no_vector(table: np.ndarray, step: int) -> None:
    table[step, 2] = NONE


def an_older_vector(table: np.ndarray, step: int) -> None:
    table[step, 2] -= 1


def a_vector_never_sent(table: np.ndarray, step: int) -> None:
    table[step, 2] = 10**6


def a_vector_after_the_goodbye(table: np.ndarray, step: int) -> None:
    table[-1, 2] = 0


ALONE = [no_gradient, an_earlier_gradient, a_gradient_of_the_future, another_round, back_in_rounds]
TOGETHER = [no_vector, an_older_vector, a_vector_never_sent, a_vector_after_the_goodbye]


@pytest.mark.mpi(min_size=1)
def test_an_altered_event_is_caught(session: Session) -> None:
    config, outcome = small_run(session)
    if outcome is None:
        return
    assert outcome.events is not None
    for alter in ALONE + (TOGETHER if session.size > 1 else []):
        for rank in {0, session.size - 1}:
            tables = [table.copy() for table in outcome.events]
            table = tables[rank]
            # Half-way, where a vector was used that has a predecessor.
            steps = np.flatnonzero(table[:, 2] > 0) if session.size > 1 else np.arange(2, len(table) - 1)
            alter(table, int(steps[len(steps) // 2]))
            # Written anew, so that the checksum is that of the altered tables.
            try:
                found = differences(config, dataclasses.replace(outcome, events=tables))
            except RunError as error:
                assert "events" in str(error)
            else:
                assert found.max() > TOLERANCE, (alter.__name__, rank)


@pytest.mark.mpi(min_size=1)
def test_events_that_do_not_belong_to_the_run_are_refused(session: Session) -> None:
    config, outcome = small_run(session)
    if outcome is None:
        return
    assert outcome.events is not None
    tables = [table.copy() for table in outcome.events]
    tables[0][1, 0] += 1
    with recorded(config, outcome) as out, recorded(config, dataclasses.replace(outcome, events=tables)) as other:
        (other / "events.npz").replace(out / "events.npz")
        with pytest.raises(RunError, match="checksum"):
            replay(read_run(out))


@pytest.mark.mpi(min_size=1)
def test_parameters_that_the_run_did_not_end_in_are_found(session: Session) -> None:
    config, outcome = small_run(session)
    if outcome is None:
        return
    culprit = session.size - 1
    params = outcome.stacked_params.copy()
    params[culprit, 3] += 1e-9 * np.abs(params[culprit]).max()
    with recorded(config, dataclasses.replace(outcome, stacked_params=params)) as out:
        found = replay(read_run(out))
    assert not found.agrees
    assert (found.differences > TOLERANCE).tolist() == [rank == culprit for rank in range(session.size)]


@pytest.mark.mpi(min_size=1)
def test_a_record_has_one_row_a_step_and_only_neighbours(session: Session) -> None:
    config, outcome = small_run(session)
    if outcome is None:
        return
    graph = lay_out(config, session.size).topology
    assert outcome.events is not None
    for rank, table in enumerate(outcome.events):
        assert table.dtype == np.int32
        assert table.shape[1] == 2 + len(graph.neighbors(rank))
        assert (table[-1, 1:] == NONE).all()
        assert (np.diff(table[:, 0]) >= 0).all()
