"""The checked-in scripts as shellcheck sees them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import jobs
import pytest
import slurm

STANDIN = jobs.REPOSITORY / "tests" / "cluster" / "standins" / "ssh"

pytestmark = pytest.mark.cluster


def test_shellcheck_finds_nothing(need: Callable[[str | None], None], required: bool) -> None:
    if required and not shutil.which("shellcheck"):
        slurm.install(["shellcheck"])
    need(None if shutil.which("shellcheck") else "no shellcheck: apt-get install shellcheck")
    scripts = sorted((jobs.REPOSITORY / "jobscripts").glob("**/*.sh"))
    assert len(scripts) == 16
    ended = subprocess.run(["shellcheck", *scripts, STANDIN], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
