"""What the tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from goco_mpi.engine.session import Session


@pytest.fixture
def session() -> Iterator[Session]:
    """A session that is left to the test harness where a test fails.

    As a context manager it would abort the job itself, before pytest has said what failed.
    """
    session = Session()
    yield session
    session.close()
