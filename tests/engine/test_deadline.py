"""Learning how long is usual, and waiting on MPI until then."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from mpi4py import MPI

from goco_mpi.engine.deadline import waitsome_until
from goco_mpi.engine.session import Session

LONG_S = 60.0
"""A deadline that is reached only if something hangs."""


def ring(comm: MPI.Intracomm) -> tuple[int, int]:
    """Return the ranks before and behind this one."""
    return (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("poll_s", [0.0, 1e-4])
def test_nothing_arrives_and_the_wait_ends_at_the_deadline(session: Session, poll_s: float) -> None:
    before, behind = ring(session.comm)
    buffer = np.zeros(1)
    request = session.comm.Irecv(buffer, before)
    session.comm.Barrier()
    for ahead in (-1.0, 0.0, 0.02):
        deadline = time.perf_counter() + ahead
        assert waitsome_until([request], deadline, poll_s) == []
        assert time.perf_counter() >= deadline
    # The request is as it was: what comes later is received.
    session.comm.Barrier()
    session.comm.Send(np.array([session.rank + 0.5]), behind)
    assert waitsome_until([request], time.perf_counter() + LONG_S, poll_s) == [0]
    assert buffer[0] == before + 0.5
    assert request == MPI.REQUEST_NULL


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("poll_s", [0.0, 1e-4])
def test_an_arrival_ends_the_wait_and_names_its_request(session: Session, poll_s: float) -> None:
    before, behind = ring(session.comm)
    buffers = np.zeros((3, 1))
    requests = [session.comm.Irecv(buffers[tag], before, tag) for tag in range(3)]
    for tag in (1, 2, 0):
        sending = session.comm.Isend(np.array([10.0 * tag]), behind, tag)
        assert waitsome_until(requests, time.perf_counter() + LONG_S, poll_s) == [tag]
        assert buffers[tag, 0] == 10.0 * tag
        sending.Wait()
        session.comm.Barrier()
    # Nothing is active any more: it returns at once, whatever the deadline.
    assert waitsome_until(requests, math.inf, poll_s) == []


@pytest.mark.mpi(min_size=2)
def test_a_deadline_in_the_past_still_looks_once(session: Session) -> None:
    before, behind = ring(session.comm)
    buffer = np.zeros(1)
    request = session.comm.Irecv(buffer, before)
    session.comm.Send(np.array([3.0]), behind)
    found: list[int] = []
    end = time.perf_counter() + LONG_S
    # Delivery takes MPI a look or more, and each of these calls is worth one.
    while not found and time.perf_counter() < end:
        found = waitsome_until([request], -math.inf, poll_s=LONG_S)
    assert found == [0]
    assert buffer[0] == 3.0
