"""The versions of ``run.json``, and older ones brought up to the newest.

1. ``config``, ``environment`` and ``result``; keys of the result came in the course of it
2. all keys of the result, always: null where there is nothing to say

Whoever changes what a key means, or takes one away, gives the new form the next version and adds an upgrade here, with
a record of the old one in ``tests/records``. Keys that are new and may be missing need no new version, nor do columns.
The config is that of its time: keys that came later have their defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from goco_mpi.errors import InputError

VERSION = 2

Document = dict[str, Any]


def upgraded(document: Document, path: str) -> Document:
    """Return ``run.json`` in the newest version.

    Parameters
    ----------
    document : dict
    path : str
        Of the run directory, for the error.

    Returns
    -------
    dict
        ``schema_version`` stays what it was.

    Raises
    ------
    InputError
        If this goco does not know the version.

    Examples
    --------
    >>> run = upgraded({"schema_version": 1, "config": {}, "environment": {}, "result": {"loss": 0.5}}, "runs/old")
    >>> run["result"]["stopped_by"], run["result"]["resumed_from"]
    ('rounds', None)
    """
    version = document.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise InputError(
            f"{path!r} has schema version {version}, and this goco reads 1 to {VERSION}. Use the version of goco that "
            "wrote it."
        )
    for step in range(version, VERSION):
        document = UPGRADES[step](document)
    return document


def _from_1(document: Document) -> Document:
    """Fill in what results lacked before runs could be stopped, replayed and resumed."""
    lacking: Document = {"stopped_by": "rounds"}
    lacking |= dict.fromkeys(("momentum", "gradient_dissimilarity", "resumed_from", "events_sha256"))
    return {**document, "result": {**lacking, **document["result"]}}


UPGRADES: dict[int, Callable[[Document], Document]] = {1: _from_1}
"""From a version to the next."""
