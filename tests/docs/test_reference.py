"""The reference that the site makes, and the links of all pages."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from markdown_blocks import PAGES, ROOT

from goco_mpi import cli
from goco_mpi.config import parse_config
from goco_mpi.schema import RunConfig


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hooks"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


hooks = load()


def test_every_key_has_a_meaning_and_every_number_a_unit() -> None:
    lacking = [
        f"{section}.{key.name}"
        for section, _, keys in hooks.sections()
        for key in keys
        if not key.meaning or (key.numeric and not key.has_unit)
    ]
    assert not lacking


def test_the_reference_has_all_keys_of_all_sections() -> None:
    listed = {f"{section}.{key.name}".lstrip(".") for section, _, keys in hooks.sections() for key in keys}
    config = RunConfig()
    expected = set()
    for name in RunConfig.__struct_fields__:
        inner = getattr(getattr(config, name), "__struct_fields__", None)
        expected |= {name} if inner is None else {f"{name}.{key}" for key in inner}
    assert listed == expected
    page = hooks.keys_page()
    assert all(f"| `{name.rpartition('.')[2]}` |" in page for name in expected)


def test_a_default_in_the_reference_is_what_the_key_is_left_out_for() -> None:
    for section, _, keys in hooks.sections():
        for key in keys:
            if key.default and f"{section}.{key.name}" not in ("topology.edges",):
                line = f"{key.name} = {key.default}"
                tables = tomllib.loads(f"[{section}]\n{line}\n" if section else line)
                assert parse_config(tables) == parse_config({}), line


@pytest.mark.parametrize(
    ("section", "name", "type_", "default", "unit"),
    [
        ("deadline", "compute_s", "number or text", '"auto"', "s"),
        ("placement", "replication", "whole number", "", "workers"),
        ("stragglers", "link_p", "number or list", "0.0", "probability"),
        ("data", "standardize", "true or false", "false", ""),
        ("cost", "bytes_per_s", "number", "1000000000.0", "bytes/s"),
    ],
)
def test_a_key_is_shown_with_type_default_and_unit(
    section: str, name: str, type_: str, default: str, unit: str
) -> None:
    (key,) = (key for where, _, keys in hooks.sections() for key in keys if (where, key.name) == (section, name))
    assert (key.type, key.default, key.unit) == (type_, default, unit)


def test_every_command_is_in_the_reference_with_what_it_is_for() -> None:
    page = hooks.commands_page()
    commands = hooks.subcommands(cli.parser())
    for name in set(commands) - {"bench-rank"}:
        assert f"## `goco {name}`" in page
    assert "bench-rank" not in page.replace("{run", "")
    assert page.count("```text") == len(commands)


@pytest.mark.parametrize(
    ("markdown", "source", "place", "expected"),
    [
        ("[a](docs/plan.md#x)", "README.md", "index.md", "[a](plan.md#x)"),
        ("[a](../README.md)", "docs/plan.md", "plan.md", "[a](index.md)"),
        ("[a](../jobscripts/README.md)", "docs/clusters.md", "clusters.md", "[a](jobscripts.md)"),
        ("[a](../adr/1.md#y)", "docs/methods/goco.md", "methods/goco.md", "[a](../adr/1.md#y)"),
        ("[a](../goco_mpi/schema.py)", "docs/tutorial.md", "tutorial.md", "[a](reference/experiment-file.md)"),
        ("[a](../examples/x.py)", "docs/plan.md", "plan.md", "[a](examples/x.py)"),
        ("[a](#here) [b](https://x.org/y.md)", "README.md", "index.md", "[a](#here) [b](https://x.org/y.md)"),
        ("![a](docs/images/d.png)", "README.md", "index.md", "![a](images/d.png)"),
    ],
)
def test_links_lead_to_where_pages_are_on_the_site(markdown: str, source: str, place: str, expected: str) -> None:
    assert hooks.moved_links(markdown, source, place) == expected


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_to_files_of_the_repository_too(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", text)).strip().lower().replace(" ", "-") for text in headings
    }


def test_a_page_that_fetches_from_elsewhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    hooks.on_post_page('<script src="assets/a.js"></script><a href="https://x.org">x</a>', page=page, config=None)
    assert not caplog.records
    for html in (
        '<script src="https://x.org/a.js"></script>',
        '<link rel="stylesheet" href="//x.org/a.css">',
        "<img alt='' src=https://x.org/a.png>",
    ):
        caplog.clear()
        hooks.on_post_page(html, page=page, config=None)
        assert "index.md fetches" in caplog.text
