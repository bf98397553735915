"""``goco report --html``: the page of real, simulated, old and damaged records."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from goco_mpi.cli import main
from goco_mpi.reporting import account, curves, pictures

pytest.importorskip("matplotlib", reason="pages need the extra [report]")
pytest.importorskip("jinja2", reason="pages need the extra [report]")

N_RANKS = 2
EXPERIMENT = """\
rounds = 30
[data]
source = "synthetic"
n_samples = 200
n_features = 4
shards = 4
[objective]
kind = "least_squares"
[placement]
replication = 1
[record]
every = 2
optimum = true
timeline = true
"""
VOID = {"meta", "link", "br", "hr", "img", "input"}
SECTIONS = ("result", "limits", "progress", "ranks", "ages", "layout", "experiment", "environment")


class Page(HTMLParser):
    """What a page is made of; fails where its elements are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def said(self) -> str:
        """Return the text, in single spaces."""
        return " ".join(self.text.split())

    def figures(self) -> list[str]:
        """Return what is said of each figure to those who do not see it."""
        return [str(attributes.get("aria-label")) for tag, attributes in self.tags if attributes.get("role") == "img"]


@pytest.fixture(scope="module")
def recorded(run_experiment: Callable[..., Path]) -> Path:
    """A run of two ranks, made once."""
    return run_experiment("two_ranks")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation of the same, with late workers."""
    directory = tmp_path_factory.mktemp("simulated")
    (directory / "experiment.toml").write_text(EXPERIMENT)
    words = ["simulate", str(directory / "experiment.toml"), "--out", str(directory / "in_silico"), "--quiet"]
    settings = ["stragglers.kind=bernoulli", "stragglers.p=0.3", "placement.replication=2"]
    assert main([*words, "--workers", "6", *[word for one in settings for word in ("--set", one)]]) == 0
    return directory / "in_silico"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures empty, for tests of what is said."""
    leave_undrawn(monkeypatch)


