"""``goco watch``: follow a running job through the small files that its ranks write."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from goco_mpi.errors import InputError

if TYPE_CHECKING:
    from goco_mpi.status import JobStatus

LOOK_EVERY_S = 1.0
"""On a terminal."""
LINE_EVERY_S = 10.0
"""Elsewhere."""
ENDING_S = 2.0
"""Between the end of a job's files and the appearance of its record, on a slow file system."""


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code: 0 where there is a result, or the job runs; 1 where it ended without."""
    from goco_mpi import status

    out: Path = options.run
    found = status.read(status.directory_of(out))
    if found is None:
        if not (out / "run.json").is_file():
            raise InputError(
                f"{str(out)!r} is no run: it has not begun, ended without a result, or was started with "
                "record.status = false. Name its directory, such as runs/experiment."
            )
        return _finished(out)
    if options.once:
        _say(found, None)
        return 0
    try:
        (_follow if sys.stdout.isatty() else _log)(out, found)
    except KeyboardInterrupt:
        return 0  # the job goes on
    deadline = time.monotonic() + ENDING_S
    while not (written := _has_result(out, found)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not written:
        print("The run ended without a result: its own output says why.")
        return 1
    return _finished(out)


def _has_result(out: Path, job: JobStatus) -> bool:
    """Tell whether a job has written its record; one that was there before is older than the job."""
    try:
        return (out / "run.json").stat().st_mtime >= job.begun_s
    except OSError:
        return False


def _finished(out: Path) -> int:
    from goco_mpi.commands.experiments import print_result
    from goco_mpi.record import read_run

    run = read_run(out)
    print_result(out, run.run["result"], int(run.history["round"][-1]), int(run.run["config"]["rounds"]))
    return 0


def _say(found: JobStatus, before: JobStatus | None) -> None:
    from goco_mpi import watching

    print(watching.line(watching.view(found, before, time.time())), flush=True)


def _log(out: Path, found: JobStatus | None) -> None:
    """Print a line now and then until the job is over."""
    from goco_mpi import status

    before, due_s = None, 0.0
    while found is not None:
        if time.monotonic() >= due_s:
            _say(found, before)
            before, due_s = found, time.monotonic() + LINE_EVERY_S
        time.sleep(LOOK_EVERY_S)
        found = status.read(status.directory_of(out))


def _follow(out: Path, found: JobStatus | None) -> None:
    """Show a table on the terminal until the job is over."""
    from rich.live import Live

    from goco_mpi import status, watching

    looks: list[JobStatus] = []
    with Live(auto_refresh=False) as live:
        while found is not None:
            looks = [*looks[-10:], found]  # rates of some seconds: of one they would jump
            seen = watching.view(found, looks[0] if len(looks) > 1 else None, time.time())
            live.update(watching.table(seen, out.name), refresh=True)
            time.sleep(LOOK_EVERY_S)
            found = status.read(status.directory_of(out))
