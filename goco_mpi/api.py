"""The library's two calls: `train` an experiment, `minimize` an objective of one's own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from goco_mpi.errors import InputError, RunError

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

    from goco_mpi.core.shares import ShardObjective, Share
    from goco_mpi.engine.session import Session
    from goco_mpi.experiment import Layout
    from goco_mpi.outcome import Outcome
    from goco_mpi.schema import RunConfig

STATUS = {
    "rounds": (0, "All rounds are done."),
    "target_loss": (1, "The loss reached stop.target_loss."),
    "gradient_norm": (2, "The norm of the gradient fell to stop.gradient_norm."),
    "time_limit_s": (3, "The time of stop.time_limit_s is over."),
    "callback": (4, "The callback raised StopIteration."),
    "signal": (5, "A signal asked the run to stop."),
    "stop_file": (6, "The stop file asked the run to stop."),
    "scheduler": (7, "The scheduler is about to end the job."),
    "lost_shard": (8, "Ranks died that held the last copies of shards."),
    "disconnected": (9, "Ranks died, and the others are no connected graph."),
}
"""How a run can end: status and message of its `Result`."""


class Callback(Protocol):
    """What is called on each rank after each of its rounds."""

    def __call__(self, round_: int, x: NDArray[np.float64]) -> object:
        """Take note of the round to come and this rank's parameters, not to be kept or changed.

        A StopIteration ends the run on all ranks.
        """


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gave; the same on every rank but for what says otherwise.

    The first attributes are named as in `scipy.optimize.OptimizeResult`.

    Attributes
    ----------
    x : ndarray of shape (n_params,)
        The mean of all ranks' parameters.
    fun : float
        F(x), over all shards.
    nit : int
        Rounds of the rank that went through most.
    success : bool
        Whether the run reached what ``[stop]`` asked for, or did all its rounds where it asked for
        nothing, and the loss is lower than at the start. Not if it was cut short from outside.
    status : int
        How the run ended, as a number: 0 after all rounds; the others are those of `STATUS`.
    message : str
        The same in words.
    wall_s : float
        Seconds in the round loop, of the rank that took longest.
    history : list of dict
        As in ``history.csv``, without suboptimality.
    ranks : list of dict
        As in ``ranks.csv``: what each rank counted.
    stacked_params : ndarray of shape (n_ranks, n_params) or None
        Every rank's own parameters; on rank 0 only.
    """

    x: NDArray[np.float64]
    fun: float
    nit: int
    success: bool
    status: int
    message: str
    wall_s: float
    history: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    stacked_params: NDArray[np.float64] | None


def train(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    comm: MPI.Intracomm | None = None,
    callback: Callback | None = None,
    out: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
) -> Result:
    """Run an experiment on all ranks of a communicator. Collective.

    Parameters
    ----------
    config : RunConfig, mapping or path
        The experiment: as `read_config` or `parse_config` return it, as tables, or its TOML file.
    comm : MPI.Intracomm, optional
        Default: all ranks of the job.
    callback : callable (round, x) -> None, optional
        Called on each rank after each of its rounds; raise StopIteration to end the run on all of them.
    out : path, optional
        Run directory to write, for ``goco report`` and ``goco replay``.
    force : bool
        Replace an earlier run there.
    resume : bool
        Go on from the newest checkpoint beside ``out``, or begin where there is none.

    Returns
    -------
    Result

    Raises
    ------
    InputError
        If config, data and number of ranks do not fit; on every rank.
    RunError
        If the run diverged, on every rank, or the record cannot be written.

    Examples
    --------
    >>> result = train({"rounds": 50, "topology": {"kind": "ring"}})
    >>> result.success, result.nit
    (True, 50)
    """
    from goco_mpi.engine.session import Session  # first: it sets BLAS threads before numpy loads
    from goco_mpi.engine.signals import StopSignals

    with Session(comm) as session, StopSignals() as signals:
        from goco_mpi import record
        from goco_mpi.engine import resuming
        from goco_mpi.engine import train as engine
        from goco_mpi.engine.regrouping import together
        from goco_mpi.engine.requests import Requests

        # One rank reads the experiment: on a cluster only some nodes may see it.
        resolved = session.share(lambda: _resolve(config))
        session.agree(lambda: _refuse_homeless(resolved, out, resume))
        beginning = None
        if out is not None:
            session.share(lambda: record.refuse_existing(Path(out), force or resume))
            beginning = session.share(lambda: resuming.prepare(Path(out), resolved, session.size, resume, force))
        requests = Requests(session.rank, session.size, signals, margin_s=resolved.stop.margin_s)
        outcome = engine.train(resolved, session, callback=callback, requests=requests, beginning=beginning)
        if out is not None:
            written = False

            def write(environment: dict[str, Any]) -> None:
                nonlocal written
                if not written:
                    record.write_run(Path(out), resolved, environment, _of_root(outcome), force or resume)
                written = True

            def finish() -> None:
                environment = session.environment()
                session.share(lambda: write(environment))

            together(session, finish, resolved.deadline.shutdown_s)
        return _result(session, resolved, outcome)


