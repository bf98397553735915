"""The code blocks of a page, and what its inline code names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "jobscripts/README.md",
        *ROOT.glob("docs/**/*.md"),
    ]
)


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of its fence, its language ('' for what is no code) and its title."""

    line: int
    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page.

    Those that are indented are equations and the like; `indented` returns them.
    """
    found = []
    for token in MarkdownIt().parse((ROOT / page).read_text()):
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            title = rest.removeprefix('title="').removesuffix('"')
            assert token.map is not None
            assert not rest or rest == f'title="{title}"', f"{page}:{token.map[0] + 1}: {token.info}"
            found.append(Block(token.map[0] + 1, language, title, token.content))
    return found


def indented(page: str) -> list[str]:
    """Return the indented blocks of a page."""
    return [token.content for token in MarkdownIt().parse((ROOT / page).read_text()) if token.type == "code_block"]


def inline_code(page: str) -> Iterator[str]:
    """Go through the inline code of a page, tables included."""
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text()):
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content
