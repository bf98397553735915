"""``goco sweep``: run the members of a sweep, resumably, and put their histories into one table.

::

    OUT/runs/<checksum>/           an ordinary run directory a member
    OUT/experiments/<checksum>.toml    with mode = "mpi", what its ranks read
    OUT/results.csv                a row a member and recorded round

A run directory appears whole or not at all, so that what is there need not be run again.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from goco_mpi.errors import GocoError, InputError, RunError
from goco_mpi.outcome import Outcome
from goco_mpi.record import ASKED_TO_STOP, HISTORY, RunRecord, read_run, refuse_worse, write_run
from goco_mpi.simulation.rounds import simulate_experiment
from goco_mpi.sweeps.file import DONE, FAILED, MISSING, OWN_COLUMNS, RESULTS, Member, Sweep, text
from goco_mpi.sweeps.member import write_experiment

ENDING_S = 20.0
"""How long an interrupted mpiexec has to end its ranks."""

Ended = Callable[[Member, str], None]
"""What is told when a member has ended: the member, and the reason if it failed."""


def run_sweep(
    sweep: Sweep,
    out: Path,
    jobs: int,
    mpiexec: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
    collect: bool = False,
) -> int:
    """Run what has not been run, write the table, and return how many members failed.

    Parameters
    ----------
    sweep : Sweep
    out : Path
        Directory of the sweep, new or of an earlier one.
    jobs : int
        Simulations at a time.
    mpiexec : sequence of str
        The launcher for ``mode = "mpi"``, where members run one after the other.
    say : callable (line)
        Told of every member that has ended.
    collect : bool
        Run nothing: the table is of what others have run.

    Raises
    ------
    InputError
        If ``out`` is something else.
    RunError
        If a process of the sweep died, or the table cannot be written.
    """
    if out.exists() and not (out.is_dir() and ((out / "runs").is_dir() or not any(out.iterdir()))):
        raise InputError(f"--out {str(out)!r} exists and is no sweep (it has no runs/). Choose another --out.")
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {str(out)!r} cannot be written: {error.strerror}. Choose another.") from None
    pending: dict[str, Member] = {}
    for member in sweep.members:
        if member.config is not None and _record(out, member) is None:
            pending.setdefault(member.identity, member)
    n_members = len(sweep.members)
    n_ended = n_members - sum(member.identity in pending for member in sweep.members)
    if collect:
        say(f"{n_ended} of {n_members} members are there, or refused")
        pending.clear()
    elif n_ended:
        say(f"{n_ended} of {n_members} members need not be run: they are there, or refused")
    reasons: dict[str, str] = {}

    def ended(member: Member, reason: str) -> None:
        nonlocal n_ended
        n_ended += sum(other.identity == member.identity for other in sweep.members)
        if reason:
            reasons[member.identity] = reason
        say(f"[{n_ended}/{n_members}] {member.label}: {reason or _summary(out, member)}")

    try:
        if sweep.mode == "mpi":
            _train_all(list(pending.values()), out, mpiexec, ended)
        elif pending:
            _simulate_all(list(pending.values()), out, jobs, ended)
    finally:  # also what an interrupted sweep has is worth a table
        rows = [row for place, member in enumerate(sweep.members) for row in _rows(out, sweep, place, reasons)]
        _write_table(out / RESULTS, rows)
    return len({row["member"] for row in rows if row["status"] == FAILED})


def _directory(out: Path, member: Member) -> Path:
    return out / "runs" / member.identity


def _record(out: Path, member: Member) -> RunRecord | None:
    """Return the member's run if it is whole, and was not cut short from outside."""
    try:
        record = read_run(_directory(out, member))
    except InputError:
        return None
    return None if record.run["result"].get("stopped_by") in ASKED_TO_STOP else record


def _judged(member: Member, record: RunRecord | None) -> str:
    """Return why a whole run is a failure all the same; empty if it is none."""
    if record is None or member.config is None:
        return ""
    try:
        refuse_worse(member.config, record.run["result"], record.path)
    except RunError as error:
        return str(error)
    return ""


