"""How figures of a page look, and how they become part of it.

Each is a small one, about as wide as a telephone: a page puts several side by side or below each other, and text stays
readable. Ink is the page's own colour, so that figures follow a dark page; text is text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from goco_mpi.reporting.figures import COLORS, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.1, 2.75
"""Inches of a figure."""
INK = "#010203"
"""Stands for the page's own colour."""
SERIES = COLORS[:-1]
"""Colours of runs; black would vanish on a dark page."""
PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
GROUP_ID = re.compile(r'<g id="[^"]*"')


def style(place: int) -> dict[str, Any]:
    """Return how the run at a place of several is drawn."""
    return {"color": SERIES[place % len(SERIES)], "linestyle": STYLES[place // len(SERIES) % len(STYLES)]}


def draw(name: str, fill: Callable[[Axes], None], width: float = WIDTH, height: float = HEIGHT) -> str:
    """Return a figure as SVG to stand in a page.

    Parameters
    ----------
    name : str
        Of this figure alone in its page: what is named in the SVG is told apart by it.
    fill : callable (Axes) -> None
        Draws.
    width, height : float
        Inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    look: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlesize": 9,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.12,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "path.simplify_threshold": 0.5,
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        fill(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _inline(text.getvalue())


def _inline(text: str) -> str:
    """Return an SVG file as an element: it scales, and shares no name with another figure."""
    text = METADATA.sub("", PROLOGUE.sub("", text))
    text = GROUP_ID.sub("<g", text)
    text = re.sub(r"(?<=<svg )([^>]*)", _without_size, text, count=1)
    return text.replace(INK, "currentColor").strip()


def _without_size(attributes: re.Match[str]) -> str:
    kept = re.sub(r'\s*\b(?:width|height)="[^"]*"', "", attributes.group(0))
    return f'aria-hidden="true" focusable="false" {kept.strip()}'
