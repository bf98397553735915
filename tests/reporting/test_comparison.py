"""What variants need to a target, and their pictures, on histories made by hand."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from goco_mpi.cli import main
from goco_mpi.errors import InputError
from goco_mpi.record import HISTORY
from goco_mpi.reporting import comparison, figures
from goco_mpi.reporting.comparison import Variant, best, cost_to, measure, median_cost, read_variants
from goco_mpi.sweeps.file import read_sweep
from goco_mpi.sweeps.running import run_sweep

NAN, INF = math.nan, math.inf


def history(gaps: list[float], bytes_each: float = 100.0, **columns: list[float]) -> dict[str, np.ndarray]:
    """Return a simulated run's history, a row every ten rounds."""
    rounds = np.arange(len(gaps)) * 10.0
    found = {name: np.full(len(gaps), NAN) for name in HISTORY}
    found |= {"round": rounds, "loss": np.array(gaps) * 2.0 + 1.0, "suboptimality": np.array(gaps)}
    found |= {"bytes_sent": rounds * bytes_each, "shard_gradients": rounds * 3.0}
    return found | {name: np.array(values) for name, values in columns.items()}


FAST, SLOW = [1.0, 0.1, 0.01, 0.001], [1.0, 0.5, 0.1, 0.05]


@pytest.mark.parametrize(
    ("target", "rounds", "sent"), [(1.0, 0, 0), (0.1, 10, 1000), (0.099, 20, 2000), (0.001, 30, 3000), (1e-4, INF, INF)]
)
def test_a_target_costs_what_was_spent_when_it_was_first_there(target: float, rounds: float, sent: float) -> None:
    assert cost_to(history(FAST), "round", target) == rounds
    assert cost_to(history(FAST), "bytes_sent", target) == sent
    assert math.isnan(cost_to(history(FAST), "wall_s", target))  # no time passes in a simulation


def test_the_first_time_counts_though_the_gap_opens_again() -> None:
    assert cost_to(history([1.0, 0.01, 0.5, 0.005]), "round", 0.01) == 10.0


def test_where_the_optimum_is_unknown_the_loss_relative_to_the_start_counts() -> None:
    unknown = history(FAST, suboptimality=[NAN] * 4)
    variants = [Variant("a", histories=[history(FAST)]), Variant("b", histories=[unknown])]
    assert measure(variants[:1]) == "suboptimality"
    assert measure(variants) == "loss"
    # The losses are 3, 1.2, 1.02 and 1.002.
    assert cost_to(unknown, "round", 0.4, "loss") == 10.0
    assert cost_to(unknown, "round", 0.3, "loss") == INF


def test_the_median_counts_what_failed_or_never_arrived_as_infinite() -> None:
    fast, slow, never = history(FAST), history(SLOW), history([1.0, 0.9, 0.9, 0.9])
    assert median_cost(Variant("", histories=[fast, slow, never]), "round", 0.1) == (20.0, 2)
    assert median_cost(Variant("", histories=[fast, never, never]), "round", 0.1) == (INF, 1)
    assert median_cost(Variant("", histories=[fast, slow], n_failed=1), "round", 0.1) == (20.0, 2)
    assert median_cost(Variant("", histories=[fast], n_failed=2), "round", 0.1) == (INF, 1)
    assert median_cost(Variant("", histories=[fast, slow], n_missing=3), "round", 0.1) == (10.0, 2)  # the lower middle
    assert median_cost(Variant("", n_failed=2), "round", 0.1) == (INF, 0)


def test_the_best_of_a_key_is_chosen_for_each_variant_apart() -> None:
    def variant(name: str, scale: str, gaps: list[float], n_failed: int = 0) -> Variant:
        return Variant(name, {"step.scale": scale, "other": "x"}, [history(gaps)] * (3 - n_failed), n_failed)

    chosen = best(
        [
            variant("a", "1", SLOW),
            variant("a", "2", FAST),
            variant("a", "4", FAST, n_failed=2),
            variant("b", "1", FAST),
            variant("b", "2", SLOW),
            variant("c", "1", [1.0, 0.9]),
            variant("c", "2", [1.0, 0.8]),
            variant("c", "4", [1.0, 0.7], n_failed=3),
        ],
        "step.scale",
        0.1,
    )
    assert [(v.name, v.settings["step.scale"]) for v in chosen] == [("a", "2"), ("b", "1"), ("c", "2")]
    with pytest.raises(InputError, match=r"--best .*: other, step.scale"):
        best(chosen, "seed", 0.1)


def test_the_table_has_a_section_a_target_and_a_row_a_variant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    variants = [
        Variant("quick", {"d": "3"}, [history(FAST, 1e6)] * 3),
        Variant("real", histories=[history(SLOW, wall_s=[0.0, 1.0, 2.0, 4.0])], n_failed=1, n_missing=2),
    ]
    comparison.print_costs(variants, [0.1, 0.01])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["0.1", "quick, d=3", "10", "-", "10", "30", "3 of 3"],
        ["", "real", "20", "2.00", "0.002", "60", "1 of 2"],
        ["0.01", "quick, d=3", "20", "-", "20", "60", "3 of 3"],
        ["", "real", "never", "never", "never", "never", "0 of 2"],
    ]
    assert "1 runs failed" in text
    assert "2 runs have not been run" in text


def test_every_target_has_its_own_best(capsys: pytest.CaptureFixture[str]) -> None:
    # The long step is the first to come near and does not come any nearer.
    long, short = [1.0, 0.1, 0.1, 0.1], [1.0, 0.5, 0.1, 0.01]
    variants = [Variant("a", {"step": name}, [history(gaps)]) for name, gaps in (("long", long), ("short", short))]
    comparison.print_costs(variants, [0.1, 0.01], best_of="step")
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if "│" in line]
    assert rows == [["0.1", "a, step=long", "10"], ["0.01", "a, step=short", "30"]]