def _summary(out: Path, member: Member) -> str:
    record = _record(out, member)
    if record is None:
        return "not recorded, or cut short: run the sweep again"
    result = record.run["result"]
    gap = "" if result["suboptimality"] is None else f", suboptimality {result['suboptimality']:.3g}"
    return _judged(member, record) or f"loss {result['loss']:.6g}{gap}"


def _simulate_all(members: Sequence[Member], out: Path, jobs: int, ended: Ended) -> None:
    """Simulate ``jobs`` members at a time, each on one core; this process alone writes."""
    others = set(multiprocessing.active_children())
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            min(jobs, len(members)), multiprocessing.get_context("spawn"), initializer=_begin_worker
        )
        try:
            futures = {pool.submit(_simulate, member): member for member in members}
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    member = futures.pop(future)
                    ended(member, _write(future, member, out))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "A process of the sweep was ended from outside: out of memory? What is finished is kept; run "
                    "the same command again, with fewer --jobs."
                ) from None
            raise
        pool.shutdown()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes started meanwhile have one BLAS thread: results then do not depend on the number of jobs."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _simulate(member: Member) -> Outcome | str:
    """Return the outcome, or why there is none."""
    assert member.config is not None
    try:
        return simulate_experiment(member.config, member.workers)
    except GocoError as error:
        return str(error)
    except MemoryError:
        return "There is not enough memory."


def _write(future: Future[Outcome | str], member: Member, out: Path) -> str:
    """Write a simulation's record; return why it failed, if it did."""
    outcome = future.result()
    if isinstance(outcome, str):
        return outcome
    assert member.config is not None
    environment = {"simulated": True, "n_ranks": member.workers}
    try:
        write_run(_directory(out, member), member.config, environment, outcome, force=True)
    except GocoError as error:
        return str(error)
    return ""


def _train_all(members: Sequence[Member], out: Path, mpiexec: Sequence[str], ended: Ended) -> None:
    """Run one member after the other on MPI."""
    for member in members:
        experiment = write_experiment(out, member)
        command = [*mpiexec, "-n", str(member.workers), sys.executable, "-m", "goco_mpi", "run", str(experiment)]
        command += ["--ranks", str(member.workers), "--out", str(_directory(out, member)), "--force", "--quiet"]
        ended(member, _launch(command))


def _launch(command: Sequence[str]) -> str:
    """Run a command; return why it failed, if it did."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise InputError(f"--mpiexec {command[0]!r} cannot be started: {error.strerror}.") from None
    with process:
        try:
            said = process.communicate()[1]
        except BaseException:
            process.terminate()  # first: SIGKILL would leave its ranks behind
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode == 0:
        return ""
    lines = [line for line in said.splitlines() if line.strip()]
    ours = [line.removeprefix("goco: ") for line in lines if line.startswith("goco: ")]
    return (ours or lines[-1:] or [f"exit code {process.returncode}"])[0]


def _rows(out: Path, sweep: Sweep, place: int, reasons: dict[str, str]) -> list[dict[str, Any]]:
    """Return a member's rows of the table: one a recorded round, or one that says why there is none."""
    member = sweep.members[place]
    seed = member.settings.get("seed") if member.config is None else member.config.seed
    row: dict[str, Any] = {"member": place, "variant": member.variant}
    row |= {key: text(member.settings[key]) for key in sweep.keys if key not in OWN_COLUMNS}
    row |= {"workers": member.workers, "seed": seed, "run": member.identity, "status": DONE, "reason": ""}
    record = None if member.config is None else _record(out, member)
    reason = member.refusal or reasons.get(member.identity, "") or _judged(member, record)
    if record is None:
        return [row | {"status": FAILED if reason else MISSING, "reason": reason} | dict.fromkeys(HISTORY)]
    row |= {"status": FAILED if reason else DONE, "reason": reason}
    columns = [record.history[name] for name in HISTORY]
    return [row | dict(zip(HISTORY, map(_cell, values), strict=True)) for values in zip(*columns, strict=True)]


def _cell(value: np.float64) -> float | int | None:
    number = float(value)
    if np.isnan(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        fresh.replace(path)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written: {error.strerror}. Choose another --out.") from None
