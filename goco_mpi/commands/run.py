"""``goco run``: train on all ranks of an MPI job."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goco_mpi.commands import experiments
from goco_mpi.errors import RunError

if TYPE_CHECKING:
    from goco_mpi.engine.resuming import Beginning
    from goco_mpi.engine.session import Session
    from goco_mpi.engine.signals import StopSignals
    from goco_mpi.schema import RunConfig


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.engine.session import Session  # first: it sets BLAS threads before numpy loads
    from goco_mpi.engine.signals import StopSignals

    with StopSignals(deaf_after=options.ends_process) as signals, Session(expected_ranks=options.ranks) as session:
        _run_together(options, session, signals)
    return 0


def _run_together(options: argparse.Namespace, session: Session, signals: StopSignals) -> None:
    """Train on all ranks and write the record on rank 0. Collective."""
    from goco_mpi import record, status

    # One rank reads the experiment: on a cluster only some nodes may see the directory.
    prepared = session.share(lambda: _prepare(options, session.size))
    if prepared is None:
        return
    config, out, beginning = prepared
    around = []
    if session.root and config.record.status:
        around = status.begin(status.directory_of(out), _job(config, session.size, beginning))
    try:
        _train(options, session, signals, config, out, beginning)
    finally:
        if session.root:
            status.end(status.directory_of(out), around)
            with contextlib.suppress(OSError):
                record.stop_file(out).unlink(missing_ok=True)  # this run has ended


def _prepare(options: argparse.Namespace, n_ranks: int) -> tuple[RunConfig, Path, Beginning] | None:
    """Read the experiment and find what to begin with; None where nothing is left to do."""
    from goco_mpi import record
    from goco_mpi.engine import resuming

    config, out = experiments.prepare(options)
    if options.resume and (out / "run.json").exists() and not resuming.goes_on(record.read_run(out).run, config):
        print(f"goco: {str(out)!r} is finished: nothing is left to do.", file=sys.stderr, flush=True)
        return None
    record.refuse_stop_file(out)
    beginning = resuming.prepare(out, config, n_ranks, options.resume, options.force)
    if options.resume and not options.quiet:
        if beginning.sets:
            newest = beginning.sets[0]
            print(f"goco: going on from round {min(newest.rounds)}, by {newest.path}.", file=sys.stderr, flush=True)
        else:
            print(f"goco: there is no checkpoint of {str(out)!r} yet: from the start.", file=sys.stderr, flush=True)
    return config, out, beginning


def _job(config: RunConfig, n_ranks: int, beginning: Beginning) -> dict[str, Any]:
    """Return what ``goco watch`` has to know of the run."""
    from goco_mpi import status

    return {
        "n_ranks": n_ranks,
        "rounds": config.rounds,
        "first_rounds": beginning.sets[0].rounds if beginning.sets else [0] * n_ranks,
        "method": config.method.kind,
        "source": config.data.source,
        "period_s": status.period_s(n_ranks),
    }


def _train(
    options: argparse.Namespace,
    session: Session,
    signals: StopSignals,
    config: RunConfig,
    out: Path,
    beginning: Beginning,
) -> None:
    from goco_mpi import record, status
    from goco_mpi.engine.regrouping import together
    from goco_mpi.engine.requests import Requests
    from goco_mpi.engine.telling import Teller
    from goco_mpi.engine.train import train
    from goco_mpi.progress import Progress

    requests = Requests(session.rank, session.size, signals, record.stop_file(out), config.stop.margin_s)
    with contextlib.ExitStack() as stack:
        teller = None
        if config.record.status:
            teller = stack.enter_context(Teller(status.directory_of(out), session.rank, session.size, session.host))
        progress = stack.enter_context(Progress(config.rounds, quiet=options.quiet or not session.root))
        outcome = train(
            config,
            session,
            progress,
            requests=requests,
            beginning=beginning,
            warm_start=options.warm_start,
            teller=teller,
        )
    result: dict[str, Any] = {}

    def write(environment: dict[str, Any]) -> None:
        if outcome is None:
            raise RunError("The rank that was to write the record died before it could. Start again.")
        if not result:
            result.update(experiments.write(options, out, config, outcome, environment))
        experiments.refuse(config, outcome, result, out)

    def finish() -> None:
        """Write the record. Collective; where a rank dies in it, it is written once and the end is met again."""
        environment = session.environment()
        session.share(lambda: write(environment))

    together(session, finish, config.deadline.shutdown_s)
