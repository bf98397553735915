"""What is tried before the first round: whether module, loss and data fit what is computed of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from goco_mpi.errors import GocoError, InputError
from goco_mpi.torch.flat import FlatModule, drawing_from, reason_of
from goco_mpi.torch.rows import Rows
from goco_mpi.torch.share import Loss, TorchShare

ROWS = 8
"""So many of each shard are looked at one by one."""

TOLERANCE = 1e-4
"""Of a mean over rows, relative to the largest: what float32 may make of a large one."""


def probe_rows(flat: FlatModule, loss: Loss, rows: Rows) -> bool:
    """Try module and loss on the first rows of a shard, and tell whether they draw random numbers.

    Raises
    ------
    InputError
        If the loss is not the mean over rows that the module treats alone, or more than parameters would change.
    """
    few = np.arange(min(len(rows), ROWS))
    with drawing_from(0), _applied("the first rows of a shard"):
        before = torch.default_generator.get_state()
        inputs, targets = rows.take(few)
        _check_mean(flat, loss, inputs, targets)
        _check_buffers(flat, loss, inputs, targets)
        return not torch.equal(torch.default_generator.get_state(), before)


def probe_test(flat: FlatModule, rows: Rows) -> None:
    """Try the module on the first test sample.

    Raises
    ------
    InputError
        If no accuracy can be told: targets that are no classes, or outputs that are no scores of them.
    """
    with drawing_from(0), _applied("the test rows"):
        inputs, targets = rows.take(np.arange(1))
        if targets.is_floating_point() or targets.ndim != 1:
            raise InputError(
                "test must have classes 0, 1, ... as targets, one for each row, to tell the accuracy on. Got "
                f"{targets.dtype} of shape {tuple(targets.shape)} for one row. Leave it out: the training loss is "
                "reported."
            )
        with flat.evaluating():
            outputs = flat.module(inputs)
        if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
            raise InputError(
                f"test needs a module that returns a number for each class in every row. Got {_shown(outputs)} for one "
                "row. Leave it out: the training loss is reported."
            )


def probe_share(share: TorchShare, params: NDArray[np.float64]) -> None:
    """Evaluate a share once on all the rows that it answers for.

    Raises
    ------
    InputError
        If that cannot be done, or the loss is not finite.
    """
    with _applied("the rows of a rank's shards"):
        value = share.loss(params)
    if not np.isfinite(value):
        raise InputError(
            f"The module's loss must be finite at the start. Got {value} over the shards of a rank. Look for NaN and "
            "infinity in the data, or scale them."
        )
    with _applied("the test rows"):
        share.correct(params)


def _check_mean(flat: FlatModule, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    with flat.evaluating():
        outputs = flat.module(inputs)
        if not isinstance(outputs, torch.Tensor) or not outputs.shape or len(outputs) != len(inputs):
            raise InputError(
                f"module must return a tensor with a row for each row of its inputs. Got {_shown(outputs)} for "
                f"{len(inputs)} rows."
            )
        value = loss(outputs, targets)
        if not isinstance(value, torch.Tensor) or value.shape or not value.is_floating_point():
            raise InputError(f"loss must return a tensor of one floating number. Got {_shown(value)}.")
        alone = [
            float(loss(flat.module(one), target)) for one, target in zip(inputs.split(1), targets.split(1), strict=True)
        ]
    together, mean = float(value), float(np.mean(alone))
    if np.isfinite(together) and not abs(together - mean) <= TOLERANCE * max(1.0, *map(abs, alone)):
        raise InputError(
            f"loss must be the mean over rows, each of which the module treats alone. Got {together:g} on {len(alone)} "
            f"rows together, and {mean:g} as the mean over each. Use reduction = 'mean', without weights of classes."
        )


def _check_buffers(flat: FlatModule, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    before = {name: buffer.clone() for name, buffer in flat.module.named_buffers()}
    value = loss(flat.module(inputs), targets)
    for name, buffer in flat.module.named_buffers():
        if name in before and not torch.equal(torch.nan_to_num(buffer), torch.nan_to_num(before[name])):
            raise InputError(
                "module must change nothing but its parameters in training: buffers are not averaged between ranks. "
                f"Got {name!r}, which changes. Put the part that has it in evaluation mode with eval(), or replace it."
            )
    if not value.requires_grad:
        raise InputError("loss must depend on the parameters of the module. Got one that does not.")


@contextmanager
def _applied(where: str) -> Iterator[None]:
    """Say what was tried where code of the user's, or torch, raises an error."""
    try:
        yield
    except GocoError:
        raise
    except Exception as error:
        raise InputError(
            f"module and loss must be applicable to {where}. Got {reason_of(error)}. Look at shapes, dtypes, and "
            "targets out of range."
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"one of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
