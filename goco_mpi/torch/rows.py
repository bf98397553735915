"""The rows of a shard: of two tensors, or of a data set that makes them one by one."""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, TensorDataset, default_collate

from goco_mpi.errors import InputError

Index = NDArray[np.int64]

EXPECTED = "a pair (inputs, targets) of tensors or arrays with a row for each sample, or a torch Dataset of such pairs"


class Rows(ABC):
    """Inputs and targets by row; floating ones in the dtype of the module."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def take(self, index: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and targets of some rows."""


class TensorRows(Rows):
    """Rows of two tensors."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self._inputs = inputs
        self._targets = targets

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._inputs)

    def take(self, index: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and targets of some rows."""
        places = torch.from_numpy(index)
        return self._inputs[places], self._targets[places]


class DatasetRows(Rows):
    """Rows that a map-style data set makes when they are asked for; refused then if they are no pairs of tensors."""

    def __init__(self, dataset: Any, dtype: torch.dtype) -> None:
        self._dataset = dataset
        self._dtype = dtype

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._dataset)

    def take(self, index: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and targets of some rows."""
        places = index.tolist()
        several = getattr(self._dataset, "__getitems__", None)
        samples = [self._dataset[place] for place in places] if several is None else several(places)
        batch = default_collate(samples)
        if not (
            isinstance(batch, list | tuple)
            and len(batch) == 2
            and all(isinstance(part, torch.Tensor) for part in batch)
        ):
            raise InputError(
                "A data set's items must be pairs (inputs, target) of tensors, arrays or numbers. Got "
                f"{reprlib.repr(samples[0])}."
            )
        inputs, targets = batch
        return _converted(inputs, self._dtype), _converted(targets, self._dtype)


def rows_of(data: Any, dtype: torch.dtype, name: str) -> Rows:
    """Return the rows of what a user gave as a shard, or to test on.

    Parameters
    ----------
    data : pair of tensors or arrays, or torch.utils.data.Dataset
    dtype : torch.dtype
        Of the module: that of its inputs, and of targets that are no classes.
    name : str
        What to call the data in a message.

    Raises
    ------
    InputError
        If the data are neither, differ in length, or have no rows.

    Examples
    --------
    >>> rows = rows_of((np.zeros((5, 2)), np.arange(5)), torch.float32, "shards[0]")
    >>> [part.dtype for part in rows.take(np.array([1, 3]))]
    [torch.float32, torch.int64]
    """
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Dataset):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise InputError(f"{name} must be {EXPECTED}. Got a data set without length or items: {data!r}.")
        rows: Rows = DatasetRows(data, dtype)
    else:
        try:
            inputs, targets = data
            rows = TensorRows(*(_converted(_tensor(part), dtype) for part in (inputs, targets)))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} must be {EXPECTED}. Got a {type(data).__name__}: {error}.") from None
        if not inputs.shape or not targets.shape or len(inputs) != len(targets):
            raise InputError(f"{name} must be {EXPECTED}. Got shapes {tuple(inputs.shape)} and {tuple(targets.shape)}.")
    if not len(rows):
        raise InputError(f"{name} must have at least one row. Got none.")
    return rows


def _tensor(part: Any) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part.detach()
    if not isinstance(part, np.ndarray):
        raise TypeError(f"{type(part).__name__} where a tensor or an array was expected")
    # torch has no tensors that are only for reading.
    return torch.from_numpy(np.require(part, requirements="W"))


def _converted(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return part.to(dtype) if part.is_floating_point() else part
