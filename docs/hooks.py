"""What the documentation site has beyond the pages of this directory; mkdocs calls the functions ``on_*``.

The README and others of the repository's own pages become pages of the site, and the reference of the experiment file
and of the command line is made from `goco_mpi.schema` and `goco_mpi.cli`: neither is written twice.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import logging
import os
import posixpath
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from goco_mpi import cli, schema

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "jobscripts/README.md": "jobscripts.md",
}
"""Pages of the repository outside docs/, and where they are on the site."""
MADE = {"goco_mpi/schema.py": "reference/experiment-file.md", "goco_mpi/cli.py": "reference/command-line.md"}
"""What a link to a source file leads to on the site: the page that is made from it."""
DECISIONS = "Decisions"
"""The part of the navigation that lists docs/adr/."""
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", tuple: "list"}


@dataclass(frozen=True)
class Key:
    """A key of the experiment file, as the reference shows it; ``numeric``: whether it may be a number."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str
    numeric: bool
    has_unit: bool


def sections() -> Iterator[tuple[str, str, list[Key]]]:
    """Go through the tables of the experiment file: name, what it is about, keys. The top level is named ''."""
    hints = get_type_hints(schema.RunConfig)
    tables = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, schema.Section)}
    for name, section in {"": schema.RunConfig, **tables}.items():
        texts = attribute_docstrings(section)
        keys = [
            _key(field, get_type_hints(section, include_extras=True)[field.name], texts.get(field.name, ""))
            for field in msgspec.structs.fields(section)
            if name or field.name not in tables
        ]
        yield name, inspect.getdoc(section) or "", keys


def attribute_docstrings(section: type) -> dict[str, str]:
    """Return the texts that follow the fields of a class, on one line each."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _key(field: msgspec.structs.FieldInfo, hint: Any, meaning: str) -> Key:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = tuple(option for option in options if option is not type(None))
    plain = [get_args(option)[0] if get_origin(option) is Annotated else option for option in options]
    units = {meta.extra["unit"] for option in options for meta in getattr(option, "__metadata__", ())}
    default = field.default
    return Key(
        name=field.name,
        type=" or ".join(WORDS[get_origin(kind) or kind] for kind in plain),
        default="" if default is None else toml(default),
        unit=" ".join(units),
        meaning=meaning,
        numeric=any(kind in (int, float) for kind in plain),
        has_unit=bool(units),
    )


def toml(value: object) -> str:
    """Return a default as one writes it into an experiment file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def keys_page() -> str:
    """Return the reference of the experiment file."""
    lines = [
        "# The experiment file",
        "",
        "Every key, with its type, default and unit. The file is TOML; `--set section.key=value` changes a key from",
        "the command line. A key without a default is unset. What is wrong is refused before the first round, with the",
        "way out.",
    ]
    for name, about, keys in sections():
        lines += ["", f"## `[{name}]`" if name else "## Top level", "", about if name else "", ""]
        lines += ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
        for key in keys:
            default = f"`{key.default}`" if key.default else ""
            lines.append(f"| `{key.name}` | {key.type} | {default} | {key.unit} | {cell(key.meaning)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return a text as it may stand in a cell of a table."""
    return text.replace("``", "`").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")


def commands_page() -> str:
    """Return the reference of the command line: what ``goco COMMAND --help`` prints."""
    parser = cli.parser()
    lines = ["# The command line", "", *_help(parser)]
    commands = subcommands(parser)
    for name, purpose in _purposes(parser).items():
        lines += ["", f"## `goco {name}`", "", f"{purpose[0].upper()}{purpose[1:]}.", "", *_help(commands[name])]
    return "\n".join(lines) + "\n"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's commands."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _purposes(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return what each command is for; those that are for goco itself do not say, and are left out."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest: action.help or "" for action in commands._choices_actions}


def _help(parser: argparse.ArgumentParser) -> list[str]:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110)
    return ["```text", parser.format_help().rstrip(), "```"]


def moved_links(markdown: str, source: str, place: str) -> str:
    """Return a page with its relative links as they are on the site.

    Parameters
    ----------
    markdown : str
    source : str
        The page in the repository, such as ``docs/clusters.md``.
    place : str
        On the site, such as ``clusters.md``.
    """

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if re.match(r"[a-z]+:", target) or not target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = {**MOVED, **MADE}.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    return re.sub(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", link, markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the decisions in the navigation."""
    pages = [f"adr/{page.name}" for page in sorted((ROOT / "docs/adr").glob("*.md"))]
    for part in config.nav or ():
        for entry in next(iter(part.values())):
            if isinstance(entry, dict) and DECISIONS in entry:
                entry[DECISIONS] = pages
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what is made, and what is elsewhere in the repository."""
    from mkdocs.structure.files import File

    for page, text in zip(MADE.values(), (keys_page(), commands_page()), strict=True):
        files.append(File.generated(config, page, content=text))
    for source, place in MOVED.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    for example in sorted((ROOT / "examples").rglob("*.*")):
        if example.suffix in (".py", ".toml"):
            name = os.fspath(example.relative_to(ROOT))
            files.append(File.generated(config, name, abs_src_path=os.fspath(example)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where things are on the site."""
    place = page.file.src_uri
    source = next((source for source, there in MOVED.items() if there == place), f"docs/{place}")
    return moved_links(markdown, source, place)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Warn of what a page would fetch from elsewhere: readers may be offline, and what they read is their own."""
    for address in re.findall(
        r"<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", output
    ):
        logging.getLogger("mkdocs.hooks").warning("%s fetches %s.", page.file.src_uri, address)
    return output
