"""Checkpoints of real runs: resumed scripted runs to the last bit, resumed asynchronous ones by their replay."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resumption import assert_resumes_bit_for_bit, assert_same_end, begin, common_directory, leave_only

from goco_mpi import checkpoint
from goco_mpi.config import parse_config, to_dict
from goco_mpi.core.methods import METHODS as METHODS_BY_NAME
from goco_mpi.core.methods import State
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.outcome import Outcome
from goco_mpi.problem import load_problem
from goco_mpi.record import read_run, write_run
from goco_mpi.replay import replay
from goco_mpi.schema import RunConfig, replace

INF = math.inf
AUTO = {"kind": "auto", "size": None}
LEAST_SQUARES = {
    "data": {"source": "synthetic", "partition": "in_order", "n_samples": 240, "n_features": 8, "shards": 12},
    "objective": {"kind": "least_squares"},
}


def scripted(size: int, **tables: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "seed": 3,
        "rounds": 26,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 12, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "ring"},
        "placement": {"replication": min(2, size)},
        "deadline": {"compute_s": INF, "gossip_s": INF},
        "stragglers": {"kind": "bernoulli", "p": 0.3, "link_p": 0.25},
        "step": {"kind": "constant", "size": 0.02},
        "record": {"every": 5},
    }
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table} if isinstance(table, dict) else table
    return raw


METHODS: dict[str, dict[str, Any]] = {
    "stale": {"method": {"max_age": 2}},
    "fold, partial": {"method": {"mixing": "fold", "late": "partial"}},
    "memory, minibatches": {"method": {"late": "memory"}, "data": {"batch_size": 5}},
    "running sums": {"method": {"mixing": "running", "late": "memory"}},
    "push_pull": {"method": {"kind": "push_pull", "late": "memory"}},
    "push_pull, stale": {"method": {"kind": "push_pull", "mixing": "stale", "max_age": 2}},
    "exact_diffusion": {"method": {"kind": "exact_diffusion", "late": "memory"}},
    "chebyshev": {"method": {"gossip_rounds": 3}, "stragglers": {"link_p": 0.0}},
    "momentum": {"method": {"momentum": 0.8}, "step": {"kind": "decreasing", "size": 0.05, "tau": 20.0}},
    "top_k": {"method": {"compression": "top_k", "compression_ratio": 0.3, "max_age": 2}},
    "quantize": {"method": {"compression": "quantize", "late": "memory"}},
    "rates": {"method": {"rates": "ema", "late": "partial"}},
    "table_newton": {"method": {"kind": "table_newton"}, "topology": {"kind": "complete"}},
    "allreduce": {"method": {"kind": "allreduce"}, "step": AUTO},
    "cg": {**LEAST_SQUARES, "method": {"kind": "allreduce", "solver": "cg"}, "step": AUTO},
    "lbfgs": {"method": {"kind": "allreduce", "solver": "lbfgs"}, "step": AUTO},
    "preconditioned cg": {
        **LEAST_SQUARES,
        "method": {"kind": "allreduce", "solver": "cg", "preconditioner": "local"},
        "step": AUTO,
    },
    "nesterov": {**LEAST_SQUARES, "method": {"kind": "allreduce", "solver": "nesterov"}, "step": AUTO},
    "gradient_coding": {
        "method": {"kind": "gradient_coding", "solver": "lbfgs", "late": "wait"},
        "placement": {"kind": "cyclic"},
        "stragglers": {"kind": "none", "link_p": 0.0},
        "step": AUTO,
    },
    "sgc": {"method": {"kind": "sgc", "late": "wait"}, "stragglers": {"kind": "none", "link_p": 0.0}},
}


QUICK = ("stale", "memory, minibatches", "push_pull", "quantize", "rates", "table_newton", "lbfgs", "sgc")
"""Of the methods here and below; the others with --goco-large."""


# Other numbers of ranks would teach no more.
pytestmark = pytest.mark.quick(sizes=(1, 3), names=QUICK)


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_scripted_run_is_the_uninterrupted_one_to_the_last_bit(session: Session, name: str) -> None:
    if session.size == 3:
        assert_resumes_bit_for_bit(scripted(3, **METHODS[name]))


def ended_after(session: Session, config: RunConfig, round_: int) -> dict[str, Any]:
    """Return options of `train` that end the run in a round, decided by one rank in the middle of the graph."""

    def callback(now: int, params: np.ndarray) -> None:
        if session.rank == session.size // 2 and now == round_:
            raise StopIteration

    return {"callback": callback}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", ["exact_diffusion", "chebyshev", "lbfgs"])
def test_methods_that_go_in_step_are_stopped_in_one_round_and_go_on_together(session: Session, kind: str) -> None:
    config = parse_config(scripted(session.size, **METHODS[kind], checkpoint={"every": 1000}))
    whole = train(config, session)
    with common_directory(session) as directory:
        stopped = begin(session, directory / "run", config, **ended_after(session, config, 9))
        resumed = begin(session, directory / "run", config, resume=True)
        if whole is None or stopped is None or resumed is None:
            return
        assert stopped.stopped_by == "callback"
        assert resumed.resumed_from is not None
        # All have stopped in one round, as late as the word needs to get round.
        (found,) = set(resumed.resumed_from.rounds)
        assert 9 <= found <= 9 + session.size
        if kind == "lbfgs":
            assert_same_end(whole, resumed, counts=False)  # a gradient was begun twice
        else:  # who decided has left a gradient unfinished
            assert_replays(directory, config, resumed)
            assert resumed.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=5e-2)


def real(size: int, **tables: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "seed": 7,
        "rounds": 80,
        "data": {"source": "breast_cancer", "partition": "by_label", "shards": 8, "standardize": True},
        "objective": {"kind": "logistic", "l2": 1e-2},
        "topology": {"kind": "ring"},
        "placement": {"replication": min(2, size)},
        "stragglers": {"kind": "slow", "ranks": [0], "factor": 10.0, "work_s": 1e-3},
        "step": {"kind": "constant", "size": 0.02},
        "record": {"every": 20},
        "checkpoint": {"every": 40, "keep": 9},
    }
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table} if isinstance(table, dict) else table
    return parse_config(raw)


ASYNCHRONOUS: dict[str, dict[str, Any]] = {
    "stale": {},
    "partial": {"method": {"late": "partial"}},
    "memory": {"method": {"late": "memory"}, "data": {"batch_size": 7}},
    "running sums": {"method": {"mixing": "running", "rates": "ema"}},
    "push_pull": {"method": {"kind": "push_pull", "late": "memory"}},
    "table_newton": {"method": {"kind": "table_newton"}, "topology": {"kind": "complete"}},
    "quantize": {"method": {"compression": "quantize"}},
    "allreduce": {"method": {"kind": "allreduce"}, "stragglers": {"factor": 2.0}},
    "gradient_coding": {
        "method": {"kind": "gradient_coding", "solver": "lbfgs"},
        "placement": {"kind": "cyclic"},
        "step": AUTO,
    },
    "sgc": {"method": {"kind": "sgc"}, "deadline": {"compute_s": 5e-3}},
}


def assert_replays(directory: Path, config: RunConfig, outcome: Outcome) -> None:
    out = directory / "record"
    shutil.rmtree(out, ignore_errors=True)
    write_run(out, config, {}, outcome, force=False)
    found = replay(read_run(out))
    assert found.agrees, found.differences


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_an_asynchronous_run_goes_on_from_its_checkpoint_and_replays(session: Session, name: str) -> None:
    config = real(session.size, **ASYNCHRONOUS[name])
    with common_directory(session) as directory:
        out = directory / "run"
        first = begin(session, out, config)
        sets = session.share(lambda: checkpoint.whole_sets(checkpoint.directory_of(out)))
        number = sets[-1].number  # the oldest
        leave_only(session, out, number)
        resumed = begin(session, out, config, resume=True)
        if first is None or resumed is None:
            return
        assert resumed.resumed_from is not None
        assert max(resumed.resumed_from.rounds) < 80
        assert_replays(directory, config, resumed)
    assert resumed.loss_start == first.history[0]["loss"]
    assert resumed.history[0]["round"] == min(resumed.resumed_from.rounds)
    assert resumed.history[-1]["loss"] < resumed.loss_start
    for row in resumed.ranks:
        assert row["checkpoints_failed"] == 0
        assert row["wall_s"] > 0.0


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["running sums", "push_pull"])
def test_what_a_method_conserves_is_conserved_over_a_checkpoint_of_ranks_far_apart(session: Session, name: str) -> None:
    """A rank that has heard of a checkpoint makes its part before it mixes what its makers sent afterwards."""
    config = real(session.size, **ASYNCHRONOUS[name], stragglers={"factor": 30.0}, checkpoint={"every": 20})
    with common_directory(session) as directory:
        out = directory / "run"
        begin(session, out, config)
        kept = session.comm.gather(_parts(session, config, out))
    if kept is None:
        return
    assert len(kept[0]) > 0
    for parts in zip(*kept, strict=True):
        for rank, part in enumerate(parts):
            state = part["state"]
            state = getattr(state, "inner", state)
            place = _neighbors(config, session.size, rank)
            for neighbor, rho in zip(place, state.rho, strict=True):
                theirs = parts[neighbor]["state"]
                sigma = getattr(theirs, "inner", theirs).sigma
                weights = sigma[-1] - rho[-1] if name == "running sums" else 0.0
                # Nothing of a neighbour's future: what is under way is of weight zero or more.
                assert weights > -1e-9


def _neighbors(config: RunConfig, size: int, rank: int) -> tuple[int, ...]:
    return lay_out(config, size).topology.neighbors(rank)


def _parts(session: Session, config: RunConfig, out: Path) -> list[dict[str, Any]]:
    """Return this rank's part of every whole checkpoint."""
    layout, problem = lay_out(config, session.size), load_problem(config)
    place = layout.place(session.rank, problem.share(layout, session.rank))
    like = layout.method.start(np.zeros(problem.objective.n_params), place)
    sets = session.share(lambda: checkpoint.whole_sets(checkpoint.directory_of(out)))
    return [checkpoint.read_rank(found.path, session.rank, like) for found in sets]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["running sums", "table_newton", "allreduce", "gradient_coding"])
