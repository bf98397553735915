"""Facts about this machine that do not come from MPI or the launcher."""

from __future__ import annotations

import os
from pathlib import Path

CPU = Path("/sys/devices/system/cpu/cpu0/cache")
SMALLEST_BLOCK, LARGEST_BLOCK = 1 << 18, 1 << 21
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes(level: int, folder: Path = CPU) -> int | None:
    """Return the size of a core's data cache of some level, None where the system does not say.

    Parameters
    ----------
    level : int
        1 is the innermost.
    folder : Path
        Where Linux describes the caches of a core.
    """
    for cache in sorted(folder.glob("index*")):
        try:
            kind, its_level, size = ((cache / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        digits = size.rstrip("KMG")
        if kind != "Instruction" and its_level == str(level) and digits.isdigit() and int(digits):
            return int(digits) * UNITS.get(size[len(digits) :], 1)
    try:
        found = os.sysconf(f"SC_LEVEL{level}_{'DCACHE' if level == 1 else 'CACHE'}_SIZE")
    except (ValueError, OSError):  # not of this system
        return None
    return found if found > 0 else None


def block_bytes(second_level: int | None) -> int | None:
    """Return how many bytes of features fit a pass that goes over each block twice, for a second-level cache.

    As much as the cache holds; the time of a pass was measured to be flat from half to twice of that. Within bounds: a
    block is to take longer than the calls for it, and no longer than a look at the messages may wait.

    Examples
    --------
    >>> block_bytes(1 << 20), block_bytes(1 << 26), block_bytes(None)
    (1048576, 2097152, None)
    """
    return None if second_level is None else min(max(second_level, SMALLEST_BLOCK), LARGEST_BLOCK)
