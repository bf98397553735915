"""``goco run``: train on all ranks of an MPI job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from goco_mpi.commands import experiments

if TYPE_CHECKING:
    from goco_mpi.engine.session import Session


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.engine.session import Session  # first: it sets BLAS threads before numpy loads

    with Session(expected_ranks=options.ranks) as session:
        _run_together(options, session)
    return 0


def _run_together(options: argparse.Namespace, session: Session) -> None:
    """Train on all ranks and write the record on rank 0. Collective."""
    from goco_mpi.engine.train import train
    from goco_mpi.progress import Progress

    # One rank reads the experiment: on a cluster only some nodes may see the directory.
    config, out = session.share(lambda: experiments.prepare(options))
    with Progress(config.rounds, quiet=options.quiet or session.rank > 0) as progress:
        outcome = train(config, session, progress)
    environment = session.environment()

    def finish() -> None:
        assert outcome is not None  # rank 0 has it
        experiments.finish(options, out, config, outcome, environment)

    session.share(finish)