def test_a_run_by_the_clock_that_is_stopped_goes_on_from_where_it_stopped(session: Session, name: str) -> None:
    config = real(session.size, **ASYNCHRONOUS[name], rounds=100_000, stop={"time_limit_s": 0.3})
    config = parse_config_with(config, checkpoint={"every_s": 0.1, "keep": 9})
    with common_directory(session) as directory:
        out = directory / "run"
        first = begin(session, out, config)
        resumed = begin(session, out, config, resume=True)
        if first is None or resumed is None:
            return
        assert first.stopped_by == resumed.stopped_by == "time_limit_s"
        assert resumed.resumed_from is not None
        rounds = [row["rounds"] for row in first.ranks]
        again = [row["rounds"] for row in resumed.ranks]
        assert all(now > before for before, now in zip(rounds, again, strict=True))
        assert max(resumed.resumed_from.rounds) >= 0.5 * max(rounds)
        assert_replays(directory, config, resumed)
    for row in first.ranks:
        assert row["checkpoints"] >= 1


def parse_config_with(config: RunConfig, **tables: Any) -> RunConfig:
    return parse_config({**to_dict(config), **tables})


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("limit", [None, 0.05])
def test_without_a_section_only_a_run_that_is_stopped_early_keeps_anything(
    session: Session, limit: float | None
) -> None:
    stop = {} if limit is None else {"time_limit_s": limit}
    config = real(session.size, rounds=5 if limit is None else 100_000, stop=stop)
    config = parse_config_with(config, checkpoint={})
    with common_directory(session) as directory:
        begin(session, directory / "run", config)
        session.barrier()
        kept = checkpoint.whole_sets(checkpoint.directory_of(directory / "run"))
        if limit is None:
            assert not checkpoint.directory_of(directory / "run").exists()
        else:
            assert len(kept) == 1
            resumed = begin(session, directory / "run", config, resume=True)
            if resumed is not None:
                assert resumed.resumed_from is not None