SWEEP = """\
workers = 4
[base]
rounds = 40
data = {source = "synthetic", n_samples = 100, n_features = 4, shards = 8}
objective = {kind = "least_squares", l2 = 0.1}
record = {every = 5, optimum = true}
[[variant]]
name = "coded"
placement.replication = 2
[[variant]]
name = "refused"
placement.replication = 5
[grid]
step.scale = [0.2, 1.0]
seed = [0, 1, 2]
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    (directory / "sweep.toml").write_text(SWEEP)
    assert run_sweep(read_sweep(directory / "sweep.toml"), directory / "out", 1, []) == 6
    return directory / "out"


def test_a_sweep_is_read_as_its_variants_without_the_seed(sweep: Path) -> None:
    variants = read_variants([sweep])
    assert [variant.label for variant in variants] == [
        f"{name}, step.scale={scale}" for name in ("coded", "refused") for scale in ("0.2", "1.0")
    ]
    assert [(len(v.histories), v.n_failed, v.n_missing) for v in variants] == [(3, 0, 0)] * 2 + [(0, 3, 0)] * 2
    assert variants[0].histories[0]["round"].tolist() == list(range(0, 41, 5))
    assert variants[0].histories[0]["suboptimality"][-1] > variants[1].histories[0]["suboptimality"][-1]


def test_runs_that_differ_in_the_seed_alone_are_one_variant(sweep: Path) -> None:
    with (sweep / "results.csv").open(newline="") as file:
        names = list(dict.fromkeys(row["run"] for row in csv.DictReader(file) if row["status"] == "done"))
    variants = read_variants([sweep / "runs" / name for name in names])
    assert [(v.label, len(v.histories)) for v in variants] == [(names[0], 3), (names[3], 3)]


def test_the_command_compares_a_sweep(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / "sweep.svg"
    command = ["report", str(sweep), "--targets", "1e-3", "--best", "step.scale", "--figure", str(picture)]
    assert main([*command, "--title", "Coded and refused"]) == 0
    printed = capsys.readouterr().out
    assert "coded, step.scale=1.0" in printed
    assert "step.scale=0.2" not in printed.replace("refused, step.scale=0.2", "")
    first = picture.read_bytes()
    assert b"<svg" in first
    assert main([*command, "--title", "Coded and refused"]) == 0
    assert picture.read_bytes() == first  # so that it can be kept under version control


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--targets", "low"], "'low'"),
        (["--targets", "nan"], "above 0"),
        (["--targets", "1e-2,-1"], "above 0"),
        (["--targets", ""], "''"),
        (["--gap", "nan"], "--gap must be above 0 and below 1"),
        (["--best", "step.scale", "--gap", "0"], "--gap must be above 0 and below 1"),
        (["--figure", "loss.svg", "--floor", "-1"], "--floor"),
        (["--best", "seed"], "step.scale"),
        (["--figure", "loss.gif"], ".svg"),
        (["--png", "loss.png"], "one after the other"),
    ],
)
def test_wrong_options_are_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], options: list[str], word: str
) -> None:
    assert main(["report", str(sweep), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert word in said


@pytest.mark.parametrize("option", ["--title", "--floor"])
def test_what_is_of_a_figure_is_refused_without_one(
    sweep: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["report", str(next((sweep / "runs").iterdir())), option, "0.1"]) == 2
    assert "Add --figure" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "round,loss\n1,2\n", "member,variant"])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "results.csv").write_text(damage)
    with pytest.raises(InputError, match="damaged"):
        read_variants([tmp_path])


def test_a_sweep_that_was_killed_has_to_go_on_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert main(["report", str(tmp_path)]) == 2
    assert "goco sweep again" in capsys.readouterr().err


def test_curves_over_seeds_end_where_the_shortest_does() -> None:
    points, values = figures.curves([history(FAST), history(SLOW[:3])], "round", "suboptimality")
    assert points.tolist() == [0.0, 10.0, 20.0]
    np.testing.assert_allclose(values, [FAST[:3], SLOW[:3]], rtol=1e-12)
    # The optimum is known to rounding only, and a logarithm wants something positive.
    assert figures.curves([history([1.0, 0.0, -1e-17])], "round", "suboptimality")[1].min() == pytest.approx(
        figures.FLOOR
    )


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_a_picture_of_what_is_known(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    real = Variant("real", histories=[history(SLOW, wall_s=[0.0, 1.0, 2.0, 4.0])])
    simulated = Variant("simulated", histories=[history(FAST), history(SLOW)])
    old = Variant("old", histories=[history(FAST, bytes_sent=[NAN] * 4)])
    for place, variants in enumerate(([real], [real, simulated], [old], [simulated, Variant("none", n_failed=2)])):
        path = tmp_path / f"{place}{suffix}"
        figures.draw(variants, path)
        assert path.stat().st_size > 5_000
    svg = tmp_path / "0.svg"
    figures.draw([real], svg)
    assert svg.read_text().count('id="axes_') == 4
    figures.draw([simulated], svg)
    assert svg.read_text().count('id="axes_') == 3


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="nothing to draw"):
        figures.draw([Variant("", n_failed=1)], tmp_path / "a.svg")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        figures.draw([Variant("", histories=[history(FAST)])], tmp_path / "file" / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"goco-mpi\[report\]"):
        figures.draw([Variant("", histories=[history(FAST)])], tmp_path / "a.svg")
