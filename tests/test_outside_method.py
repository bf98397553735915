"""Methods from outside the package: what is refused. CONTRIBUTING.md, whose blocks are run, has one that works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from goco_mpi.cli import main
from goco_mpi.config import parse_config, to_dict
from goco_mpi.core.methods import METHODS, method_of
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.simulation.rounds import Simulation

MODULE = """\
from goco_mpi.core.methods.base import Descent
from goco_mpi.core.stacked.goco import StackedDescent


class Bare(Descent):
    name = "bare"


class Own(Bare):
    stacked = StackedDescent


class Strict(Own):
    mixings = ("stale",)


BARE, OWN, STRICT, NOTHING = Bare(), Own(), Strict(), 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of methods that can be imported."""
    (tmp_path / "methods_of_mine.py").write_text(MODULE)
    (tmp_path / "broken_of_mine.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("methods_of_mine", "broken_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "methods_of_mine"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nowhere_at_all:X", "cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
        ("broken_of_mine:X", "cannot be imported: ZeroDivisionError"),
        ("methods_of_mine:MISSING", "cannot be imported: AttributeError"),
        ("methods_of_mine:", "cannot be imported"),
        (":X", "cannot be imported"),
        ("methods_of_mine:NOTHING", "must be an object of a class derived.*Got 3"),
        ("methods_of_mine:Own", "must be an object of a class derived"),
        ("goco_mpi.core.methods:ALLREDUCE", "with exchange = 'gossip'"),
        ("methods_of_mine", "must be one of"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(own: str, kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        parse_config({"method": {"kind": kind}})
    assert "\n" not in str(refused.value)


def test_a_method_from_outside_computes_what_its_halves_say(own: str) -> None:
    tables = {"rounds": 20, "data": {"source": "synthetic", "n_samples": 80, "n_features": 3, "shards": 4}}
    tables |= {"objective": {"kind": "least_squares"}}
    mine = parse_config({**tables, "method": {"kind": f"{own}:OWN", "rates": "stated"}})
    assert lay_out(mine, 4).method is method_of(f"{own}:OWN")
    assert parse_config(to_dict(mine)) == mine
    theirs = parse_config({**tables, "method": {"kind": "goco", "rates": "stated"}})
    ends = [Simulation(config, 4).run(lambda round_, x: True) for config in (mine, theirs)]
    assert (ends[0] == ends[1]).all()


def test_a_method_without_a_twin_is_not_simulated(own: str) -> None:
    config = parse_config({"rounds": 2, "method": {"kind": f"{own}:BARE"}})
    with pytest.raises(InputError, match="has no twin to simulate"):
        Simulation(config, 4).run(lambda round_, x: True)


def test_messages_that_are_those_of_goco_are_refused(own: str) -> None:
    everybody = {"gossip_s": float("inf")}
    for section in ({"mixing": "running"}, {"momentum": 0.5}, {"compression": "quantize"}, {"gossip_rounds": 2}):
        with pytest.raises(InputError, match=f"method.{next(iter(section))}.*goco"):
            parse_config({"method": {"kind": f"{own}:OWN", **section}, "deadline": everybody})


@pytest.mark.parametrize("rule", ["fold", "symmetric"])
def test_a_rule_that_its_class_does_not_name_is_refused(own: str, rule: str) -> None:
    assert parse_config({"method": {"kind": f"{own}:STRICT"}}).method.mixing == "stale"
    with pytest.raises(InputError, match=rf"method.mixing = '{rule}' is not sound .* among its mixings. Use 'stale'"):
        parse_config({"method": {"kind": f"{own}:STRICT", "mixing": rule}, "deadline": {"gossip_s": "inf"}})


def test_a_method_from_outside_takes_its_own_time(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.toml").write_text(
        f'rounds = 20\n[data]\nsource = "synthetic"\nn_samples = 80\nn_features = 3\nshards = 4\n'
        f'[objective]\nkind = "least_squares"\n[method]\nkind = "{own}:OWN"\n'
    )
    assert main(["simulate", "e.toml", "--workers", "4", "--time", "--quiet"]) == 0
    assert main(["plan", "e.toml", "--nodes", "4"]) == 0
    assert "settings:" in capsys.readouterr().out


def test_every_method_inside_is_found_by_its_name() -> None:
    assert all(method_of(kind) is METHODS[kind] for kind in METHODS)
