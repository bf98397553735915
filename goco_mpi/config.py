"""The experiment file: TOML to one frozen, validated `RunConfig`.

The keys are in `goco_mpi.schema`. What can be checked without knowing the number of workers is checked once, in
`goco_mpi.values` and `goco_mpi.pairings`; the rest in `goco_mpi.experiment`.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from goco_mpi.errors import InputError
from goco_mpi.manifest import is_store, read_manifest
from goco_mpi.pairings import resolve
from goco_mpi.schema import RunConfig, Section
from goco_mpi.values import NO_PATHS, check_values


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read an experiment file and apply ``key=value`` overrides.

    Parameters
    ----------
    path : str or Path
        A TOML file.
    overrides : sequence of str
        Such as ``"method.kind=dgd"``; the value is TOML, a bare word is a string.

    Returns
    -------
    RunConfig

    Raises
    ------
    InputError
        If the file is missing or not TOML, a key is unknown, or a value is not allowed.
    """
    path = Path(path)
    raw = read_toml(path, "experiment")
    for override in overrides:
        apply_override(raw, override)
    resolve_paths(raw, path.parent)
    return parse_config(raw)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read the tables of a TOML file; ``what`` says in an error which file it is.

    Raises
    ------
    InputError
        If the file is missing or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"The {what} file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The {what} file {str(path)!r} is not valid TOML: {error}.") from None


def parse_config(raw: dict[str, Any]) -> RunConfig:
    """Turn the tables of an experiment into a validated `RunConfig`.

    Examples
    --------
    >>> parse_config({"rounds": 5, "method": {"kind": "dgd"}}).placement.kind
    'uncoded'
    """
    refuse_unknown_keys(raw)
    raw = _as_stored(raw)
    try:
        config = msgspec.convert(raw, RunConfig)
    except msgspec.ValidationError as error:
        raise InputError(_explain(str(error), raw)) from None
    check_values(config)
    return resolve(config)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain tables, infinite deadlines spelt ``"inf"`` (JSON has none)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return "inf" if isinstance(value, float) and math.isinf(value) else value

    tables: dict[str, Any] = plain(msgspec.to_builtins(config))
    return tables


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a key in the tables of an experiment, as ``key=value`` says.

    Raises
    ------
    InputError
        If it does not say that.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set takes key=value, such as method.kind=dgd. Got {override!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    put(raw, key.strip(), value, f"--set {key.strip()}")


def _as_stored(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill in what is left out in ``[data]`` and a shard store as its source has decided already."""
    data = raw.get("data", {})
    source = data.get("source")
    if not isinstance(source, str) or source in NO_PATHS or not is_store(source):
        return raw
    manifest = read_manifest(source)
    return {**raw, "data": {"dtype": manifest.dtype, **manifest.cut, **data}}


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in the tables of an experiment; ``where`` begins an error.

    Examples
    --------
    >>> raw = {"rounds": 5}
    >>> put(raw, "method.kind", "dgd", "--set method.kind")
    >>> raw
    {'rounds': 5, 'method': {'kind': 'dgd'}}
    """
    *tables, last = key.split(".")
    for table in tables:
        inner = raw.setdefault(table, {})
        if not isinstance(inner, dict):
            raise InputError(f"{where}: {table!r} is a value, not a table.")
        raw = inner
    raw[last] = value


def resolve_paths(raw: dict[str, Any], base: Path) -> None:
    """Look a relative data path up from the current directory, then from the experiment file's."""
    for section, key in (("data", "source"), ("data", "targets"), ("cost", "trace")):
        table = raw.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if key == "source" and value in NO_PATHS:
            continue
        # os.path: a name too long for a file is no file rather than an error.
        if isinstance(value, str) and not os.path.exists(value) and os.path.exists(base / value):  # noqa: PTH110
            raw[section][key] = str(base / value)


def refuse_unknown_keys(raw: dict[str, Any], section: type[Section] = RunConfig, prefix: str = "") -> None:
    """Refuse tables of an experiment with a key that is none.

    Raises
    ------
    InputError
        Naming the nearest keys.
    """
    types = get_type_hints(section)
    for key, value in raw.items():
        if key not in types:
            import difflib  # only for who needs it: every rank imports this module

            near = difflib.get_close_matches(str(key), types, n=3, cutoff=0.5)
            where = f"in [{prefix[:-1]}]" if prefix else "at the top level"
            advice = f"Did you mean {' or '.join(near)}?" if near else f"Known keys: {', '.join(types)}."
            name = f"{prefix}{key}"
            raise InputError(f"Unknown key {name!r} {where}. {advice}")
        inner = types[key]
        if isinstance(inner, type) and issubclass(inner, Section):
            if not isinstance(value, dict):
                raise InputError(f"{prefix + key} must be a table. Got {value!r}.")
            refuse_unknown_keys(value, inner, f"{prefix}{key}.")


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def _explain(message: str, raw: dict[str, Any]) -> str:
    """Turn msgspec's message into ours: parameter, rule, value."""
    found = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*?)`)?", message, re.DOTALL)
    assert found is not None  # the pattern matches any text
    rule, where = found[1], found[2] or "experiment"
    expected = re.match(r"Expected `([^`]*)`", rule)
    if expected:
        names = [_WORDS.get(name.strip(), name.strip()) for name in expected[1].split("|")]
        rule = "must be " + " or ".join(name for name in names if name != "nothing")
        length = re.search(r"of length (\d+)", found[1])
        rule += f" of {length[1]}" if length else ""
    value: Any = raw
    for key in re.findall(r"[^.\[\]]+", where):
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit():
            value = value[int(key)]
    return f"{where} {rule}. Got {value!r}."


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dots in its keys: no key of an experiment has a table as its value.

    Examples
    --------
    >>> flat({"seed": 1, "data": {"shards": 4}})
    {'seed': 1, 'data.shards': 4}
    """
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
