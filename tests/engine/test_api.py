"""The library: train and minimize on a communicator of the caller's."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from resumption import common_directory

import goco_mpi
from goco_mpi import InputError, RunConfig, RunError, minimize, train
from goco_mpi.engine import setting_up
from goco_mpi.engine.session import Session
from goco_mpi.record import read_run
from goco_mpi.replay import replay

INF = float("inf")
EXPERIMENT: dict[str, Any] = {
    "seed": 2,
    "rounds": 30,
    "data": {"source": "breast_cancer", "shards": 8, "standardize": True},
    "objective": {"kind": "logistic", "l2": 1e-2},
    "topology": {"kind": "ring"},
    "record": {"every": 10},
}


class Quadratic:
    """f_k(x) = |A_k (x - c_k)|^2 / 2: the mean's minimiser is known."""

    def __init__(self, n_params: int = 3, n_shards: int = 6) -> None:
        rng = np.random.default_rng(1)
        self.shards = [(np.eye(n_params) + 0.3 * rng.random((n_params, n_params)), rng.random(n_params))] * n_shards
        self.shards = [(a + 0.1 * k * np.eye(n_params), c + 0.2 * k) for k, (a, c) in enumerate(self.shards)]

    def loss(self, x: np.ndarray, shard: Any) -> float:
        a, c = shard
        return 0.5 * float(np.sum((a @ (x - c)) ** 2))

    def gradient(self, x: np.ndarray, shard: Any, out: np.ndarray) -> None:
        a, c = shard
        np.matmul(a.T, a @ (x - c), out=out)

    def minimum(self) -> np.ndarray:
        hessian = sum(a.T @ a for a, _ in self.shards)
        return np.linalg.solve(hessian, sum(a.T @ a @ c for a, c in self.shards))


def test_the_public_names_are_there_and_no_others() -> None:
    assert set(goco_mpi.__all__) <= set(dir(goco_mpi))
    for name in goco_mpi.__all__:
        assert getattr(goco_mpi, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = goco_mpi.trian


@pytest.mark.mpi(min_size=1)
def test_train_gives_every_rank_the_same_result() -> None:
    result = train(EXPERIMENT, comm=MPI.COMM_WORLD)
    everyone = MPI.COMM_WORLD.allgather((result.x.tobytes(), result.fun, result.message, result.nit, len(result.ranks)))
    assert len(set(everyone)) == 1
    assert result.success
    assert (result.status, result.message) == (0, "All rounds are done.")
    assert result.history[-1]["loss"] == result.fun < result.history[0]["loss"]
    assert (result.stacked_params is None) == (MPI.COMM_WORLD.rank > 0)
    if result.stacked_params is not None:
        np.testing.assert_allclose(result.stacked_params.mean(axis=0), result.x)


@pytest.mark.mpi(min_size=2)
def test_a_part_of_the_ranks_may_train_alone() -> None:
    world = MPI.COMM_WORLD
    half = world.Split(world.rank % 2)
    result = train({**EXPERIMENT, "seed": world.rank % 2}, comm=half)
    assert len(result.ranks) == half.size
    half.Free()


@pytest.mark.mpi(min_size=1)
def test_train_writes_a_record_that_replays(tmp_path: Path) -> None:
    out = Path(MPI.COMM_WORLD.bcast(str(tmp_path / "run")))
    train(EXPERIMENT, out=out)
    if MPI.COMM_WORLD.rank == 0:
        assert replay(read_run(out)).agrees
    with pytest.raises(InputError, match="--force"):
        train(EXPERIMENT, out=out)
    train(EXPERIMENT, out=out, force=True)


@pytest.mark.mpi(min_size=1)
def test_bad_input_is_raised_on_every_rank() -> None:
    with pytest.raises(InputError, match=r"method.kind must be one of"):
        train({"method": {"kind": "magic"}})
    with pytest.raises(InputError, match=r"rounds must be between 1 and .* Got 0"):
        train(RunConfig(rounds=0))  # put together by hand, and nobody has checked it
    with pytest.raises(InputError, match=r"config must be the path of an experiment file, its tables, or a RunConfig"):
        train(42)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="diverged"):
        train({**EXPERIMENT, "rounds": 10_000, "step": {"kind": "constant", "size": 1e6}})


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
def test_minimize_finds_the_minimum_of_the_mean(late: str) -> None:
    objective = Quadratic()
    start = np.full(3, 5.0)
    # Whoever holds every shard descends on F itself; deadlines off, so that none is late.
    result = minimize(
        objective,
        start,
        shards=objective.shards,
        placement={"replication": MPI.COMM_WORLD.size},
        topology="ring",
        rounds=400,
        method={"late": late},
        deadline={"compute_s": INF, "gossip_s": INF},
    )
    np.testing.assert_allclose(result.x, objective.minimum(), rtol=1e-10)
    assert result.fun == pytest.approx(np.mean([objective.loss(result.x, shard) for shard in objective.shards]))
    assert (start == 5.0).all()
    first = result.history[0]["loss"]
    assert first == pytest.approx(np.mean([objective.loss(start, shard) for shard in objective.shards]))


