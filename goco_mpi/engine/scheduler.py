"""When the batch scheduler ends the job, read from its environment."""

from __future__ import annotations

import math
from collections.abc import Mapping

ENDS = ("GOCO_JOB_END_TIME", "SLURM_JOB_END_TIME")
"""Variables that hold the end of the job in Unix seconds; a job script may set the first where there is no other."""
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""Variables that a batch job has."""
LENGTHS = ("PBS_WALLTIME",)
"""Variables that hold how many seconds the job has in all (Torque): counted from now, so a little late."""


def job_end(environment: Mapping[str, str], now: float) -> float | None:
    """Return when the scheduler ends the job; None where it does not say.

    Parameters
    ----------
    environment : mapping of str to str
    now : float
        In Unix seconds, as the result.

    Notes
    -----
    An end in the past is that of a job long gone, whose environment somebody has kept.

    Examples
    --------
    >>> job_end({"SLURM_JOB_END_TIME": "1700003600"}, now=1.7e9)
    1700003600.0
    >>> job_end({"PBS_WALLTIME": "600"}, now=1.7e9)
    1700000600.0
    """
    for names, start in ((ENDS, 0.0), (LENGTHS, now)):
        for name in names:
            end = start + _number(environment.get(name, ""))
            if now < end < math.inf:
                return end
    return None


def stop_time(end: float, margin_s: float, now: float) -> float:
    """Return when a run is to stop that must not be running at ``end``.

    The margin takes at most half of the time that is left, so that a short job does something, too.

    Examples
    --------
    >>> stop_time(end=3600.0, margin_s=120.0, now=0.0), stop_time(end=60.0, margin_s=120.0, now=0.0)
    (3480.0, 30.0)
    """
    return end - min(margin_s, 0.5 * (end - now))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
