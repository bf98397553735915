"""Parquet files, of which a process reads the row groups and columns that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.blocks import BlockSource
from goco_mpi.data.crew import Crew
from goco_mpi.data.readers.arrays import opened_by_all
from goco_mpi.data.readers.columns import check_there, choose, names_of, numbers
from goco_mpi.data.readers.file import InputFile, needs, refusing
from goco_mpi.data.readers.memory import held, held_by_rank_zero, is_small
from goco_mpi.data.readers.rows import check_finite, check_shapes
from goco_mpi.data.source import Source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


def open_parquet(config: DataConfig, seed: int, crew: Crew) -> Source:
    """Open a table whose column ``config.target_column`` has the targets. A small one rank 0 reads."""
    if is_small(crew, config.source):
        return held_by_rank_zero(crew, lambda: held(ParquetSource(config), config.partition_column))
    return opened_by_all(crew, lambda: ParquetSource(config))


class ParquetSource(BlockSource):
    """Samples in a Parquet file; a block is a row group, the least that can be decoded."""

    def __init__(self, config: DataConfig) -> None:
        parquet = needs("pyarrow.parquet", "parquet", config.source)
        self._file = InputFile(config.source)
        try:
            with refusing(f"{self._file.called} is not a Parquet file, or damaged"):
                self._parquet: Any = parquet.ParquetFile(self._file, pre_buffer=False)
                self._columns = choose(self._file.called, config, self._parquet.schema_arrow)
                metadata = self._parquet.metadata
                sizes = np.array([metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)], np.int64)
            if (sizes < 0).any():
                raise InputError(f"{self._file.called} is damaged: a row group has less than no rows.")
            self._groups = np.flatnonzero(sizes)
            self.bounds = np.concatenate(([0], np.cumsum(sizes[self._groups])))
            self.n_samples, self.n_features = int(self.bounds[-1]), len(self._columns.features)
            check_shapes(self._file.called, (self.n_samples, self.n_features), (self.n_samples,))
        except BaseException:
            self._file.close()
            raise
        self.name, self.dtype = config.source, np.dtype(config.dtype)
        self.bytes_read = self._file.bytes_read

    def make_features(self, block: int) -> NDArray[Any]:
        """See `BlockSource`."""
        out = np.empty((self.bounds[block + 1] - self.bounds[block], self.n_features), self.dtype)
        start = int(self.bounds[block])
        for columns in self._batches(block, self._columns.features):
            into = out[start - self.bounds[block] :][: len(columns[0])]
            with np.errstate(over="ignore"):  # the check below names the row
                for j, column in enumerate(columns):
                    into[:, j] = numbers(column)
            check_finite(into, self._file.called, "feature", start.__add__)
            start += len(columns[0])
        return out

    def make_targets(self, block: int) -> NDArray[np.float64]:
        """See `BlockSource`."""
        parts = [numbers(column) for (column,) in self._batches(block, [self._columns.target])]
        values = np.concatenate(parts).astype(np.float64)
        check_finite(values, self._file.called, "target", int(self.bounds[block]).__add__)
        return values

    def _batches(self, block: int, names: list[str]) -> Iterator[list[Any]]:
        """Yield the columns of a row group, few enough rows at a time to stay in the cache."""
        missing = int(self.bounds[block + 1] - self.bounds[block])
        with refusing(f"{self._file.called} cannot be read"):
            # A rank's BLAS has its own idea of how many threads there are to be; so here there is one.
            for batch in self._parquet.iter_batches(4096, [int(self._groups[block])], names, use_threads=False):
                missing -= batch.num_rows
                if missing >= 0:
                    yield [batch.column(name) for name in names]
        self.bytes_read = self._file.bytes_read
        if missing:
            raise InputError(f"{self._file.called} is damaged: a row group does not have the rows that it should.")

    def column(self, name: str) -> NDArray[Any]:
        """See `Source`."""
        check_there(self._file.called, "data.partition_column", name, self._parquet.schema_arrow.names)
        with refusing(f"{self._file.called} cannot be read"):
            column = self._parquet.read([name], use_threads=False).column(name)
        self.bytes_read = self._file.bytes_read
        return names_of(self._file.called, name, column)

    def close(self) -> None:
        """See `Source`."""
        self._file.close()
