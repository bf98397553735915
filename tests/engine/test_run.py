"""Whole runs on MPI where time passes: slow ranks, delays, deadlines, divergence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core import topology
from goco_mpi.core.events import NONE, EventLog
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import METHODS, Place
from goco_mpi.core.objectives import LeastSquares, WeightedRows
from goco_mpi.core.pace.counts import ExchangeCounts, Spent
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.slots import HEADER
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.core.shares import ModelShare
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.engine.exchange import Exchange
from goco_mpi.engine.gradients import GradientWork
from goco_mpi.engine.runner import RoundLoop
from goco_mpi.engine.session import Session
from goco_mpi.engine.snapshots import Snapshots
from goco_mpi.engine.stopping import Stopping
from goco_mpi.engine.train import train
from goco_mpi.errors import InputError, RunError
from goco_mpi.experiment import lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.problem import load_problem
from goco_mpi.schema import StopConfig

INF = math.inf


def experiment(size: int, **tables: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "seed": 5,
        "rounds": 60,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 8, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "ring"},
        "placement": {"replication": min(2, size)},
        "record": {"every": 7},
    }
    for name, value in tables.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return raw


def run(session: Session, raw: dict[str, Any]) -> Outcome | None:
    outcome = train(parse_config(raw), session)
    assert (outcome is not None) == (session.rank == 0)
    if outcome is not None:
        check(outcome, raw, session.size)
    return outcome


def check(outcome: Outcome, raw: dict[str, Any], size: int) -> None:
    """Check what holds of every run, however late anybody was."""
    config = parse_config(raw)
    assert [row["rank"] for row in outcome.ranks] == list(range(size))
    assert np.isfinite(outcome.stacked_params).all()
    assert outcome.wall_s is not None
    assert outcome.wall_s == max(row["wall_s"] for row in outcome.ranks) > 0.0

    rounds = [row["round"] for row in outcome.history]
    times = [row["wall_s"] for row in outcome.history]
    assert (rounds[0], times[0], rounds[-1]) == (0, 0.0, config.rounds)
    assert rounds == sorted(set(rounds))
    assert all(round_ % config.record.every == 0 for round_ in rounds[:-1])
    assert times == sorted(times)
    assert outcome.history[0]["consensus_distance"] == 0.0
    for row in outcome.history:
        assert math.isfinite(row["loss"])
        assert math.isfinite(row["consensus_distance"])
        assert 0.0 <= row["test_accuracy"] <= 1.0

    for name in ("bytes_sent", "shard_gradients"):
        spent = [row[name] for row in outcome.history]
        assert spent == sorted(spent)
        assert spent[0] == 0.0
        assert spent[-1] == pytest.approx(np.mean([row[name] for row in outcome.ranks]), rel=1e-12)

    allreduce = config.method.kind == "allreduce"
    degrees = [0] * size
    if not allreduce:
        graph = lay_out(config, size).topology
        degrees = [len(graph.neighbors(rank)) for rank in range(size)]
        # Everything is drained at the end: what one sent another received.
        assert sum(row["messages_sent"] for row in outcome.ranks) == sum(
            row["messages_received"] for row in outcome.ranks
        )
    message = lay_out(config, size).method.message_size(outcome.stacked_params.shape[1])
    for row, degree in zip(outcome.ranks, degrees, strict=True):
        assert row["bytes_sent"] == row["messages_sent"] * 8 * (message + (2 if allreduce else HEADER))
        # Every round and the goodbye offered one vector to each neighbour: sent, or replaced by a newer.
        if not allreduce:
            assert row["messages_sent"] + row["superseded"] == (row["rounds"] + 1) * degree
        assert row["missed"] <= row["rounds"] * degree
        assert row["suspected"] <= row["missed"]
        # A gradient ends in a round; the one that the end of the run cut short has none.
        assert row["gradients"] + row["partial_gradients"] + row["late_gradients"] <= row["rounds"] + 1
        assert row["partial_gradients"] == 0 or config.method.late == "partial"
        assert row["repeated"] == 0 or config.method.late == "memory"
        assert row["gradients"] + row["partial_gradients"] + row["repeated"] <= row["rounds"] + 1
        assert 0.0 <= row["compute_s"] + row["wait_s"] <= row["wall_s"]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("culprit", ["first", "last"])
@pytest.mark.parametrize("gossip_s", [1e-3, "auto"])
def test_a_slow_rank_gives_few_gradients_and_the_others_go_on(
    session: Session, gossip_s: float | str, culprit: str
) -> None:
    slow = 0 if culprit == "first" else session.size - 1
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=80,
            stragglers={"kind": "slow", "ranks": [slow], "factor": 10.0, "work_s": 2e-3},
            method={"weights": "coverage"},
            deadline={"gossip_s": gossip_s},
        ),
    )
    if outcome is None:
        return
    fast = [row for row in outcome.ranks if row["rank"] != slow]
    late = outcome.ranks[slow]
    assert late["gradients"] >= 1  # late ones are used all the same
    # In the middle of a gradient it goes on gossiping: most of its rounds bring none.
    assert late["rounds"] > 1.5 * (late["gradients"] + late["late_gradients"])
    # Of most: one that a busy machine holds up for a tenth of a second is a slow one, too.
    assert np.median([row["gradients"] + row["jumped"] for row in fast]) >= 80 // 2
    # Whoever waited for the slow rank would have as many as it has.
    assert late["gradients"] <= np.median([row["gradients"] for row in fast]) / 2
    assert outcome.history[-1]["loss"] < 0.5 * outcome.history[0]["loss"]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("rounds", range(6, 10))  # at the end it may be at the last round, or before it
def test_a_rank_whose_first_gradient_never_ends_does_not_hold_up_the_end(session: Session, rounds: int) -> None:
    last = session.size - 1
    stragglers = {"kind": "slow", "ranks": [last], "factor": 1e6, "work_s": 2e-3}
    raw = experiment(session.size, rounds=rounds, stragglers=stragglers, topology={"kind": "complete"})
    outcome = run(session, {**raw, "deadline": {"shutdown_s": 10.0}})
    if outcome is not None:
        assert outcome.ranks[last]["gradients"] == 0
        assert outcome.events is not None
        for own in outcome.events[:last]:
            assert own[-1, 0] >= rounds  # through them or over them, to the end


@pytest.mark.mpi(min_size=2)
def test_without_deadlines_everybody_waits_for_the_slow_rank(session: Session) -> None:
    # The contrast that shows the test above to be one of not waiting.
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=15,
            deadline={"compute_s": INF, "gossip_s": INF},
            stragglers={"kind": "slow", "ranks": [0], "factor": 5.0, "work_s": 1e-3},
        ),
    )
    if outcome is not None:
        for row in outcome.ranks:
            assert (row["gradients"], row["rounds"], row["missed"], row["jumped"]) == (15, 15, 0, 0)


@pytest.mark.mpi(min_size=2)
def test_who_waits_for_late_gradients_has_all_of_them(session: Session) -> None:
    # Whatever deadlines are given: they are not those of this policy.
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=15,
            method={"late": "wait"},
            deadline={"compute_s": 0.0, "gossip_s": 0.0},
            stragglers={"kind": "slow", "ranks": [0], "factor": 5.0, "work_s": 1e-3},
        ),
    )
    if outcome is not None:
        for row in outcome.ranks:
            assert (row["gradients"], row["rounds"], row["late_gradients"], row["missed"]) == (15, 15, 0, 0)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("compute_s", ["auto", 4e-3])
def test_a_slow_rank_with_a_memory_steps_along_its_last_gradient_meanwhile(
    session: Session, compute_s: float | str
) -> None:
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=100,
            method={"late": "memory"},
            deadline={"compute_s": compute_s, "gossip_s": 1e-3},
            stragglers={"kind": "slow", "ranks": [0], "factor": 10.0, "work_s": 2e-3},
        ),
    )
    if outcome is None:
        return
    slow = outcome.ranks[0]
    assert slow["gradients"] >= 2
    assert slow["late_gradients"] <= 1  # none is dropped at the deadline; the last may be, by the end
    assert slow["repeated"] >= slow["gradients"]  # a gradient lasts many rounds of the others
    # But for the rounds before its first gradient is there, every step of its is along one.
    steps = slow["gradients"] + slow["repeated"]
    assert outcome.events is not None
    first = np.flatnonzero(outcome.events[0][:, 1] >= 0)[0]
    assert slow["rounds"] - first <= steps <= slow["rounds"] - first + 1
    assert outcome.history[-1]["loss"] < 0.5 * outcome.history[0]["loss"]


@pytest.mark.mpi(min_size=1)
def test_shards_that_a_slow_rank_has_finished_by_the_deadline_count(session: Session) -> None:
    # Its gradient lasts 100 ms, spread over at least 4 shards, and the deadline comes after 60: some are
    # finished, and never all.
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=25,
            data={"shards": 8 * session.size},
            method={"late": "partial"},
            deadline={"compute_s": 60e-3, "gossip_s": INF},
            stragglers={"kind": "slow", "ranks": [0], "factor": 100.0, "work_s": 1e-3},
        ),
    )
    if outcome is None:
        return
    slow = outcome.ranks[0]
    assert slow["gradients"] == 0
    assert slow["partial_gradients"] >= 20
    assert slow["partial_gradients"] + slow["late_gradients"] == 25
    for row in outcome.ranks[1:]:
        assert row["gradients"] >= 20
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("distribution", ["exponential", "pareto", "constant"])
def test_random_delays(session: Session, distribution: str) -> None:
    outcome = run(
        session,
        experiment(
            session.size,
            stragglers={
                "kind": "delays",
                "delay_p": 0.1,
                "delay_s": 4e-3,
                "work_s": 5e-4,
                "distribution": distribution,
            },
        ),
    )
    if outcome is not None:
        assert outcome.history[-1]["loss"] < 0.5 * outcome.history[0]["loss"]


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("mixing", ["stale", "fold"])
def test_nobody_waits_with_a_gossip_deadline_of_zero(session: Session, mixing: str) -> None:
    outcome = run(
        session,
        experiment(session.size, deadline={"compute_s": INF, "gossip_s": 0.0}, method={"mixing": mixing}),
    )
    if outcome is not None:
        for row in outcome.ranks:
            assert row["late_gradients"] <= 1  # none is cut; the last may be, by the others' end
            assert row["wait_s"] < row["wall_s"]


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["discard", "partial"])
def test_no_gradient_meets_a_compute_deadline_of_zero(session: Session, late: str) -> None:
    outcome = run(session, experiment(session.size, deadline={"compute_s": 0.0}, method={"late": late}))
    if outcome is not None:
        assert [row["gradients"] for row in outcome.ranks] == [0] * session.size
        assert not outcome.stacked_params.any()
        assert outcome.history[-1]["loss"] == outcome.history[0]["loss"]


@pytest.mark.mpi(min_size=1)
def test_a_gradient_cut_at_the_deadline_counts_as_late_and_its_vector_is_sent(session: Session) -> None:
    # Rank 0 never finishes in time; it takes part in gossip and so learns from the others.
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=40,
            deadline={"compute_s": 6e-3, "gossip_s": INF},
            stragglers={"kind": "slow", "ranks": [0], "factor": 100.0, "work_s": 1e-3},
        ),
    )
    if outcome is None:
        return
    assert outcome.ranks[0]["gradients"] == 0
    assert outcome.ranks[0]["late_gradients"] > 0
    moved = np.abs(outcome.stacked_params[0]).max()
    assert moved > 1e-3 if session.size > 1 else moved == 0.0


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("method", ["goco", "dgd", "allreduce"])
@pytest.mark.parametrize("kind", ["logistic", "softmax", "least_squares"])
def test_a_diverging_run_ends_on_all_ranks_with_the_same_advice(session: Session, method: str, kind: str) -> None:
    raw = experiment(
        session.size,
        rounds=10_000,
        objective={"kind": kind, "l2": 1.0},
        method={"kind": method},
        step={"kind": "constant", "size": 1e6},
    )
    # Warnings are errors here: nothing overflows on the way.
    with pytest.raises(RunError, match=r"diverged in round \d+.*step\.size") as caught:
        train(parse_config(raw), session)
    assert caught.value.agreed
    assert len(set(session.comm.allgather(str(caught.value)))) == 1
    assert session.agree(lambda: "the session is still of use")


@pytest.mark.mpi(min_size=1)
def test_bad_input_is_refused_on_all_ranks(session: Session) -> None:
    for tables in (
        {"placement": {"replication": session.size + 1}},
        {"data": {"source": "nowhere.npz"}},
        {"stragglers": {"kind": "slow", "ranks": [session.size]}},
    ):
        with pytest.raises(InputError) as caught:
            train(parse_config(experiment(session.size, **tables)), session)
        assert caught.value.agreed
        assert len(set(session.comm.allgather(str(caught.value)))) == 1


@pytest.mark.mpi(min_size=1)
def test_more_workers_than_shards_leave_some_without_rows(session: Session) -> None:
    outcome = run(
        session,
        experiment(
            session.size, rounds=20, data={"shards": 1}, placement={"kind": "uncoded"}, topology={"kind": "complete"}
        ),
    )
    if outcome is not None:
        assert sum(row["rows"] > 0 for row in outcome.ranks) == 1
        assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


@pytest.mark.mpi(min_size=1)
def test_the_recorded_loss_is_that_of_the_mean_parameters_on_all_samples(session: Session) -> None:
    raw = experiment(session.size, rounds=10, record={"optimum": True})
    outcome = run(session, raw)
    if outcome is None:
        return
    problem = load_problem(parse_config(raw))
    mean = outcome.stacked_params.mean(axis=0)
    assert outcome.history[-1]["loss"] == pytest.approx(problem.objective.loss(mean, problem.pooled_rows()), rel=1e-12)
    start = problem.objective.loss(np.zeros_like(mean), problem.pooled_rows())
    assert outcome.history[0]["loss"] == pytest.approx(start, rel=1e-12)
    assert outcome.loss_optimum == pytest.approx(problem.optimum())
    right = problem.objective.accuracy(mean, problem.test.features, problem.test.targets)
    assert right is not None
    assert outcome.history[-1]["test_accuracy"] == pytest.approx(right.mean())


@pytest.mark.mpi(min_size=1)
def test_progress_rises_and_somebody_reaches_the_last_round(session: Session) -> None:
    seen: list[int] = []
    train(parse_config(experiment(session.size, rounds=12)), session, seen.append)
    assert seen == sorted(set(seen))
    # Whoever learns in the middle of a gradient that its neighbours are through ends there.
    assert max(session.comm.allgather(max(seen, default=0))) == 12


@pytest.mark.mpi(min_size=4)  # two mix to one vector in every round
def test_ranks_without_a_common_neighbour_reach_consensus(session: Session) -> None:
    try:
        topology.build("hypercube", session.size)
    except InputError:
        return  # only powers of two form one
    outcome = run(
        session,
        experiment(
            session.size,
            rounds=150,
            topology={"kind": "hypercube"},
            step={"kind": "decreasing", "size": 0.3, "tau": 5.0},
            deadline={"compute_s": INF, "gossip_s": INF},
        ),
    )
    if outcome is not None:
        # The distance follows the step size, which falls thirtyfold.
        distances = [row["consensus_distance"] for row in outcome.history]
        assert distances[-1] < 0.5 * max(distances)


class ScriptedExchange(Exchange):
    """No neighbours at all, but what they would have told by a round is scripted."""

    def __init__(self, heard: dict[int, int], fails_in: int | None = None) -> None:
        self.heard = heard
        self.fails_in = fails_in
        self.offered: list[int] = []
        self.vector = np.zeros(2)

    def drain(self) -> None:
        pass

    def blank(self) -> np.ndarray:
        return self.vector

    def offer(self, round_: int, step: int) -> None:
        assert step == len(self.offered)
        self.offered.append(round_)

    def wait(self, round_: int) -> None:
        self.newest_round = self.heard.get(round_, self.newest_round)
        self.failed = round_ == self.fails_in

    def inbox(self, round_: int) -> tuple[np.ndarray, list[Received]]:
        return self.vector, []

    def tell(self, round_: int, value: float) -> None:
        self.value = value

    def told(self) -> float:
        return self.value

    def stop(self) -> None:
        self.stopped = True

    def close(self, round_: int, step: int, failed: bool, time_limit_s: float) -> None:
        raise AssertionError("the loop does not close what it did not open")

    def counts(self) -> ExchangeCounts:
        return ExchangeCounts()


def loop_over(
    exchange: Exchange,
    n_rounds: int = 10,
    step: float = 0.1,
    stop: StopConfig | None = None,
    stragglers: StragglerModel | None = None,
    **options: Any,
) -> RoundLoop:
    """Return the loop of one rank that minimises |x|^2 / 2 + |x - 1|^2 / 2, in two dimensions."""
    rows = WeightedRows(np.eye(2), np.ones(2), np.ones(2), 1.0)
    share = ModelShare(LeastSquares(2, l2=1.0), rows, rows, [1, 1], np.array([0.5, 0.5]), rows)
    place = Place(0, 1, (), share, share.weight, np.ones((1, 2), dtype=bool), 2)
    return RoundLoop(
        work=GradientWork(0, share, stragglers or StragglerModel("none", 1), options.get("late", "discard")),
        method=METHODS["goco"],
        place=place,
        mixing=Mixing(np.empty(0), 20),
        exchange=exchange,
        step_size=StepSchedule(step, None),
        n_rounds=n_rounds,
        snapshots=Snapshots(every=2),
        stopping=Stopping(stop or StopConfig(), exchange, share.loss),
        progress=lambda round_: None,
        state=METHODS["goco"].start(np.zeros(2), place),
        **{"late": "discard", "compute_deadline": Deadline(INF, 1.0), **options},
    )


def test_a_rank_jumps_to_the_newest_round_it_heard_of() -> None:
    exchange = ScriptedExchange({3: 7})
    loop = loop_over(exchange)
    assert not loop.run()
    assert exchange.offered == [0, 1, 2, 3, 7, 8, 9]
    assert (loop.round, loop.counts.rounds, loop.counts.jumped, loop.counts.gradients) == (10, 7, 3, 7)


def test_what_was_spent_stays_with_its_snapshot_when_others_are_dropped() -> None:
    snapshots = Snapshots(every=1)
    for round_ in range(6):
        snapshots.take(round_, float(round_), np.full(2, round_), lambda: Spent(10 * len(snapshots.rounds), 0))
    snapshots.thin(2)
    snapshots.finish(5, 9.0, np.full(2, 7.0), Spent(99, 3))
    assert snapshots.rounds == [0, 2, 4, 5]
    assert [spent.bytes_sent for spent in snapshots.spent] == [0, 20, 40, 99]
    assert [params[0] for params in snapshots.params] == [0.0, 2.0, 4.0, 7.0]


def test_a_last_round_that_turns_out_to_be_an_earlier_one_is_the_only_last() -> None:
    """Who has died may have been the one that was furthest: then the last round is worked out anew."""
    snapshots = Snapshots(every=2)
    for round_ in range(6):
        snapshots.take(round_, float(round_), np.zeros(2), lambda: Spent(0, 0))
    for last_round in (9, 7):
        snapshots.finish(last_round, 9.0, np.ones(2), Spent(99, 3))
    assert snapshots.rounds == [0, 2, 4, 7]


def test_the_next_round_is_no_jump() -> None:
    exchange = ScriptedExchange({t: t + 1 for t in range(10)})
    loop = loop_over(exchange)
    loop.run()
    assert exchange.offered == list(range(10))
    assert loop.counts.jumped == 0


def test_a_rank_that_falls_behind_in_its_gradient_takes_part_in_the_newest_round() -> None:
    exchange = ScriptedExchange({})
    exchange.newest_round = 5  # the neighbours are there when its first gradient ends
    loop = loop_over(exchange)
    loop.run()
    # Once with its unchanged vector, once with the gradient, and only then past it.
    assert exchange.offered == [5, 5, 6, 7, 8, 9]


class HearingExchange(ScriptedExchange):
    """Hears of a newer round between two blocks of a gradient: in the n-th look, by script."""

    def __init__(self, heard_in_look: dict[int, int]) -> None:
        super().__init__({})
        self.heard_in_look = heard_in_look
        self.n_looks = 0

    def drain(self) -> None:
        self.newest_round = self.heard_in_look.get(self.n_looks, self.newest_round)
        self.n_looks += 1


@pytest.mark.parametrize(("late", "repeated"), [("discard", 0), ("memory", 1)])
def test_with_a_memory_interim_rounds_step_along_the_last_gradient(late: str, repeated: int) -> None:
    # One block a gradient. The third is under way, in round 2, when the neighbours are heard in round 6.
    exchange = HearingExchange({2: 6})
    events = EventLog(degree=0)
    loop = loop_over(exchange, late=late, events=events)
    assert not loop.run()
    assert exchange.offered == [0, 1, 6, 6, 7, 8, 9]
    assert (loop.counts.gradients, loop.counts.late_gradients, loop.counts.repeated) == (6, 0, repeated)
    # Step 2 is the interim one; step 3 is along the gradient that was begun before it.
    interim = 1 if late == "memory" else NONE
    assert events.events().points.tolist() == [0, 1, interim, 2, 4, 5, 6, NONE]


EVERY_THIRD = StragglerModel("persistent", 1, ranks=(0,), factor=3.0)
"""Finishes its gradients in the rounds 2, 5 and 8 only."""


@pytest.mark.parametrize(
    ("late", "counts", "points"),
    [
        ("discard", (3, 0, 7, 0), [NONE, NONE, 2, NONE, NONE, 5, NONE, NONE, 8, NONE]),
        ("partial", (3, 0, 7, 0), [NONE, NONE, 2, NONE, NONE, 5, NONE, NONE, 8, NONE]),
        ("memory", (3, 0, 7, 5), [NONE, NONE, 2, 2, 2, 5, 5, 5, 8, 8]),
        ("wait", (10, 0, 0, 0), list(range(10))),
    ],
)
def test_what_a_scripted_straggler_counts(late: str, counts: tuple[int, int, int, int], points: list[int]) -> None:
    events = EventLog(degree=0, n_shards=2 if late == "partial" else 0)
    loop = loop_over(ScriptedExchange({}), late=late, stragglers=EVERY_THIRD, events=events)
    assert not loop.run()
    found = loop.counts
    assert (found.gradients, found.partial_gradients, found.late_gradients, found.repeated) == counts
    assert events.events().points.tolist() == [*points, NONE]


def test_what_random_stragglers_count_where_finished_shards_do() -> None:
    stragglers = StragglerModel("bernoulli", 1, seed=2, p=0.7)
    events = EventLog(degree=0, n_shards=2)
    loop = loop_over(ScriptedExchange({}), n_rounds=40, late="partial", stragglers=stragglers, events=events)
    assert not loop.run()
    finished = [stragglers.shards_finished(0, round_, 2) for round_ in range(40)]
    found = loop.counts
    expected = tuple(finished.count(n) for n in (2, 1, 0))
    assert min(expected) > 0  # the script has something of everything
    assert (found.gradients, found.partial_gradients, found.late_gradients) == expected
    taken_down = events.events()
    assert [len(taken_down.finished_shards(step) or []) for step in range(40)] == finished


@pytest.mark.parametrize(
    ("late", "counts"),
    [("discard", (0, 0, 10, 0)), ("partial", (0, 0, 10, 0)), ("memory", (5, 0, 0, 4))],
)
def test_what_a_deadline_of_zero_leaves(late: str, counts: tuple[int, int, int, int]) -> None:
    exchange = ScriptedExchange({})
    loop = loop_over(exchange, late=late, compute_deadline=Deadline(0.0, 1.0))
    assert not loop.run()
    found = loop.counts
    assert (found.gradients, found.partial_gradients, found.late_gradients, found.repeated) == counts
    # With a memory a round ends at each deadline, and the gradient is gone on with: two rounds a gradient.
    assert exchange.offered == list(range(10))


def test_a_memory_that_is_two_rounds_old_still_descends() -> None:
    loop = loop_over(ScriptedExchange({}), n_rounds=400, late="memory", compute_deadline=Deadline(0.0, 1.0))
    assert not loop.run()
    np.testing.assert_allclose(loop.params, 0.5, rtol=1e-12)


def test_nothing_more_is_sent_once_the_neighbours_are_through() -> None:
    exchange = ScriptedExchange({})
    exchange.newest_round = 10
    loop = loop_over(exchange)
    assert not loop.run()
    assert exchange.offered == []
    assert (loop.counts.rounds, loop.counts.gradients, loop.counts.late_gradients) == (0, 0, 1)


def test_it_ends_where_a_neighbour_failed() -> None:
    exchange = ScriptedExchange({}, fails_in=4)
    loop = loop_over(exchange)
    assert not loop.run()  # it did not diverge itself
    assert exchange.offered == [0, 1, 2, 3, 4]


def test_rounds_alone_are_gradient_descent() -> None:
    loop = loop_over(ScriptedExchange({}), n_rounds=200)
    assert not loop.run()
    np.testing.assert_allclose(loop.params, 0.5, rtol=1e-12)
    assert loop_over(ScriptedExchange({}), n_rounds=10_000, step=1e3).run()  # diverges


def test_parameters_that_are_no_numbers_are_divergence() -> None:
    loop = loop_over(ScriptedExchange({}))
    loop.params[:] = np.nan
    assert loop.run()
    assert loop.counts.rounds == 1
