"""What a shard store is: the file ``manifest.json`` beside its arrays."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import msgspec

from goco_mpi.errors import InputError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a store holds.

    Attributes
    ----------
    schema_version : int
    n_features : int
    sizes : tuple of int
        Training rows of each shard: they come first, one shard after the other.
    n_test : int
        Rows to test on, behind them.
    sparse : bool
        Whether the features are CSR.
    dtype : {'float64', 'float32'}
        Of the features.
    n_stored : int
        Values of the features: of CSR ones not the zeros.
    labels : tuple of float or None
        All different targets, where they are few whole numbers.
    cut : dict
        The keys of ``[data]`` that have no say any more, as they were: ``partition`` and such.
    origin : dict
        Other keys, the seed and the software that it was made by.
    files : dict of str to int
        Size of each in bytes.
    checksums : dict of str to int
        Of those files that are read as a whole.
    """

    schema_version: int
    n_features: int
    sizes: tuple[int, ...]
    n_test: int
    sparse: bool
    dtype: str
    n_stored: int
    labels: tuple[float, ...] | None
    cut: dict[str, Any]
    origin: dict[str, Any]
    files: dict[str, int]
    checksums: dict[str, int]

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        return sum(self.sizes)

    @property
    def n_samples(self) -> int:
        """Number of all rows."""
        return self.n_train + self.n_test


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest of a store, with a checksum of itself.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    facts = msgspec.to_builtins(manifest)
    (directory / MANIFEST).write_text(json.dumps({**facts, "checksum": _checksum(facts)}, indent=1) + "\n")


def is_store(path: str) -> bool:
    """Return whether there is a shard store, whole or damaged."""
    try:
        return (Path(path) / MANIFEST).is_file()
    except (OSError, ValueError):  # no name of a file
        return False


def read_manifest(directory: str) -> Manifest:
    """Read the manifest of a store.

    Raises
    ------
    InputError
        If it cannot be read, is damaged, or of another version.
    """
    path = Path(directory) / MANIFEST
    try:
        facts = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"The shard store {directory!r} cannot be read: {MANIFEST}: {error.strerror}.") from None
    except ValueError:  # no JSON, or no text
        raise damage(directory, f"{MANIFEST} is not JSON") from None
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"The shard store {directory!r} has schema version {version}, and this goco reads {SCHEMA_VERSION}. "
            "Make it anew with goco shard."
        )
    if facts.pop("checksum", None) != _checksum(facts):
        raise damage(directory, f"{MANIFEST} has another checksum than when it was made")
    try:
        return msgspec.convert(facts, Manifest)
    except msgspec.ValidationError as error:
        raise damage(directory, f"{MANIFEST}: {error}") from None


def damage(directory: str, what: str) -> InputError:
    """Return the error of a store that is not as it was made."""
    return InputError(f"The shard store {directory!r} is damaged: {what}. Restore it, or make it anew with goco shard.")


def _checksum(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
