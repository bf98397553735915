"""What ranks load: each its own shards, and the same problem as one process that has all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resumption import common_directory
from test_against_simulator import assert_equals_simulation, experiment

from goco_mpi.config import parse_config
from goco_mpi.data.readers import open_source
from goco_mpi.data.sharding import make_store
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.errors import InputError
from goco_mpi.problem import load_problem
from goco_mpi.record import read_run, write_run
from goco_mpi.replay import replay

GENERATED = {
    "synthetic_regression": "least_squares",
    "synthetic_classification": "softmax",
    "synthetic_sparse": "logistic",
}


def generated(size: int, source: str, **tables: Any) -> dict[str, Any]:
    data = {"source": source, "n_samples": 700, "n_features": 9, "n_classes": 2, "heterogeneity": 0.5}
    data = {**data, "partition": "in_order", "test_fraction": 0.3, **tables.pop("data", {})}
    return experiment(size, data=data, objective={"kind": GENERATED[source]}, **tables)


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.parametrize("partition", ["in_order", "by_label", "dirichlet"])
@pytest.mark.parametrize("source", GENERATED)
def test_ranks_that_read_apart_train_on_what_the_simulator_has(source: str, partition: str, session: Session) -> None:
    data = {"partition": partition, "heterogeneity": 0.5 if partition == "in_order" else 0.0}
    raw = generated(session.size, source, data=data)
    with open_source(parse_config(raw).data, 3) as opened:
        assert not opened.whole
    assert_equals_simulation(raw)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("source", ["breast_cancer", "synthetic_sparse"])
def test_the_optimum_of_all_ranks_is_that_of_the_pooled_samples(source: str, session: Session) -> None:
    raw = experiment(session.size, rounds=5, record={"optimum": True})
    if source != "breast_cancer":
        raw = generated(session.size, source, rounds=5, record={"optimum": True})
    config = parse_config(raw)
    outcome = train(config, session)
    if outcome is not None:
        assert outcome.loss_optimum == pytest.approx(load_problem(config).optimum(), rel=1e-12)


@pytest.mark.mpi(min_size=1)
def test_a_run_on_what_each_rank_read_replays(session: Session) -> None:
    config = parse_config(
        generated(session.size, "synthetic_sparse", deadline={}, stragglers={"kind": "none", "p": 0.0, "link_p": 0.0})
    )
    with common_directory(session) as directory:
        outcome = train(config, session)
        if outcome is not None:
            write_run(directory / "run", config, {}, outcome, force=False)
            found = replay(read_run(directory / "run"))
            assert found.agrees, found.differences


@pytest.mark.mpi(min_size=1)
def test_the_record_says_what_each_rank_read_and_took(session: Session) -> None:
    with common_directory(session) as directory:
        file = directory / "data.npz"
        if session.rank == 0:
            rng = np.random.default_rng(0)
            np.savez_compressed(file, features=rng.standard_normal((90, 4)), targets=rng.standard_normal(90))
        session.barrier()
        raw = experiment(session.size, rounds=3, data={"source": str(file)}, objective={"kind": "least_squares"})
        outcome = train(parse_config(raw), session)
        if outcome is None:
            return
        # A compressed file is rank 0's to read and to hand out.
        read = [row["bytes_read"] for row in outcome.ranks]
        assert 0.8 * file.stat().st_size < read[0] < 1.5 * file.stat().st_size
        assert read[1:] == [0] * (session.size - 1)
        for row in outcome.ranks:
            assert 0.0 < row["load_s"] < 60.0
            assert 10.0 < row["peak_mib"] < 2000.0
        write_run(directory / "run", parse_config(raw), {}, outcome, force=False)
        columns = read_run(directory / "run").ranks
        assert [row["bytes_read"] for row in columns] == read
        assert all(row["peak_mib"] > 10.0 and row["load_s"] > 0.0 for row in columns)


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("kind", ["npy", "store"])
def test_a_rank_reads_the_bytes_of_its_shards_and_no_others(kind: str, session: Session) -> None:
    rng = np.random.default_rng(0)
    n, width, shards = 9600, 16, 12  # shards of more bytes than a reader reads through to spare itself a call
    with common_directory(session) as directory:
        if session.rank == 0:
            np.save(directory / "features.npy", rng.standard_normal((n, width)))
            np.save(directory / "targets.npy", rng.standard_normal(n))
        session.barrier()
        data = {"source": str(directory / "features.npy"), "targets": str(directory / "targets.npy")}
        data |= {"shards": shards, "partition": "in_order", "test_fraction": 0.0}
        if kind == "store":
            if session.rank == 0:
                make_store(parse_config({"data": data}).data, 0, directory / "store", force=False, origin={})
            session.barrier()
            data = {"source": str(directory / "store"), **{key: data[key] for key in list(data)[2:]}}
        raw = experiment(session.size, rounds=3, data=data, objective={"kind": "least_squares"})
        outcome = train(parse_config(raw), session)
        for row in [] if outcome is None else outcome.ranks:
            mine = row["rows"] * (width + 1) * 8
            assert session.size <= 2 or row["rows"] < n
            # Beside its rows a rank reads headers, and rank 0 of a store what is told of the chunks.
            assert mine <= row["bytes_read"] <= mine + 4096
        if kind == "store":
            session.barrier()
            if session.rank == 0:
                with (directory / "store" / "features.npy").open("r+b") as file:
                    file.seek(-100, 2)  # in the last shard, which not every rank reads
                    file.write(b"\x00" * 8)
            session.barrier()
            with pytest.raises(InputError, match=r"features.npy in shard 11.*checksum") as caught:
                train(parse_config(raw), session)
            assert caught.value.agreed


@pytest.mark.mpi(min_size=1)
def test_data_that_no_rank_can_use_are_refused_by_all_in_the_same_words(session: Session) -> None:
    for data, words in (
        ({"n_samples": 10, "test_fraction": 0.0, "shards": 11}, "data.shards must be at most"),
        ({"source": str(Path("nowhere.svm"))}, "There is no file 'nowhere.svm'"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            train(parse_config(generated(session.size, "synthetic_regression", data=data)), session)
        assert caught.value.agreed
        assert len(set(session.comm.allgather(str(caught.value)))) == 1