@pytest.mark.mpi(min_size=1)
def test_minimize_asks_for_no_shards_but_those_it_holds() -> None:
    asked: set[int] = set()
    objective = Quadratic()

    class Lazy:
        def __len__(self) -> int:
            return len(objective.shards)

        def __getitem__(self, k: int) -> Any:
            asked.add(k)
            return objective.shards[k]

    minimize(objective, np.zeros(3), shards=Lazy(), placement={"replication": 1}, topology="ring", rounds=2)
    everyone = MPI.COMM_WORLD.allgather(asked)
    assert sum(map(len, everyone)) == len(objective.shards)
    assert set().union(*everyone) == set(range(6))


@pytest.mark.mpi(min_size=1)
def test_a_gradient_may_be_returned_instead() -> None:
    class Returning(Quadratic):
        def gradient(self, x: np.ndarray, shard: Any, out: np.ndarray) -> Any:
            a, c = shard
            return a.T @ (a @ (x - c))

    results = [
        minimize(
            kind(),
            np.zeros(3),
            shards=kind().shards,
            topology="ring",
            rounds=20,
            deadline={"compute_s": INF, "gossip_s": INF},
        ).x
        for kind in (Quadratic, Returning)
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)


@pytest.mark.mpi(min_size=1)
def test_a_signal_to_one_rank_ends_the_run_on_all_and_handlers_are_put_back() -> None:
    objective = Quadratic()
    world = MPI.COMM_WORLD
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    sent: list[int] = []

    def callback(round_: int, x: np.ndarray) -> None:
        # Whoever falls behind jumps over rounds: the seventh may not be among its own.
        if world.rank == world.size - 1 and round_ >= 7 and not sent:
            sent.append(round_)
            signal.raise_signal(signal.SIGTERM)

    result = minimize(objective, np.zeros(3), shards=objective.shards, topology="ring", rounds=10**8, callback=callback)
    assert result.message == "A signal asked the run to stop."
    assert not result.success
    assert result.nit >= 7
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.mpi(min_size=1)
def test_one_ranks_callback_ends_the_run_on_all() -> None:
    objective = Quadratic()
    world = MPI.COMM_WORLD
    last = world.size - 1
    seen: list[int] = []
    yet_to_begin = set(range(last))
    told: list[MPI.Request] = []

    def callback(round_: int, x: np.ndarray) -> None:
        assert x.shape == (3,)
        seen.append(round_)
        if world.rank != last:
            if not told:
                told.append(world.isend(None, last))
            return
        # Nobody waits for a rank that the machine lets start late: it could be told to end before its first round.
        for rank in [rank for rank in yet_to_begin if world.iprobe(rank)]:
            world.recv(source=rank)
            yet_to_begin.discard(rank)
        if round_ >= 10 and not yet_to_begin:
            raise StopIteration

    result = minimize(objective, np.zeros(3), shards=objective.shards, topology="ring", rounds=10**8, callback=callback)
    MPI.Request.waitall(told)
    assert result.message == "The callback raised StopIteration."
    assert seen
    assert result.nit < 10**6


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x0": np.zeros((2, 2))}, "x0 must be a vector"),
        ({"x0": np.array([np.nan])}, "x0 must be a vector"),
        ({"x0": "zero"}, "x0 must be a vector"),
        ({"objective": object()}, r"objective must have a method loss"),
        ({"shards": []}, "data.shards must be between 1"),
        ({"shards": iter([1])}, "shards must be a sequence, such as a list. Got a list_iterator"),
        ({"placement": 3}, "placement must be a kind or a table"),
        ({"topology": "rnig"}, "topology.kind must be one of"),
        ({"rounds": 0}, "rounds must be between 1"),
        ({"steps": {}}, "Unknown key 'steps'"),
        ({"data": {"batch_size": 3}}, "minimize takes no table 'data'"),
        ({"batch_size": 3}, "batch_size needs shards with rows to draw, and Quadratic knows of none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_minimize_refuses_what_it_cannot_use_on_every_rank(arguments: dict[str, Any], words: str) -> None:
    objective = Quadratic()
    usual: dict[str, Any] = {"objective": objective, "x0": np.zeros(3), "shards": objective.shards, "topology": "ring"}
    with pytest.raises(InputError, match=words):
        minimize(**{**usual, **arguments})


@pytest.mark.mpi(min_size=2)
def test_ranks_that_start_elsewhere_are_refused() -> None:
    objective = Quadratic()
    with pytest.raises(RunError, match="x0, differs from rank 0"):
        minimize(objective, np.full(3, float(MPI.COMM_WORLD.rank)), shards=objective.shards, topology="ring")


@pytest.mark.mpi(min_size=1)
def test_train_goes_on_from_its_checkpoint_and_refuses_one_without_a_place() -> None:
    # Together: a rank that is held up has its part of the last checkpoint in the round in which it was held up.
    experiment = {**EXPERIMENT, "checkpoint": {"every": 10}, "deadline": {"compute_s": INF, "gossip_s": INF}}
    with Session() as session, common_directory(session) as directory:
        out = directory / "run"
        first = train(experiment, out=out)
        further = train({**experiment, "rounds": 60}, out=out, resume=True)
        assert further.nit > first.nit
        assert further.history[0]["round"] >= 10
        assert further.fun < first.fun
    with pytest.raises(InputError, match="need a run directory"):
        train(experiment)
    with pytest.raises(InputError, match="need a run directory"):
        minimize(Quadratic(), np.zeros(3), shards=Quadratic().shards, topology="ring", checkpoint={"every": 3})


class Saddle:
    """f_k(x) = k (x_0^2 - x_1^2) / 2."""

    def loss(self, x: np.ndarray, shard: int) -> float:
        return 0.5 * shard * float(x[0] ** 2 - x[1] ** 2)

    def gradient(self, x: np.ndarray, shard: int, out: np.ndarray) -> None:
        out[:] = shard * x[0], -shard * x[1]


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(
    ("method", "n_threads", "refused"),
    [
        ({"kind": "table_newton"}, MPI.THREAD_MULTIPLE, "needs a convex loss"),
        ({"kind": "goco"}, MPI.THREAD_FUNNELED, "progress_thread = true needs an MPI that threads"),
    ],
)
def test_what_shows_when_a_run_is_set_up_is_refused_on_all_ranks_and_leaves_nothing_behind(
    method: dict[str, str], n_threads: int, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_exchange(*given: Any) -> None:
        raise AssertionError("it listens, and would go on listening")

    monkeypatch.setattr(setting_up, "_exchange", no_exchange)
    monkeypatch.setattr(MPI, "Query_thread", lambda: n_threads)
    with pytest.raises(InputError, match=refused) as raised:
        minimize(
            Saddle(),
            np.ones(2),
            shards=[1] * MPI.COMM_WORLD.size,
            topology="complete",
            placement={"replication": 1},
            method=method,
            step={"kind": "constant", "size": 0.1},
            deadline={"progress_thread": True},
        )
    assert raised.value.agreed
