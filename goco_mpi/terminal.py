"""Standard output, as tables are printed there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(width: int = 120) -> Console:
    """Return where to print a table: as wide as the terminal, or ``width`` columns in a log or a pipe.

    Text is printed as it is: a run's name may have square brackets in it.
    """
    from rich.console import Console

    return Console(markup=False, width=None if sys.stdout.isatty() else width)
