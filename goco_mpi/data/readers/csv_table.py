"""CSV files, which rank 0 reads as a whole."""

from __future__ import annotations

import numpy as np

from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.columns import choose, names_of, numbers
from goco_mpi.data.readers.file import InputFile, needs, refusing
from goco_mpi.data.readers.memory import InMemory, held_by_rank_zero
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


def open_csv(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open a table whose first line names the columns, and whose column ``config.target_column`` has the targets."""
    return held_by_rank_zero(crew, lambda: _read(config))


def _read(config: DataConfig) -> InMemory:
    csv = needs("pyarrow.csv", "parquet", config.source)
    with InputFile(config.source) as file:
        if not file.size:
            raise InputError(f"{file.called} is empty.")
        with refusing(f"{file.called} is not a CSV file"):
            table = csv.read_csv(file, read_options=csv.ReadOptions(use_threads=False))
            names = table.column_names
        if all(_is_number(name) for name in names):
            raise InputError(f"{file.called} must name its columns in the first line. Got {', '.join(names[:5])}.")
        if not table.num_rows:
            raise InputError(f"{file.called} is empty: it has no line beside the names of its columns.")
        columns = choose(file.called, config, table.schema)
        features = np.empty((table.num_rows, len(columns.features)), config.dtype)
        with np.errstate(over="ignore"):  # what is not finite then is refused by its row
            for j, name in enumerate(columns.features):
                features[:, j] = numbers(table.column(name))
        groups = config.partition_column
        return InMemory(
            config.source,
            features,
            numbers(table.column(columns.target)).astype(np.float64),
            {} if groups is None else {groups: names_of(file.called, groups, table.column(groups))},
            bytes_read=file.bytes_read,
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
