"""What asks a run to end from outside: signals, a file, the scheduler's clock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from goco_mpi.engine import requests as requests_module
from goco_mpi.engine import scheduler, signals
from goco_mpi.engine.requests import Requests
from goco_mpi.engine.signals import StopSignals

TIMEOUT_S = 30
"""What a hanging process is ended by."""


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in signals.ASKING]


@pytest.mark.parametrize("number", signals.ASKING)
def test_a_signal_is_noted_and_what_was_there_put_back(number: signal.Signals) -> None:
    before = handlers()
    with StopSignals() as heard:
        assert not heard.received
        assert signal.getsignal(number) != before[signals.ASKING.index(number)]
        os.kill(os.getpid(), number)
        assert heard.received
    assert handlers() == before


def test_a_second_sigterm_soon_after_is_the_same_one() -> None:
    with StopSignals() as heard:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard.received  # and this process lives


def test_off_the_main_thread_signals_are_left_alone() -> None:
    before, seen = handlers(), []

    def enter() -> None:
        with StopSignals() as heard:
            seen.extend([*handlers(), heard.received])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [*before, False]


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = handlers()
    with monkeypatch.context() as patch:
        patch.setattr(signals.signal, "getsignal", lambda number: None)
        with StopSignals():
            patch.undo()
            assert handlers() == before


def program(body: str) -> tuple[int, str]:
    """Run a program; return how it ended and what it printed."""
    ended = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def test_a_later_sigterm_ends_the_process_the_hard_way() -> None:
    body = (
        "from signal import SIGTERM, SIGUSR1, raise_signal\n"
        "from goco_mpi.engine import signals\n"
        "signals.AGAIN_S = 0.0\n"
        "with signals.StopSignals() as heard:\n"
        "    for number in (SIGUSR1, SIGUSR1, SIGTERM, SIGUSR1):\n"
        "        raise_signal(number)\n"
        "    print(heard.received, flush=True)\n"
        "    raise_signal(SIGTERM)\n"
        "    print('never')\n"
    )
    assert program(body) == (-signal.SIGTERM, "True\n")


def test_signals_do_not_disturb_the_end_of_a_process() -> None:
    body = (
        "from signal import SIGTERM, SIGUSR1, raise_signal\n"
        "from goco_mpi.engine.signals import StopSignals\n"
        "with StopSignals(deaf_after=True):\n"
        "    pass\n"
        "raise_signal(SIGTERM)\n"
        "raise_signal(SIGUSR1)\n"
        "print('alive')\n"
    )
    assert program(body) == (0, "alive\n")


class Clock:
    """A clock that a test sets, for both times that are read."""

    def __init__(self, now: float = 0.0, wall: float = 0.0) -> None:
        self.now, self.wall = now, wall

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall


@pytest.mark.parametrize(("size", "watchers"), [(1, 1), (3, 3), (10, 10), (11, 6), (64, 10), (1000, 10)])
def test_the_job_looks_at_its_stop_file_once_a_second_whatever_its_size(
    monkeypatch: pytest.MonkeyPatch, size: int, watchers: int
) -> None:
    clock = Clock(now=500.0)
    monkeypatch.setattr(requests_module, "time", clock)
    looks: list[tuple[int, float]] = []

    def ask(rank: int) -> Requests:
        stop_file = SimpleNamespace(exists=lambda: looks.append((rank, clock.now)))
        return Requests(rank, size, stop_file=stop_file)

    requests = [ask(rank) for rank in range(size)]
    for tenth in range(300):
        clock.now = 500.0 + 0.1 * tenth
        assert not any(request.heard(clock.now) for request in requests)
    assert len(looks) == pytest.approx(30, abs=watchers)
    assert len({rank for rank, _ in looks}) == watchers
    # Whoever looks does so often enough for all the others to be frozen, and rank 0 is one of them.
    for rank in {rank for rank, _ in looks} | {0}:
        times = [500.0, *(at for who, at in looks if who == rank), 530.0]
        assert max(b - a for a, b in pairwise(times)) <= 11.0


def test_the_stop_file_is_heard_of_when_it_appears(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    monkeypatch.setattr(requests_module, "time", clock)
    requests = Requests(stop_file=tmp_path / "out.stop")
    assert requests.heard(0.0) is None
    (tmp_path / "out.stop").touch()
    assert requests.heard(0.5) is None  # it is not looked for all the time
    assert requests.heard(1.0) == "stop_file"


def test_a_file_system_in_trouble_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "time", Clock())
    looks = iter([OSError(errno.ESTALE, "Stale file handle"), PermissionError(errno.EACCES, "Permission denied"), True])

    def exists() -> bool:
        found = next(looks)
        if isinstance(found, OSError):
            raise found
        return found

    requests = Requests(stop_file=SimpleNamespace(exists=exists))
    assert [requests.heard(now) for now in (1.0, 2.0, 3.0)] == [None, None, "stop_file"]


@pytest.mark.parametrize(
    ("environment", "margin_s", "stops_after"),
    [
        ({"SLURM_JOB_END_TIME": "1700003600"}, 120.0, 3480.0),
        ({"SLURM_JOB_END_TIME": "1700000100"}, 120.0, 50.0),  # half of a short job is for work
        ({"PBS_WALLTIME": "7200"}, 0.0, 7200.0),
        ({"GOCO_JOB_END_TIME": "1700001000", "SLURM_JOB_END_TIME": "1700003600"}, 100.0, 900.0),
        ({"SLURM_JOB_END_TIME": "1600000000"}, 120.0, None),  # of a job long gone
        ({"SLURM_JOB_END_TIME": "soon", "PBS_WALLTIME": ""}, 120.0, None),
        ({"SLURM_JOB_END_TIME": "1700003600"}, None, None),
        ({}, 120.0, None),
    ],
)
def test_a_run_stops_before_the_scheduler_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], margin_s: float | None, stops_after: float | None
) -> None:
    for name in (*scheduler.ENDS, *scheduler.LENGTHS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(requests_module, "time", Clock(now=50.0, wall=1.7e9))
    requests = Requests(margin_s=margin_s)
    if stops_after is None:
        assert requests.heard(1e12) is None
    else:
        assert requests.heard(50.0 + stops_after - 1e-3) is None
        assert requests.heard(50.0 + stops_after + 1e-3) == "scheduler"
