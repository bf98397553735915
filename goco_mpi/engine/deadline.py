"""Waiting with a deadline: MPI has no timed wait, this is ours.

`waitsome_until` tests, and sleeps in between: a blocking MPI call would spin a core and could not be left.
"""

from __future__ import annotations

import os
import time

from mpi4py import MPI

from goco_mpi.errors import RunError

YIELDS = 50
"""Tests before the first sleep, with only the core given up in between.

A message that is under way costs no sleep then: punctual rounds of short messages took 1.7 times as long
when ranks that share cores slept at once.
"""


def _pause(n_tests: int, poll_s: float) -> None:
    """Let others have the core between two tests, ever longer; not at all where ``poll_s`` is 0."""
    if poll_s > 0.0:
        if n_tests <= YIELDS:
            os.sched_yield()
        else:
            time.sleep(poll_s)


def waitsome_until(requests: list[MPI.Request], deadline: float, poll_s: float) -> list[int]:
    """Return the indices of completed requests, as soon as there is one or at the deadline.

    Parameters
    ----------
    requests : list of MPI.Request
        Completed ones become null, or inactive if they are persistent.
    deadline : float
        On the clock of `time.perf_counter`, in seconds; in the past: test once.
    poll_s : float
        Sleep between two tests in seconds; 0 spins.

    Returns
    -------
    list of int
        Empty if nothing completed in time, or nothing is active.
    """
    testsome = MPI.Request.Testsome
    n_tests = 0
    while True:
        indices = testsome(requests)
        if indices is None:
            return []
        if indices or time.perf_counter() >= deadline:
            return indices
        n_tests += 1
        _pause(n_tests, poll_s)


def overdue(what: str, shutdown_s: float) -> RunError:
    """Return the error of an end that did not come within ``deadline.shutdown_s``; ``what`` says who is missing."""
    return RunError(
        f"{what}. deadline.shutdown_s = {shutdown_s:g} s have passed since this rank was done. Some rank is frozen, "
        "or much slower than the others; raise deadline.shutdown_s if that is expected."
    )
