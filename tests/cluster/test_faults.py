"""What is made of disturbed runs: counts within a span of time, and the table of make faults."""

from __future__ import annotations

import json
from pathlib import Path

import faults
import numpy as np
import pytest
import watched
from faults import FAULTS, Found
from watched import Window

from goco_mpi import train

pytestmark = pytest.mark.cluster


def test_gradients_and_vectors_within_a_span_of_time_are_counted_once(tmp_path: Path) -> None:
    config = {"rounds": 20, "record": {"timeline": True}, "stragglers": {"kind": "bernoulli", "p": 0.5}}
    result = train(config, out=tmp_path / "run")
    run = watched.read(tmp_path / "run")
    always = Window(0.0, np.inf)
    assert 0 < result.ranks[0]["gradients"] < 20
    assert run.gradients(0, always) == result.ranks[0]["gradients"]
    middle = float(run.mixed_s[0][10])
    assert run.gradients(0, Window(0.0, middle)) + run.gradients(0, Window(middle, np.inf)) == run.gradients(0, always)
    assert run.end_s([0]) == run.times_s[0][-1]


def test_the_table_has_medians_of_rates_relative_to_the_undisturbed_run_of_the_same_repeat() -> None:
    def found(rate: float, later: float, gap: float) -> Found:
        return Found(rate, rate, later, rate, gap, replayed=0.0)

    same = {name: [found(10.0, 10.0, 0.0), found(20.0, 20.0, 0.0), found(40.0, 40.0, 0.0)] for name in FAULTS}
    cut = [found(5.0, 8.0, 1e-9), found(18.0, 16.0, 1e-7), found(36.0, 38.0, 1e-5)]
    rows = faults.table({"goco": {**same, "cut off for 6 s": cut}}, ["goco"]).splitlines()
    assert len(rows) == 2 + len(FAULTS)
    assert rows[2] == "| none | 1.00 | < 1e-15 |"
    assert "| cut off for 6 s | 0.90 (0.80) | 1.0e-07 |" in rows


def test_a_run_that_was_made_is_not_made_again(tmp_path: Path) -> None:
    made = Found(1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    (tmp_path / "run.json").write_text(json.dumps(vars(made)))
    assert faults.find("goco", "none", tmp_path / "run", ["no launcher"]) == made