def minimize(
    objective: ShardObjective,
    x0: NDArray[np.float64],
    *,
    shards: Sequence[Any],
    placement: str | Mapping[str, Any] = "pairwise_balanced",
    topology: str | Mapping[str, Any] = "exponential",
    batch_size: int | None = None,
    comm: MPI.Intracomm | None = None,
    callback: Callback | None = None,
    **tables: Any,
) -> Result:
    """Minimise F(x) = (1/M) sum_k f(x, shard_k) over M shards, without waiting for slow ranks. Collective.

    Parameters
    ----------
    objective : object
        Has ``loss(x, shard)``, which returns f, and ``gradient(x, shard, out=...)``, which writes its
        gradient into ``out`` (or returns it). Each rank calls them for its own shards. With a method ``share``, as
        `goco_mpi.torch.ModuleObjective` has it, a rank computes what that returns.
    x0 : ndarray of shape (n_params,)
        Where to start; the same on every rank.
    shards : sequence of length M
        Any objects. A rank indexes only those that it holds, so that a lazy sequence loads no others.
    placement, topology : str or mapping
        Kind, or table, as in an experiment file. By default every shard is on two ranks.
    batch_size : int, optional
        Rows of each shard that a gradient is taken of, where the objective's shards have rows to draw.
    comm : MPI.Intracomm, optional
        Default: all ranks of the job.
    callback : callable (round, x) -> None, optional
        Called on each rank after each of its rounds; raise StopIteration to end the run on all of them.
    **tables
        ``rounds``, ``seed``, ``method``, ``step``, ``deadline``, ``stop``, ``stragglers`` and ``record`` as
        in an experiment file.

    Returns
    -------
    Result

    Raises
    ------
    InputError
        If an argument cannot be used, or ranks differ in it; on every rank.
    RunError
        If the run diverged; on every rank.

    Notes
    -----
    The default step is the inverse of the objective's curvature at ``x0``. Where it is more curved elsewhere give
    one, such as ``step={"kind": "constant", "size": 0.1}``.

    A gradient that takes long is looked at between two shards. Where one shard takes longer than the
    others wait, ``deadline={"progress_thread": True}`` keeps messages moving meanwhile.

    Examples
    --------
    >>> import numpy as np
    >>> class Distance:
    ...     def loss(self, x, shard):
    ...         return 0.5 * np.sum((x - shard) ** 2)
    ...     def gradient(self, x, shard, out):
    ...         np.subtract(x, shard, out=out)
    >>> shards = [np.array([0.0, 1.0]), np.array([2.0, 3.0])]
    >>> minimize(Distance(), np.zeros(2), shards=shards, topology="ring").x.round(6).tolist()
    [1.0, 2.0]
    """
    from goco_mpi.engine.session import Session  # first: it sets BLAS threads before numpy loads
    from goco_mpi.engine.signals import StopSignals

    with Session(comm) as session, StopSignals() as signals:
        from goco_mpi.engine import train as engine
        from goco_mpi.engine.requests import Requests
        from goco_mpi.experiment import lay_out

        def prepare() -> tuple[RunConfig, NDArray[np.float64]]:
            start = _start_vector(x0)
            for name in ("loss", "gradient"):
                if not callable(getattr(objective, name, None)):
                    raise InputError(f"objective must have a method {name}(x, shard, ...). Got {objective!r}.")
            for name in ("data", "objective"):
                if name in tables:
                    raise InputError(f"minimize takes no table {name!r}: it has objective, shards and batch_size.")
            if not (hasattr(shards, "__len__") and hasattr(shards, "__getitem__")):
                raise InputError(f"shards must be a sequence, such as a list. Got a {type(shards).__name__}.")
            raw = {
                **{key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()},
                "data": {"shards": len(shards), "batch_size": batch_size},
                "placement": _table("placement", placement),
                "topology": _table("topology", topology),
            }
            resolved = _resolve(raw)
            _refuse_homeless(resolved, None, resume=False)
            return resolved, start

        config, start = session.agree(prepare)
        layout = session.agree(lambda: lay_out(config, session.size))
        session.agree_on("minimize's arguments, or x0,", layout.fingerprint() ^ zlib.crc32(start.tobytes()))
        share = session.agree(lambda: _custom_share(objective, start, shards, layout, session.rank))
        requests = Requests(session.rank, session.size, signals, margin_s=config.stop.margin_s)
        outcome = engine.descend(layout, session, share, start, callback=callback, requests=requests)
        return _result(session, config, outcome)


