"""A process that gets less of the processors than it wants: by a cgroup's quota, else stopped and continued in turn."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

QUOTA_US = 2000
"""Microseconds of processor time in a period; the kernel allows 1000 at least, and periods of at most a second."""
CYCLE_S = 0.1
MEASURED_S = 1.0


def processor_time_s(pid: int) -> float:
    """Return the processor time that a process has had, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def usual_cores(pid: int) -> float:
    """Return how many cores a process keeps busy, measured for a second."""
    before, start = processor_time_s(pid), time.perf_counter()
    time.sleep(MEASURED_S)
    return (processor_time_s(pid) - before) / (time.perf_counter() - start)


def quota_folder() -> tuple[int, Path] | None:
    """Return the version and the folder of cgroups that limit processor time here, where there are such."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options = line.split()[:4]
        path = Path(folder)
        if kind == "cgroup2" and "cpu" in (path / "cgroup.subtree_control").read_text().split():
            return 2, path
        if kind == "cgroup" and "cpu" in options.split(",") and os.access(path, os.W_OK):
            return 1, path
    return None


class Quota:
    """A cgroup that gives a process ``cores`` of the processors, 0.002 at least.

    Parameters
    ----------
    folder : (int, Path)
        Of `quota_folder`.
    pid : int
    cores : float
    """

    def __init__(self, folder: tuple[int, Path], pid: int, cores: float) -> None:
        version, self._parent = folder
        self._group = self._parent / f"goco-{os.getpid()}-{pid}"
        self._group.mkdir()
        period_us = round(min(QUOTA_US / cores, 1e6))
        if version == 2:
            (self._group / "cpu.max").write_text(f"{QUOTA_US} {period_us}")
        else:
            (self._group / "cpu.cfs_period_us").write_text(str(period_us))
            (self._group / "cpu.cfs_quota_us").write_text(str(QUOTA_US))
        (self._group / "cgroup.procs").write_text(str(pid))

    def end(self) -> None:
        """Let the process have what it wants."""
        for pid in (self._group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self._parent / "cgroup.procs").write_text(pid)
        end = time.monotonic() + 5.0
        while True:  # a process that has just ended may still be in it
            try:
                self._group.rmdir()
                return
            except OSError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.01)


class DutyCycle:
    """Stops a process but for a ``share`` of every tenth of a second; what sleeps does not get slower by it."""

    def __init__(self, pid: int, share: float) -> None:
        self._pid, self._share = pid, share
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not self._ended.is_set():
                os.kill(self._pid, signal.SIGSTOP)
                self._ended.wait(CYCLE_S * (1.0 - self._share))
                os.kill(self._pid, signal.SIGCONT)
                self._ended.wait(CYCLE_S * self._share)

    def end(self) -> None:
        """Let the process run on."""
        self._ended.set()
        self._thread.join()


def slow_down(pid: int, factor: float) -> Quota | DutyCycle:
    """Give a process a ``factor``-th of the processor time that it has had in the last second."""
    folder = quota_folder()
    if folder is None:
        return DutyCycle(pid, 1.0 / factor)
    return Quota(folder, pid, max(usual_cores(pid) / factor, QUOTA_US * 1e-6))
