"""What a run begins with: nothing, the newest checkpoint that can be read, or the parameters of another run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi import checkpoint, record
from goco_mpi.checkpoint import EARLY, CheckpointFiles, DamagedError, WholeSet
from goco_mpi.core.methods import State
from goco_mpi.core.survivors import DISCONNECTED, LOST_SHARD
from goco_mpi.engine.session import Session
from goco_mpi.errors import InputError
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Beginning:
    """Where the checkpoints of a run are, and what it begins with.

    Attributes
    ----------
    directory : Path
        For the checkpoints.
    sets : tuple of WholeSet
        To go on from, the newest first; empty for a run from the start.
    number : int
        Of the newest checkpoint in the directory, whole or not.
    """

    directory: Path
    sets: tuple[WholeSet, ...] = ()
    number: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What the run knew of itself when it began: its first step size and its momentum."""
        return dict(self.sets[0].document["facts"]) if self.sets else {}

    def files(self, config: RunConfig, n_ranks: int, facts: dict[str, Any]) -> CheckpointFiles:
        """Return the run's own checkpoints, among which those that it may go on from stay."""
        files = CheckpointFiles(self.directory, config, n_ranks, facts, config.checkpoint.keep)
        files.pin(*self.sets)
        return files


def goes_on(run: dict[str, Any], config: RunConfig) -> bool:
    """Tell whether a recorded run (``run.json``) has something left to do: it was stopped early, or may go further."""
    stopped_by = run["result"]["stopped_by"]
    return stopped_by in (*EARLY, LOST_SHARD, DISCONNECTED) or (
        stopped_by == "rounds" and config.rounds > run["config"]["rounds"]
    )


def prepare(out: Path, config: RunConfig, n_ranks: int, resume: bool, force: bool) -> Beginning:
    """Find what to go on from; on one rank.

    Parameters
    ----------
    out : Path
        The run directory.
    config : RunConfig
    n_ranks : int
    resume : bool
        Go on from the newest checkpoint, if there is any.
    force : bool
        Without ``resume``: remove the checkpoints of an earlier run.

    Raises
    ------
    InputError
        If they are of another run; or there are some, and neither ``resume`` nor ``force``.
    """
    directory = checkpoint.directory_of(out)
    number = checkpoint.newest_number(directory)
    if not resume:
        if number and not force:
            raise InputError(
                f"{str(directory)!r} has checkpoints of an earlier run. Go on from them with --resume, choose another "
                "--out, or begin anew with --force."
            )
        checkpoint.remove_all(directory)
        return Beginning(directory)
    sets = []
    for found in checkpoint.whole_sets(directory):
        try:
            checkpoint.refuse_other_run(found, config, n_ranks)
            sets.append(found)
        except DamagedError as error:
            _say(f"{error}; looking for an older one")
    if not sets and (out / "run.json").exists():
        raise InputError(
            f"{str(out)!r} is the record of a run that has more to do, and {str(directory)!r} has no whole checkpoint "
            "to go on from. Begin anew with --force in the place of --resume, or choose another --out."
        )
    if number and not sets:
        _say(f"no checkpoint in {str(directory)!r} is whole: the run begins at the start")
    return Beginning(directory, tuple(sets), number)


def read(session: Session, beginning: Beginning, like: State) -> tuple[WholeSet, dict[str, Any]]:
    """Return what this rank keeps in the newest set that all ranks can read. Collective.

    Parameters
    ----------
    session : Session
    beginning : Beginning
        With at least one set.
    like : State
        A fresh state of the run's method.

    Raises
    ------
    InputError
        If there is none, or it is of other data; on every rank.
    """
    for found in beginning.sets:
        kept: dict[str, Any] = {}
        problem = None
        try:
            kept = checkpoint.read_rank(found.path, session.rank, like)
        except DamagedError as error:
            problem = f"{session.prefix} {error}"
        problems = [one for one in session.comm.allgather(problem) if one is not None]
        if not problems:
            if kept["params"].shape != like.params.shape:
                raise session.agreed(_other_data(found, kept["params"].size, like.params.size))
            return found, kept
        if session.rank == 0:
            _say(f"{problems[0]}; looking for an older checkpoint")
    raise session.agreed(
        InputError(
            f"No checkpoint in {str(beginning.directory)!r} can be read on all ranks. Do all nodes see that directory? "
            "Otherwise begin anew with --force."
        )
    )


def _other_data(found: WholeSet, before: int, now: int) -> InputError:
    return InputError(
        f"data.source must hold what it held when the run began. The checkpoint {str(found.path)!r} has {before} "
        f"parameters. Got {now}. Put the data of that run back, or begin anew with --force in the place of --resume."
    )


def warm_start(session: Session, source: Path, n_params: int) -> Array:
    """Return the mean of another run's parameters, the same on every rank. Collective.

    Parameters
    ----------
    session : Session
    source : Path
        A run directory, or one of checkpoints.
    n_params : int
        Of this run.

    Raises
    ------
    InputError
        If there are none, or as many as this run has not; on every rank.
    """

    def mean() -> Array:
        params: Array | None
        if (source / "params.npy").exists():
            params = np.asarray(record.read_params(source).mean(axis=0))
        else:
            try:
                found = checkpoint.mean_params(source)
                params = checkpoint.mean_params(checkpoint.directory_of(source)) if found is None else found
            except DamagedError as error:
                raise InputError(f"--warm-start needs a run that can be read. {error}. Give another.") from None
        if params is None:
            raise InputError(
                f"--warm-start takes a run directory, or one of checkpoints. Got {str(source)!r}, which has neither "
                "params.npy nor a whole checkpoint."
            )
        if params.shape != (n_params,):
            raise InputError(
                f"--warm-start needs as many parameters as the experiment has: {n_params}. Got {params.size} in "
                f"{str(source)!r}. Use the same data and objective."
            )
        return params

    return session.share(mean)


def _say(text: str) -> None:
    print(f"goco: {text}.", file=sys.stderr, flush=True)
