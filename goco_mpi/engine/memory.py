"""The memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def resident_mib() -> float:
    """Return this process's resident memory, or its peak so far where the system does not tell."""
    return _status("VmRSS") or peak_mib()


def peak_mib() -> float:
    """Return the largest resident memory that this process has had so far, since its program began."""
    known = _status("VmHWM")
    if known:  # the next line may count what started this program, too
        return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / float(1 << 20 if sys.platform == "darwin" else 1 << 10)


def _status(name: str) -> float:
    """Return what Linux says of this process, in MiB; 0 elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024.0
    except OSError:
        pass
    return 0.0
