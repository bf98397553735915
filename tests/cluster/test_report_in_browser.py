"""The page of ``goco report --html`` as a browser shows it: headless Chromium, at two widths, light and dark."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm

from goco_mpi.cli import main

pytestmark = pytest.mark.cluster

N_RANKS = 4
EXPERIMENT = """\
rounds = 60
[data]
source = "digits"
shards = 8
[placement]
replication = 2
[stragglers]
kind = "slow"
ranks = [2]
factor = 8.0
work_s = 2e-3
[record]
every = 2
optimum = true
timeline = true
"""
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SMALLEST_TEXT = 7.0
"""Pixels of a letter's height in a figure: what a telephone's own labels have."""
CONTRAST = 4.5
"""Of text to its ground: WCAG 2.2, level AA."""

FIGURES = """() => [...document.querySelectorAll('figure svg')].filter(svg => svg.getClientRects().length).map(svg => {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().height);
    return {left: box.left, right: box.right, width: box.width, height: box.height, text: Math.min(...texts),
            marks: svg.querySelectorAll('path, image, use').length};
})"""
CONTRASTS = """() => {
    const channels = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const found = channels(getComputedStyle(element).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found;
        }
    };
    return [...document.querySelectorAll('h1, h2, h3, h4, p, li, a, th, td, figcaption, summary, code, small')]
        .filter(element => element.getClientRects().length && element.textContent.trim())
        .map(element => {
            const [a, b] = [light(channels(getComputedStyle(element).color)), light(ground(element))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 40)];
        });
}"""


@pytest.fixture(scope="module")
def browser(need: Callable[[str | None], None], required: bool) -> Iterator[Any]:
    """Debian's or any other Chromium, driven by playwright."""
    if required and not shutil.which("chromium"):
        slurm.install(["chromium"])
    need(None if shutil.which("chromium") else "no chromium: apt-get install chromium")
    need(None if importlib.util.find_spec("playwright") else "no playwright: pip install 'goco-mpi[browser]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(run_experiment: Callable[..., Path]) -> Path:
    """The page of a run with a slow rank, an allreduce, one with a death as its record tells it, and a simulation."""
    slow = run_experiment("a_slow_rank")
    together = run_experiment("allreduce", "method.kind=allreduce", "placement.replication=1")
    simulated, bereft = slow.with_name("simulated"), slow.with_name("bereft")
    experiment = str(slow.parent / "experiment.toml")
    assert main(["simulate", experiment, "--workers", "40", "--out", str(simulated), "--quiet"]) == 0
    shutil.copytree(together, bereft, ignore=shutil.ignore_patterns("*.npz"))
    document = json.loads((bereft / "run.json").read_text())
    document["result"]["deaths"] = [{"rank": 3, "round": 7, "noticed": {"0": 7}}]
    (bereft / "run.json").write_text(json.dumps(document))
    (bereft / "ranks.csv").write_text("\n".join((bereft / "ranks.csv").read_text().splitlines()[:-1]))
    page = slow.with_name("page.html")
    assert main(["report", *map(str, (slow, together, simulated, bereft)), "--html", str(page)]) == 0
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_readable_and_complains_of_nothing(browser: Any, file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]

    assert page.evaluate("document.documentElement.scrollWidth") == width
    figures = page.evaluate(FIGURES)
    assert len(figures) >= 15
    for figure in figures:
        assert 0 <= figure["left"] < figure["right"] <= width
        assert figure["width"] > 0.7 * min(width, 400)
        assert figure["height"] > 60
        assert figure["text"] >= SMALLEST_TEXT
        assert figure["marks"] > 3

    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width  # wide tables scroll inside
    faint = [(round(ratio, 2), text) for ratio, text in page.evaluate(CONTRASTS) if ratio < CONTRAST]
    assert faint == []
    for link in page.query_selector_all("nav a"):
        assert page.query_selector(link.get_attribute("href")) is not None
    page.close()
