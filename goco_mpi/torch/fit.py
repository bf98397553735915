"""Train a module on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from goco_mpi.api import Callback, Result, minimize
from goco_mpi.errors import InputError
from goco_mpi.torch.flat import reason_of
from goco_mpi.torch.objective import ModuleObjective
from goco_mpi.torch.share import Loss

if TYPE_CHECKING:
    from mpi4py import MPI

    from goco_mpi.engine.session import Session


def fit(
    module: torch.nn.Module,
    loss: Loss,
    shards: Sequence[Any],
    *,
    step: float | Mapping[str, Any],
    batch_size: int,
    test: Any = None,
    block_rows: int = 256,
    comm: MPI.Intracomm | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Result:
    """Train a module by minibatches of its shards, without waiting for slow ranks. Collective.

    Minimises F = (1/M) sum_k f_k, f_k being the mean loss over the rows of shard k.

    Parameters
    ----------
    module : torch.nn.Module
        Changed: all ranks begin with rank 0's parameters and buffers, and end with the mean of all ranks' parameters.
        What it may be: see `ModuleObjective`.
    loss : callable (outputs, targets) -> scalar tensor
        The mean over rows.
    shards : sequence of length M
        Pairs (inputs, targets) of tensors or arrays, or Datasets of such pairs. A rank indexes only those it holds.
    step : float or mapping
        The step size (learning rate), or the table ``[step]`` of an experiment file.
    batch_size : int
        Rows of each shard that a gradient is taken of, drawn anew for every gradient; a shard that has no more counts
        whole.
    test : pair of tensors or arrays, or Dataset, optional
        Samples to tell the accuracy on; see `ModuleObjective`.
    block_rows : int
        Most rows that go through the module at once. Between two blocks a rank looks at its messages.
    comm : MPI.Intracomm, optional
        Default: all ranks of the job.
    callback : callable (round, x) -> None, optional
        As in `goco_mpi.minimize`.
    **options
        Whatever else `goco_mpi.minimize` takes: ``rounds``, ``seed``, ``placement``, ``topology``, ``method``, ...

    Returns
    -------
    Result
        ``history`` has the training loss, and the test accuracy, of the mean of all ranks' parameters.

    Raises
    ------
    InputError
        If an argument cannot be used; on every rank, and the module's parameters are where the run began.
    RunError
        If the run diverged; likewise.

    Notes
    -----
    What a gradient draws, rows and dropout, follows from seed, rank and the number of the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> inputs = np.random.default_rng(0).standard_normal((80, 2))
    >>> targets = (inputs[:, 0] > inputs[:, 1]).astype(np.int64)
    >>> shards = [(inputs[k::4], targets[k::4]) for k in range(4)]
    >>> module = torch.nn.Linear(2, 2)
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> result = fit(module, loss, shards, step=1.0, batch_size=8, rounds=100, topology="ring", test=(inputs, targets))
    >>> result.history[-1]["test_accuracy"] > 0.9
    True
    """
    from goco_mpi.engine.session import Session

    with Session(comm) as session:
        _begin_alike(session, module)
        objective = session.agree(lambda: ModuleObjective(module, loss, test=test, block_rows=block_rows))
    table = dict(step) if isinstance(step, Mapping) else {"kind": "constant", "size": step}
    result = minimize(
        objective,
        objective.x0,
        shards=shards,
        batch_size=batch_size,
        step=table,
        comm=comm,
        callback=callback,
        **options,
    )
    objective.write(result.x, module)
    return result


def _begin_alike(session: Session, module: torch.nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0. Collective."""

    def state() -> dict[str, Any]:
        if not isinstance(module, torch.nn.Module):
            raise InputError(f"module must be a torch.nn.Module. Got {module!r}.")
        return dict(module.state_dict())

    def take() -> None:
        try:
            if not session.root:
                module.load_state_dict(theirs)
        except (AttributeError, RuntimeError) as error:
            raise InputError(f"module must be made alike on every rank. Got {reason_of(error)}.") from None

    theirs = session.share(state)
    session.agree(take)
