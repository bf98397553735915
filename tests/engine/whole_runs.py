"""What tests of whole runs share: two problems, and what the end of a run is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goco_mpi.engine.session import Session
from goco_mpi.outcome import Outcome
from goco_mpi.record import read_run, write_run
from goco_mpi.replay import replay
from goco_mpi.schema import RunConfig

INF = float("inf")
LEAST_SQUARES: dict[str, Any] = {
    "data": {
        "source": "synthetic",
        "partition": "in_order",
        "heterogeneity": 0.5,
        "n_samples": 1600,
        "n_features": 20,
        "shards": 8,
    },
    "objective": {"kind": "least_squares", "l2": 1e-3},
}
LOGISTIC: dict[str, Any] = {
    "data": {"source": "breast_cancer", "partition": "by_label", "standardize": True, "shards": 8},
    "objective": {"kind": "logistic", "l2": 1e-2},
}


def assert_ends_as_simulated(outcome: Outcome, expected: Outcome, history: bool = True) -> None:
    """Check the parameters to 1e-12 of the largest, and the rows of the history where rounds are everybody's."""
    scale = np.abs(expected.stacked_params).max()
    assert scale > 1e-2
    np.testing.assert_allclose(outcome.stacked_params, expected.stacked_params, rtol=0, atol=1e-12 * scale)
    assert outcome.step_size == expected.step_size
    for mine, theirs in zip(outcome.history, expected.history, strict=True) if history else ():
        assert mine["round"] == theirs["round"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
        assert mine["consensus_distance"] == pytest.approx(theirs["consensus_distance"], rel=1e-8, abs=1e-11)


def assert_replays(session: Session, config: RunConfig, outcome: Outcome | None, directory: Path) -> None:
    """Write the record of a run on rank 0, and replay it. Collective."""
    environment = session.environment()
    if outcome is None:
        return
    write_run(directory / "run", config, environment, outcome, force=False)
    found = replay(read_run(directory / "run"))
    assert found.agrees, found.differences
    assert np.abs(outcome.stacked_params).max() > 1e-3
