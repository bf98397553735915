"""Runs on a shard store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from resumption import common_directory
from test_against_simulator import assert_equals_simulation, experiment

from goco_mpi.config import parse_config
from goco_mpi.data.sharding import make_store
from goco_mpi.engine.session import Session


def store(session: Session, path: Path, source: str, **data: Any) -> dict[str, Any]:
    """Make a store on rank 0; return the tables of an experiment on it."""
    keys = {"source": source, "n_features": 20, "shards": 12, "partition": "dirichlet", **data}
    if session.rank == 0:
        make_store(parse_config({"data": keys}).data, 3, path, False, {})
    session.barrier()
    raw = experiment(session.size)
    return {**raw, "data": {"source": str(path), "standardize": True}}


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("source", ["synthetic_classification", "synthetic_sparse"])
def test_a_run_on_a_store_is_that_of_the_simulator(source: str, session: Session) -> None:
    with common_directory(session) as directory:
        assert_equals_simulation(store(session, directory / "store", source, n_samples=700))