def _resolve(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    from goco_mpi.config import parse_config, read_config, to_dict
    from goco_mpi.schema import RunConfig

    if isinstance(config, str | Path):
        return read_config(config)
    if isinstance(config, RunConfig):  # perhaps put together by hand: checked and made whole like any other
        return parse_config(to_dict(config))
    if not isinstance(config, Mapping):
        raise InputError(f"config must be the path of an experiment file, its tables, or a RunConfig. Got {config!r}.")
    return parse_config(dict(config))


def _refuse_homeless(config: RunConfig, out: str | Path | None, resume: bool) -> None:
    """Refuse checkpoints that have no place."""
    if out is None and (resume or config.checkpoint.every is not None or config.checkpoint.every_s is not None):
        raise InputError(
            "[checkpoint] and resume need a run directory, beside which the checkpoints stand. Got out = None. Use "
            "train(..., out=...)."
        )


def _table(name: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, str):
        return {"kind": value}
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be a kind or a table, such as {{'kind': ...}}. Got {value!r}.")
    return dict(value)


def _start_vector(x0: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    try:
        start = np.array(x0, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"x0 must be a vector of numbers. Got {x0!r}.") from None
    if start.ndim != 1 or not start.size or not np.isfinite(start).all():
        raise InputError(f"x0 must be a vector of at least one finite number. Got one of shape {start.shape}.")
    return start


def _custom_share(
    objective: ShardObjective, start: NDArray[np.float64], shards: Sequence[Any], layout: Layout, rank: int
) -> Share:
    import numpy as np

    from goco_mpi.core.shares import CustomShare

    held = layout.placement.shards_of(rank)
    mine = [shards[k] for k in held]
    weights = layout.encoding_weights[rank, held] * layout.n_workers / len(shards)
    owned = np.isin(held, layout.placement.owned_by(rank)) / len(shards)
    if callable(make := getattr(objective, "share", None)):
        share: Share = make(mine, weights, owned, rank, layout.n_workers)
        return share
    if layout.config.data.batch_size is not None:
        raise InputError(
            f"batch_size needs shards with rows to draw, and {type(objective).__name__} knows of none. Got "
            f"{layout.config.data.batch_size}. Leave it out, or give the objective a method share (docs/torch.md)."
        )
    return CustomShare(objective, len(start), mine, weights, owned)


def _of_root(outcome: Outcome | None) -> Outcome:
    if outcome is None:
        raise RunError("The rank that had the result died before it could give it to the others. Start again.")
    return outcome


def _result(session: Session, config: RunConfig, found: Outcome | None) -> Result:
    """Give every rank the result that one has. Collective."""
    from goco_mpi.engine.regrouping import together
    from goco_mpi.record import ASKED_TO_STOP

    def summary() -> Result:
        outcome = _of_root(found)
        status, message = STATUS[outcome.stopped_by]
        fun = outcome.history[-1]["loss"]
        asked = config.stop.target_loss is not None or config.stop.gradient_norm is not None
        reached = outcome.stopped_by in ("target_loss", "gradient_norm", "callback")
        if asked and not reached:
            message += " What [stop] asked for was not reached."
        if outcome.lost is not None:
            message += f" With them died the last copies of {outcome.lost}."
        return Result(
            x=outcome.stacked_params.mean(axis=0),
            fun=fun,
            nit=max(row["rounds"] for row in outcome.ranks),
            success=(reached or not asked)
            and outcome.stopped_by not in ASKED_TO_STOP
            and outcome.lost is None
            and fun <= outcome.history[0]["loss"],
            status=status,
            message=message,
            wall_s=outcome.wall_s or 0.0,
            history=list(outcome.history),
            ranks=list(outcome.ranks),
            stacked_params=None,
        )

    shared = together(session, lambda: session.share(summary), config.deadline.shutdown_s)
    if found is None:
        return shared
    from dataclasses import replace

    return replace(shared, stacked_params=found.stacked_params)
