"""Which columns of a table are features, which is the target: for formats that name and type them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns.

    Attributes
    ----------
    features : list of str
        In the order of the table: all but the target and ``data.partition_column``.
    target : str
    """

    features: list[str]
    target: str


def choose(called: str, config: DataConfig, schema: Any) -> Columns:
    """Tell features from targets.

    Parameters
    ----------
    called : str
        What messages call the table.
    config : DataConfig
    schema : pyarrow.Schema

    Raises
    ------
    InputError
        If there is no such target, a name stands for two columns, or a column is not of numbers.
    """
    import pyarrow as pa

    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"{called} must have columns of different names. Several are called {twice[0]!r}.")
    target = config.target_column or "target"
    check_there(called, "data.target_column", target, schema.names)
    if config.partition_column is not None:
        check_there(called, "data.partition_column", config.partition_column, schema.names)
    names = [name for name in schema.names if name not in (target, config.partition_column)]
    for name in (*names, target):
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(
                f"{called}: column {name!r} must hold real numbers. Got {kind}. Leave it out of the file, encode it, "
                "or, if it names groups of samples, make it data.partition_column."
            )
    if not names:
        raise InputError(f"{called} is empty: it has no column of features beside {target!r}.")
    return Columns(names, target)


def numbers(column: Any) -> NDArray[Any]:
    """Return an arrow array of numbers as ndarray, with NaN where there is none."""
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def check_there(called: str, parameter: str, name: str, known: list[str]) -> None:
    """Refuse the name of a column that is not there.

    Raises
    ------
    InputError
        If so.
    """
    if name not in known:
        raise InputError(f"{parameter} = {name!r}: {called} has no such column. It has {', '.join(known) or 'none'}.")


def names_of(called: str, name: str, column: Any) -> NDArray[Any]:
    """Return a column that names groups, as an array that numpy can sort.

    Raises
    ------
    InputError
        If it has no name for some sample, or lists and records for names.
    """
    import pyarrow as pa

    if pa.types.is_nested(column.type):
        raise InputError(
            f"data.partition_column = {name!r}: {called} must name groups by text or numbers. Got {column.type}."
        )
    if column.null_count:
        raise InputError(
            f"data.partition_column = {name!r}: {called} must name the group of every sample. It has "
            f"{column.null_count} empty places."
        )
    values = column.to_numpy()
    named: NDArray[Any] = values.astype(str) if values.dtype == np.dtype(object) else values
    return named
