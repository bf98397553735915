"""Tests of clusters: only with -m cluster. Where something that they need is missing they skip, and say what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REQUIRED = os.environ.get("GOCO_CLUSTER_REQUIRED") == "1"
"""Whether what is missing is a failure: so in continuous integration, where nothing may be skipped."""
OTHER_PYTHON = os.environ.get("GOCO_OTHER_PYTHON", "")
"""An interpreter of an environment with the other MPI: Open MPI beside MPICH, or the reverse."""


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if "cluster" in config.getoption("markexpr") else True


@pytest.fixture(scope="session")
def need() -> Callable[[str | None], None]:
    """Skip the test for the reason given, if there is one; fail it where nothing may be skipped."""

    def check(reason: str | None) -> None:
        if reason is not None:
            (pytest.fail if REQUIRED else pytest.skip)(reason)

    return check


@pytest.fixture
def other_launch(need: Callable[[str | None], None]) -> tuple[str, list[str]]:
    """The interpreter and the launcher of the other MPI."""
    need(None if OTHER_PYTHON else "GOCO_OTHER_PYTHON names no interpreter of an environment with the other MPI")
    return OTHER_PYTHON, [str(Path(OTHER_PYTHON).with_name("mpiexec"))]


@pytest.fixture(scope="session")
def required() -> bool:
    """Whether what is missing is to be installed."""
    return REQUIRED
