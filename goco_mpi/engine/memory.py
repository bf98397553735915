"""The memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def resident_mib() -> float:
    """Return this process's resident memory, or its peak so far where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024.0
    except OSError:
        pass
    return peak_mib()


def peak_mib() -> float:
    """Return the largest resident memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / float(1 << 20 if sys.platform == "darwin" else 1 << 10)
