"""What computes here: versions of this package, of Python and of libraries."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from goco_mpi import __version__
from goco_mpi.core.objectives import kernels

LIBRARIES = ("mpi4py", "msgspec", "networkx", "numpy", "scikit-learn", "scipy", "threadpoolctl")


def software() -> dict[str, Any]:
    """Return versions of what computes: this package, Python, libraries, the git revision if any."""
    from importlib import metadata  # a run's every rank imports this module, and one calls it

    return {
        "goco_mpi": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "gradients": kernels.name(),
        "command": sys.argv,
    }


def _git_revision() -> str | None:
    """Return the revision of the checkout that this package runs from; None if it is installed."""
    import subprocess

    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
