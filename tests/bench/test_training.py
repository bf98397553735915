"""``goco bench train``: who is measured at what, what is made of the times, and one small problem really solved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from goco_mpi.bench import training
from goco_mpi.bench.measuring import Setup
from goco_mpi.bench.training import CASES, OURS, SERIAL, TARGETS, Case, Times
from goco_mpi.config import parse_config
from goco_mpi.errors import RunError
from goco_mpi.experiment import lay_out

TINY = Case(
    "tiny",
    {
        "data": {
            "source": "synthetic_regression", "n_samples": 400, "n_features": 10, "shards": 4, "heterogeneity": 0.1,
            "partition": "in_order", "test_fraction": 0.0, "intercept": False,
        },
        "objective": {"kind": "least_squares", "l2": 0.0},
    },
    0.002,
    {name: training.LEAST_SQUARES.methods[name] for name in (OURS, "allreduce, cg", "gradient_coding, cg")},
    {
        "undisturbed": (OURS, "allreduce, cg"),
        "one slow": (OURS, "allreduce, cg"),
        "real": (OURS, "gradient_coding, cg"),
    },
    ("scipy L-BFGS", "sklearn LinearRegression", "sklearn Ridge"),
    repeats=1,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_gradient_of_all_copies_lasts_as_many_times_as_long_and_the_slow_ranks_ten_times(case: Case) -> None:
    for situation in case.situations:
        runs = case.runs(situation)
        assert next(iter(runs)) == OURS
        for name, tables in runs.items():
            layout = lay_out(parse_config(tables), Setup.n_ranks)
            (copies,) = set(layout.placement.replication.tolist())
            usual = copies * case.copy_s
            assert copies == (1 if name.startswith(("allreduce", "dgd")) else 2)
            durations = [
                {layout.stragglers.duration_s(rank, round_) for round_ in range(50)} for rank in range(Setup.n_ranks)
            ]
            for rank, found in enumerate(durations):
                slow = situation == "one slow" and rank == training.SLOW
                expected = {usual, 10 * usual} if situation == "delays" else {10 * usual if slow else usual}
                assert sorted(found) == pytest.approx(sorted({0.0} if situation == "real" else expected))


@dataclass(frozen=True)
class Canned:
    """Answers without measuring: of each method in turn, of each repeat in turn."""

    seconds: dict[str, float] = field(hash=False)
    salt: object = field(default_factory=object)

    def call_on_ranks(self, function: str, **options: Any) -> Times:
        slow = 2.0 if options["slow"] else 1.0
        return {
            name: [[0.5, slow * s, slow * s + 1.0] for s in (self.seconds[name], 3.0 * self.seconds[name], 9.0)]
            for name in options["runs"]
        }

    def found(self, command: list[str]) -> Times:
        return {"scipy L-BFGS": [[0.0, 7.0, 8.0]] * 3}


def test_figures_are_a_median_to_each_of_our_repeats_and_bounds_leave_setting_up_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CASES, "tiny", TINY)
    setup = Canned({OURS: 1.0, "allreduce, cg": 4.0, "gradient_coding, cg": 5.0})
    rows = {row.case: row for row in training._rows(replace(TINY, alone=("scipy L-BFGS",)), {"allreduce, cg": 5.0})}

    def samples(case: str) -> list[float]:
        return rows.pop(f"tiny{case}").sample(setup)

    assert samples(": ours, one slow / undisturbed, to 1e-03") == pytest.approx([2 / 3, 6 / 3, 18 / 3])
    assert rows["tiny: ours, one slow / undisturbed, to 1e-06"].bound == 1.1
    row = rows["tiny, one slow: allreduce, cg / ours, to 1e-03"]
    assert (row.bound, row.at_most) == (5.0, False)
    assert samples(", one slow: allreduce, cg / ours, to 1e-03") == pytest.approx([18 / 2, 18 / 6, 18 / 18])
    assert rows["tiny, one slow: allreduce, cg / ours, to 1e-06, set-up too"].bound is None
    assert samples(", one slow: allreduce, cg / ours, to 1e-06, set-up too") == pytest.approx(
        [19.5 / 3.5, 19.5 / 7.5, 1]
    )
    assert samples(", undisturbed: ours, set-up") == [0.5] * 3
    assert samples(", real: one process: scipy L-BFGS / ours, to 1e-06, set-up too") == pytest.approx(
        [8 / 2.5, 8 / 4.5, 8 / 10.5]
    )


def test_who_does_not_come_to_the_target_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "tiny", TINY)
    setup = Canned({OURS: 1.0, "allreduce, cg": math.inf, "gradient_coding, cg": 5.0})
    row = training._against("tiny", "one slow", "allreduce, cg", TARGETS[1])
    with pytest.raises(RunError, match=r"allreduce, cg did not come to a gap of 1e-06 in its rounds"):
        row.sample(setup)


def test_a_small_problem_is_really_solved_by_all(
    mpiexec: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "tiny", TINY)
    monkeypatch.setattr(training, "SLOW", 1)
    setup = Setup(tuple(mpiexec), tmp_path, n_ranks=2)
    slowed = training._measured("tiny", "one slow", setup)
    real = training._measured("tiny", "real", setup)
    alone = {"scipy L-BFGS", "sklearn LinearRegression", "sklearn Ridge"}
    assert set(slowed) == {OURS, "allreduce, cg"}
    assert set(real) == {OURS, "gradient_coding, cg", *(SERIAL + name for name in alone)}
    for name, times in [*slowed.items(), *real.items()]:
        ((set_up, *reached),) = times
        assert 0.0 < reached[0] <= reached[1] < math.inf, name
        assert (set_up > 0.0) is not name.startswith(SERIAL)
    # Every round of an allreduce lasts as long as the slow rank's gradient: 20 ms; ours needs four of 4 ms.
    assert slowed["allreduce, cg"][0][2] > 0.06