@pytest.mark.mpi(min_size=2)
def test_a_damaged_file_of_one_rank_makes_all_go_on_from_an_older_set(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(scripted(session.size, checkpoint={"every": 9, "keep": 9}))
    with common_directory(session) as directory:
        out = directory / "run"
        begin(session, out, config)
        older = [9]
        if session.rank == 0:
            newest, before, *_ = checkpoint.whole_sets(checkpoint.directory_of(out))
            older = before.rounds  # of 9 or 18: that was left out if the first was still being written
            file = newest.path / f"rank{session.size - 1:05d}.npz"
            file.write_bytes(file.read_bytes()[:-100])
        session.barrier()
        resumed = begin(session, out, replace(config, rounds=30), resume=True)
        said = capsys.readouterr().err
        if resumed is not None:
            assert resumed.resumed_from is not None
            assert resumed.resumed_from.rounds == older
            assert f"rank{session.size - 1:05d}.npz' is damaged" in said
        shutil.rmtree(checkpoint.directory_of(out) / "set-00000001", ignore_errors=True)
        session.barrier()
        if session.rank == 0:
            for path in checkpoint.directory_of(out).glob("set-*/rank00000.npz"):
                path.write_bytes(b"")
        session.barrier()
        with pytest.raises(InputError, match="can be read on all ranks"):
            begin(session, out, config, resume=True)


@pytest.mark.mpi(min_size=1)
def test_checkpoints_of_an_earlier_run_are_neither_mixed_up_nor_lost(session: Session) -> None:
    config = parse_config(scripted(session.size, checkpoint={"every": 9}))
    with common_directory(session) as directory:
        out = directory / "run"
        begin(session, out, config)
        with pytest.raises(InputError, match=r"has checkpoints of an earlier run.*--resume"):
            begin(session, out, config)
        with pytest.raises(InputError, match=r"seed was 3\. Got 4"):
            begin(session, out, replace(config, seed=4), resume=True)
        session.barrier()
        assert len(checkpoint.whole_sets(checkpoint.directory_of(out))) == 2


@pytest.mark.mpi(min_size=1)
def test_a_run_begins_at_the_mean_parameters_of_another_of_any_layout(session: Session) -> None:
    other = real(session.size, checkpoint={"every": 40})
    config = real(session.size, topology={"kind": "complete"}, data={"shards": 5}, seed=1, rounds=20)
    with common_directory(session) as directory:
        first = begin(session, directory / "run", other)
        if first is not None:
            write_run(directory / "run", other, {}, first, force=False)
        session.barrier()
        for source in ("run", "run.checkpoints"):
            warm = begin(session, directory / f"warm{source}", config, warm_start=directory / source)
            if warm is None or first is None:
                continue
            assert warm.first_params is not None
            if source == "run":
                np.testing.assert_array_equal(warm.first_params, first.stacked_params.mean(axis=0))
            assert warm.history[0]["loss"] < 0.9 * first.history[0]["loss"]
            assert_replays(directory, config, warm)
        smaller = real(session.size, data={"intercept": False})
        with pytest.raises(InputError, match=r"as many parameters as the experiment has: 30\. Got 31"):
            begin(session, directory / "smaller", smaller, warm_start=directory / "run")
        with pytest.raises(InputError, match="has neither"):
            begin(session, directory / "none", smaller, warm_start=directory)
        if session.rank == 0:
            (checkpoint.whole_sets(directory / "run.checkpoints")[0].path / "whole.json").write_text("{}")
        session.barrier()
        with pytest.raises(InputError, match=r"--warm-start needs .*whole\.json' is damaged\. Give another"):
            begin(session, directory / "damaged", smaller, warm_start=directory / "run.checkpoints")


@pytest.mark.mpi(min_size=1)
def test_data_of_another_width_are_refused_where_a_run_goes_on(session: Session) -> None:
    with common_directory(session) as directory:

        def write(n_features: int) -> None:
            rows = np.random.default_rng(1).normal(size=(48, n_features + 1))
            np.savez(directory / "data.npz", features=rows[:, 1:], targets=rows[:, 0])

        source = {"source": str(directory / "data.npz"), "standardize": False}
        raw = scripted(session.size, **LEAST_SQUARES, step=AUTO, checkpoint={"every": 9})
        config = parse_config({**raw, "data": {**source, "shards": 12}})
        session.share(lambda: write(5))
        begin(session, directory / "run", config)
        session.share(lambda: write(7))
        with pytest.raises(InputError, match=r"data\.source .* 6 parameters\. Got 8\..*--force") as raised:
            begin(session, directory / "run", replace(config, rounds=60), resume=True)
        assert raised.value.agreed


@dataclass
class OwnState(State):
    """A state of a class from outside the package, which no checkpoint can hold."""

    more: int = 0


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(METHODS_BY_NAME["goco"]), "start", lambda self, params, place: OwnState(params.copy()))


@pytest.mark.mpi(min_size=1)
@pytest.mark.usefixtures("own_state")
def test_checkpoints_of_a_state_that_none_can_hold_are_refused_before_the_first_round(session: Session) -> None:
    with common_directory(session) as directory:
        config = real(session.size)
        with pytest.raises(InputError, match=r"\[checkpoint\] needs .*OwnState.* or leave \[checkpoint\]") as raised:
            begin(session, directory / "run", config)
        assert raised.value.agreed


@pytest.mark.mpi(min_size=1)
@pytest.mark.usefixtures("own_state")
def test_a_run_with_such_a_state_that_is_stopped_keeps_its_outcome(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    config = real(session.size, rounds=100_000, stop={"time_limit_s": 0.1})
    with common_directory(session) as directory:
        outcome = begin(session, directory / "run", parse_config_with(config, checkpoint={}))
        assert not checkpoint.whole_sets(checkpoint.directory_of(directory / "run"))
    said = capsys.readouterr().err
    if outcome is None:
        assert said == ""
        return
    assert said.count("\n") == 1
    assert "OwnState cannot be kept in a checkpoint" in said
    assert outcome.stopped_by == "time_limit_s"
    assert [row["checkpoints_failed"] for row in outcome.ranks] == [1] * session.size
