"""A module and a loss as an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from goco_mpi.engine import launcher
from goco_mpi.errors import InputError, check_range
from goco_mpi.torch.flat import FlatModule
from goco_mpi.torch.probe import probe_rows, probe_share, probe_test
from goco_mpi.torch.rows import rows_of
from goco_mpi.torch.share import Loss, TorchShare

Array = NDArray[np.float64]


class ModuleObjective:
    """A `torch.nn.Module` and a loss as an objective for `goco_mpi.minimize`.

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU, its parameters all float32 or all float64. It is copied, in the modes that its parts are in:
        gradients are taken in these, losses and accuracy in evaluation mode.
    loss : callable (outputs, targets) -> scalar tensor
        The mean over rows, such as `torch.nn.CrossEntropyLoss()`.
    test : pair of tensors or arrays, or Dataset, optional
        Samples to tell the accuracy on, the same on every rank. Targets are classes 0, 1, ...; predicted is the place
        of the largest of a row's outputs.
    block_rows : int
        Most rows that go through the module at once. Between two blocks a rank looks at its messages.

    Attributes
    ----------
    x0 : ndarray of shape (n_params,)
        The module's trainable parameters, in the order of ``module.parameters()``: where a run begins.

    Raises
    ------
    InputError
        If one of them cannot be used.

    Notes
    -----
    A shard is a pair (inputs, targets) of tensors or arrays, or a Dataset of such pairs; f is the mean loss over its
    rows. The module computes in its own dtype: parameters, which ranks exchange as float64, are rounded to it for a
    gradient, and the gradient is added up in float64.

    Sets the number of torch's threads, of the whole process, to the rank's share of its node.

    Examples
    --------
    >>> objective = ModuleObjective(torch.nn.Linear(2, 1).double(), torch.nn.MSELoss())
    >>> shard = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0], [0.0]])
    >>> out = np.empty(3)
    >>> objective.gradient(np.zeros(3), shard, out)
    >>> out.tolist()
    [-1.0, 0.0, -1.0]
    """

    def __init__(self, module: torch.nn.Module, loss: Loss, *, test: Any = None, block_rows: int = 256) -> None:
        if not callable(loss):
            raise InputError(f"loss must be callable as loss(outputs, targets). Got {loss!r}.")
        if not isinstance(block_rows, int | np.integer):
            raise InputError(f"block_rows must be a whole number. Got {block_rows!r}.")
        check_range("block_rows", int(block_rows), 1, 10**9)
        self._flat = FlatModule(module)
        self._loss = loss
        self._block_rows = block_rows
        self._test = None if test is None else rows_of(test, self._flat.dtype, "test")
        if self._test is not None:
            probe_test(self._flat, self._test)
        self.x0 = self._flat.values
        torch.set_num_threads(launcher.limit_threads(launcher.inspect()))

    def share(self, shards: Sequence[Any], weights: Array, owned: Array, rank: int, n_ranks: int) -> TorchShare:
        """Return what a rank computes of its shards; `goco_mpi.minimize` asks for it.

        Parameters
        ----------
        shards : sequence of length n_held
        weights : ndarray of shape (n_held,)
            (N/M) a_ik of each.
        owned : ndarray of shape (n_held,)
            1/M for a shard whose loss the rank answers for, 0 for the others.
        rank, n_ranks : int
            Which part of the test samples it answers for.

        Raises
        ------
        InputError
            If module, loss and rows do not fit.
        """
        rows = [rows_of(shard, self._flat.dtype, "a shard") for shard in shards]
        test = None if self._test is None else (self._test, np.arange(rank, len(self._test), n_ranks))
        self._flat.load(self.x0)
        drawn = [probe_rows(self._flat, self._loss, part) for part in rows]
        share = TorchShare(self._flat, self._loss, rows, weights, owned, test, self._block_rows, any(drawn))
        probe_share(share, self.x0)
        return share

    def loss(self, x: Array, shard: Any) -> float:
        """Return the mean loss over the rows of a shard."""
        return self._alone(shard).loss(x)

    def gradient(self, x: Array, shard: Any, out: Array) -> None:
        """Write the gradient of that into ``out``."""
        for _ in self._alone(shard).gradient_blocks(x, out):
            pass

    def write(self, x: Array, module: torch.nn.Module) -> None:
        """Set a module's trainable parameters to ``x``, in place; it is made like the one given here."""
        self._flat.load(x)
        with torch.no_grad():
            trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
            for parameter, value in zip(trained, self._flat.parameters, strict=True):
                parameter.copy_(value)

    def _alone(self, shard: Any) -> TorchShare:
        one = np.ones(1)
        rows = [rows_of(shard, self._flat.dtype, "shard")]
        return TorchShare(self._flat, self._loss, rows, one, one, None, self._block_rows, draws=False)
