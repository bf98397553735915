"""A scripted run that was ended and resumed is, to the last bit, the run that was not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from goco_mpi import checkpoint
from goco_mpi.config import parse_config
from goco_mpi.core.methods import METHODS
from goco_mpi.engine import resuming
from goco_mpi.engine.session import Session
from goco_mpi.engine.train import train
from goco_mpi.outcome import Outcome
from goco_mpi.schema import RunConfig

CLOCK = {"compute_s", "wait_s", "wall_s", "setup_s", "load_s", "peak_mib", "checkpoints", "checkpoints_skipped"}
MESSAGES = {"messages_sent", "messages_received", "bytes_sent", "superseded"}
NOT_THE_SAME = CLOCK | MESSAGES
"""What depends on the clock, and on messages that were under way where the run was ended."""


@contextmanager
def common_directory(session: Session) -> Iterator[Path]:
    """A temporary directory that all ranks know."""
    directory = session.comm.bcast(tempfile.mkdtemp(prefix="goco_mpi-tests-") if session.rank == 0 else None)
    try:
        yield Path(directory)
    finally:
        session.barrier()
        if session.rank == 0:
            shutil.rmtree(directory, ignore_errors=True)


def begin(session: Session, out: Path, config: RunConfig, resume: bool = False, **options: Any) -> Outcome | None:
    """Run an experiment with its checkpoints beside ``out``, as ``goco run`` does."""
    beginning = session.share(lambda: resuming.prepare(out, config, session.size, resume, force=False))
    return train(config, session, beginning=beginning, **options)


def leave_only(session: Session, out: Path, number: int) -> None:
    """Remove all checkpoints but one."""
    session.barrier()
    if session.rank == 0:
        for found in checkpoint.whole_sets(checkpoint.directory_of(out)):
            if found.number != number:
                checkpoint.remove_set(found.path)
        assert [found.number for found in checkpoint.whole_sets(checkpoint.directory_of(out))] == [number]
    session.barrier()


def assert_resumes_bit_for_bit(raw: dict[str, Any]) -> None:
    """Run twice as many rounds in one go, and from a checkpoint at half of them."""
    half = max(1, raw["rounds"] // 2)
    config = parse_config({**raw, "checkpoint": {"every": half, "keep": 9}})
    with Session() as session, common_directory(session) as directory:
        out = directory / "run"
        whole = begin(session, out, config)
        leave_only(session, out, 1)
        resumed = begin(session, out, config, resume=True)
    if whole is None or resumed is None:
        return
    assert resumed.resumed_from is not None
    rounds = resumed.resumed_from.rounds
    if METHODS[config.method.kind].exchange == "central":  # its workers hear of it in the round before
        assert rounds[0] == half and max(rounds) <= half
    else:
        assert rounds == [half] * len(rounds)
    assert_same_end(whole, resumed, METHODS[config.method.kind].exchange != "central")


def assert_same_end(whole: Outcome, resumed: Outcome, counts: bool = True) -> None:
    """Compare parameters, and where whole rounds were gone through together counts, to the last bit."""
    np.testing.assert_array_equal(resumed.stacked_params, whole.stacked_params)
    assert resumed.step_size == whole.step_size
    for mine, theirs in [(resumed.history[-1], whole.history[-1]), *zip(resumed.ranks, whole.ranks, strict=True)]:
        for name in (theirs.keys() - NOT_THE_SAME) if counts else ():
            assert mine[name] == theirs[name], name
    # It did begin in the middle, and somewhere else than at the end.
    first = resumed.history[0]
    assert first["round"] > 0
    assert resumed.loss_start == whole.history[0]["loss"]