def leave_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures empty from now on: drawing takes most of the time."""
    for module in (curves, pictures):
        monkeypatch.setattr(module, "draw", lambda name, fill, *size: '<svg viewBox="0 0 1 1"></svg>')


def page(tmp_path: Path, *runs: Path) -> Page:
    """Return the page of some runs."""
    file = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--html", str(file)]) == 0
    return Page(file.read_text(encoding="utf-8"))


def copy(run: Path, tmp_path: Path, name: str = "copied") -> Path:
    """Return a copy of a record, to be changed."""
    shutil.copytree(run, tmp_path / name)
    return tmp_path / name


def test_a_page_of_two_runs_has_all_sections_and_figures_and_needs_nothing_else(
    recorded: Path, simulated: Path, tmp_path: Path
) -> None:
    found = page(tmp_path, recorded, simulated)
    names = Counter(attributes["id"] for _, attributes in found.tags if "id" in attributes)
    assert set(names.values()) == {1}
    assert set(SECTIONS) <= set(names)
    assert "script" not in {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        for key in ("href", "xlink:href", "src"):
            address = attributes.get(key)
            if address is not None and not address.startswith("data:"):
                assert address[0] == "#", (tag, address)
                assert address[1:] in names, (tag, address)
        assert "@import" not in str(attributes.get("style"))
        assert "://" not in str(attributes.get("style"))
    for reference in re.findall(r"url\(#([^)]+)\)", (tmp_path / "page.html").read_text()):
        assert reference in names
    figures = found.figures()
    # Progress against four costs, consensus; heat map, seconds, completion; ages; graph, shards, coverage; two of the
    # other.
    assert len(figures) == 5 + 3 + 1 + 3 + 2
    assert all(len(label) > 10 for label in figures)
    svg = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(svg) == len(figures) + 1  # the heat map has a narrow one
    assert all("viewbox" in attributes and not {"width", "height"} & set(attributes) for attributes in svg)


@pytest.mark.usefixtures("undrawn")
def test_numbers_of_the_record_are_on_the_page(recorded: Path, tmp_path: Path) -> None:
    result = json.loads((recorded / "run.json").read_text())["result"]
    said = page(tmp_path, recorded).said()
    assert f"{result['loss']:.6g}" in said
    assert f"goco on synthetic, 2 ranks, 30 rounds in {result['wall_s']:.3g} s; all rounds done." in said
    assert "What limited it" in said
    assert "A rank was ready after up to" in said  # the rows are generated: none were read
    assert "data.n_features" in said
    assert "1 holder a shard, 2 shards a rank" in said
    assert "Spectral gap 1: one round of gossip makes all ranks agree" in said


@pytest.mark.usefixtures("undrawn")
def test_what_comes_from_a_record_is_text_and_nothing_else(recorded: Path, tmp_path: Path) -> None:
    bad = copy(recorded, tmp_path, "<b>bold & <script>")
    document = json.loads((bad / "run.json").read_text())
    evil = '"><script>alert(1)</script>'
    document["environment"]["platform"] = evil
    document["config"]["data"]["source"] = f"{evil}.npz"
    document["result"]["stopped_by"] = evil
    (bad / "run.json").write_text(json.dumps(document))
    text = (bad / "ranks.csv").read_text().splitlines()
    text[0] += ",<i>odd</i>"
    (bad / "ranks.csv").write_text("\n".join([text[0], *(f"{line},<u>x</u>" for line in text[1:])]))
    found = page(tmp_path, bad, recorded)
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in found.tags}
    assert evil in found.said()
    assert "<b>bold & <script>" in found.said()
    assert "<u>x</u>" in found.said()


@pytest.mark.usefixtures("undrawn")
def test_a_simulation_says_that_no_time_passed(simulated: Path, tmp_path: Path) -> None:
    found = page(tmp_path, simulated)
    said = found.said()
    assert "goco on synthetic, 6 simulated workers, 30 rounds; all rounds done." in said
    assert "Seconds: The run was simulated in rounds, in which no time passes." in said
    assert "Who was slow when is not known. The run was simulated: ranks have no record of their own." in said
    assert "wall time (s): no record says what it took." in said
    assert "seconds" not in " ".join(found.figures())


def test_without_a_timeline_who_was_slow_is_shown_by_rounds(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = copy(recorded, tmp_path)
    (bare / "timeline.npz").unlink()
    assert 'viewBox="0 0 2' in pictures.heat_map(account.read(bare), "by-rounds", 4.0)
    leave_undrawn(monkeypatch)
    found = page(tmp_path, bare)
    assert "Times of steps: The run was made with record.timeline = false." in found.said()
    assert "By rounds, as times were not kept" in found.said()
    assert len(found.figures()) == 12


@pytest.mark.usefixtures("undrawn")
def test_without_events_ages_are_said_to_be_unknown(recorded: Path, tmp_path: Path) -> None:
    bare = copy(recorded, tmp_path)
    (bare / "events.npz").unlink()
    (bare / "timeline.npz").unlink()
    found = page(tmp_path, bare)
    assert "ages of vectors are not known. The run was made with record.events = false." in found.said()
    assert len(found.figures()) == 10


@pytest.mark.usefixtures("undrawn")
def test_what_several_records_lack_is_said_once(recorded: Path, tmp_path: Path) -> None:
    runs = [recorded, *(copy(recorded, tmp_path, name) for name in ("one", "two"))]
    for run in runs[1:]:
        (run / "events.npz").unlink()
    said = page(tmp_path, *runs).said()
    assert said.count("Not in the records") == 1
    assert len(re.findall(r"one, two: events: ", said)) == 1
    said = page(tmp_path, *runs[1:]).said()
    assert len(re.findall(r"(?<!two: )Events: ", said)) == 1


@pytest.mark.usefixtures("undrawn")
def test_damaged_tables_are_named_and_the_rest_is_shown(recorded: Path, tmp_path: Path) -> None:
    damaged = copy(recorded, tmp_path)
    (damaged / "events.npz").write_bytes(b"It was a bright cold day in April")
    found = page(tmp_path, damaged)
    assert "events.npz' is damaged" in found.said()
    assert len(found.figures()) == 10


@pytest.mark.usefixtures("undrawn")
def test_an_old_record_says_what_it_lacks(recorded: Path, tmp_path: Path) -> None:
    old = copy(recorded, tmp_path)
    lines = [line.rsplit(",", 2)[0] for line in (old / "history.csv").read_text().splitlines()]
    (old / "history.csv").write_text("\n".join(lines))
    (old / "ranks.csv").write_text("rank,rounds,wall_s,wait_s\n0,30,1.0,0.5\n1,30,1.0,0.5\n")
    document = json.loads((old / "run.json").read_text())
    document["config"]["data"]["no_such_key"] = 1
    (old / "run.json").write_text(json.dumps(document))
    said = page(tmp_path, old).said()
    assert "Bytes sent: the record is older than that column." in said
    assert "Completion rates are not known" in said
    assert "not one that this version understands" in said
    assert "no_such_key" in said


def test_a_worker_alone_has_a_graph_without_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    words = ["simulate", str(tmp_path / "experiment.toml"), "--out", str(tmp_path / "alone"), "--quiet"]
    assert main([*words, "--workers", "1", "--set", "rounds=4"]) == 0
    assert "<svg" in pictures.graph(account.read(tmp_path / "alone"), "alone")
    leave_undrawn(monkeypatch)
    assert "0 neighbours each" in page(tmp_path, tmp_path / "alone").said()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("error")
def test_a_run_that_stopped_before_its_first_round_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    words = ["simulate", str(tmp_path / "experiment.toml"), "--out", str(tmp_path / "at_once"), "--quiet", "--time"]
    assert main([*words, "--workers", "2", "--set", "stop.target_loss=100"]) == 0
    assert "Where the time went is not known" in page(tmp_path, tmp_path / "at_once").said()


@pytest.mark.usefixtures("undrawn")
def test_with_a_master_nobody_gossips(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    words = ["simulate", str(tmp_path / "experiment.toml"), "--out", str(tmp_path / "central"), "--quiet"]
    settings = ["method.kind=gradient_coding", "placement.kind=cyclic", "placement.replication=2"]
    assert main([*words, "--workers", "4", *[word for one in settings for word in ("--set", one)]]) == 0
    said = page(tmp_path, tmp_path / "central").said()
    assert "Who works for the master, rank 0: star" in said
    assert "gossips with" not in said


@pytest.mark.usefixtures("undrawn")
def test_deaths_are_told_and_what_went_with_them(recorded: Path, tmp_path: Path) -> None:
    bereft = copy(recorded, tmp_path)
    (bereft / "events.npz").unlink()
    (bereft / "timeline.npz").unlink()
    document = json.loads((bereft / "run.json").read_text())
    document["result"] |= {"deaths": [{"rank": 1, "round": 7, "noticed": {"0": 7}}], "stopped_by": "lost_shard"}
    (bereft / "run.json").write_text(json.dumps(document))
    rows = (bereft / "ranks.csv").read_text().splitlines()[:2]
    (bereft / "ranks.csv").write_text("\n".join(rows))
    said = page(tmp_path, bereft).said()
    assert "died: rank 1" in said
    assert "Events: Ranks died, and their part of the record with them." in said
    assert "How well shards were covered is not known: ranks died." in said


def test_the_same_records_give_the_same_page(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert curves.consensus([account.read(recorded)]) == curves.consensus([account.read(recorded)])
    leave_undrawn(monkeypatch)
    page(tmp_path, recorded)
    first = (tmp_path / "page.html").read_bytes()
    page(tmp_path, recorded)
    assert (tmp_path / "page.html").read_bytes() == first


@pytest.mark.usefixtures("undrawn")
def test_the_command_prints_its_table_and_where_the_page_is(
    recorded: Path, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "page.html"
    assert main(["report", str(recorded), "--html", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "two ranks" in printed
    assert f"page in {file}" in printed
    assert main(["report", str(recorded), str(simulated), "--html", str(file)]) == 0
    assert capsys.readouterr().out == f"page in {file}\n"  # a simulation has no seconds to put into a table
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("option", ["--png", "--timeline", "--reference"])
def test_what_a_simulation_has_no_seconds_for_is_refused_beside_its_page_too(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    value = simulated if option == "--reference" else tmp_path / "other"
    assert main(["report", str(simulated), "--html", str(tmp_path / "page.html"), option, str(value)]) == 2
    assert "is a simulation, in which no time passes" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_place_that_cannot_be_written_is_one_line_and_an_earlier_page_stays(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "page.html"):
        assert main(["report", str(recorded), "--html", str(place)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"goco: --html {str(place)!r} cannot be written")
        assert said.count("\n") == 1
    file = tmp_path / "page.html"
    file.write_text("earlier")
    assert main(["report", str(tmp_path / "file"), "--html", str(file)]) == 2
    assert file.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page.html"]


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_without_what_it_is_made_with_the_way_out_is_named(
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["report", str(recorded), "--html", str(tmp_path / "page.html")]) == 2
    assert "pip install 'goco-mpi[report]'" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_sweep_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 2
    assert "--html" in capsys.readouterr().err
