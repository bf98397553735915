"""Decentralized learning with gradient coding on MPI: training that does not wait for the slowest node.

The public names load on first use; importing the package imports neither MPI nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goco_mpi.api import Result, minimize, train
    from goco_mpi.config import parse_config, read_config
    from goco_mpi.errors import GocoError, InputError, RunError
    from goco_mpi.schema import RunConfig

__version__ = "0.1.0"

_HOMES = {
    "train": "api",
    "minimize": "api",
    "Result": "api",
    "read_config": "config",
    "parse_config": "config",
    "RunConfig": "schema",
    "GocoError": "errors",
    "InputError": "errors",
    "RunError": "errors",
}

__all__ = [
    "GocoError",
    "InputError",
    "Result",
    "RunConfig",
    "RunError",
    "__version__",
    "minimize",
    "parse_config",
    "read_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
