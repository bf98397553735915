"""``goco completion``: a script with which a shell completes commands, options, files and the keys of ``--set``.

The script knows all words, so that completing starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from goco_mpi.errors import InputError

KEYS = "_goco_keys"
"""The shell function that completes a key of an experiment file."""


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    try:
        import shtab
    except ImportError:
        raise InputError("goco completion needs shtab: pip install 'goco-mpi[completion]'.") from None
    for command in _parsers(options.parser):
        for action in command._actions:
            metavar = str(action.metavar)
            if action.dest == "set":
                action.complete = {"bash": KEYS, "zsh": KEYS}  # type: ignore[attr-defined]
            elif "DIR" in metavar and "FILE" not in metavar and ".toml" not in metavar:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.type is Path or ".toml" in metavar or metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    words = " ".join(f"{name}=" for name in key_names())
    lines = {"bash": f'compgen -W "{words}" -- "$1"', "zsh": f"compadd -S '' -- {words}"}
    preamble = f"{KEYS}() {{\n  {lines[options.shell]}\n}}"
    print(shtab.complete(options.parser, options.shell, preamble=preamble).rstrip())
    return 0


def key_names() -> list[str]:
    """Return the dotted names of all keys of an experiment file.

    Examples
    --------
    >>> key_names()[:3]
    ['seed', 'rounds', 'data.source']
    """
    import msgspec

    from goco_mpi.schema import RunConfig

    names = []
    for field in msgspec.structs.fields(RunConfig):
        inner = getattr(field.default, "__struct_fields__", None)
        names += [field.name] if inner is None else [f"{field.name}.{name}" for name in inner]
    return names


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _parsers(command)
