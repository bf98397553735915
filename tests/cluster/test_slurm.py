"""The checked-in job scripts on a real Slurm of four nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jobs
import pytest
import slurm
from slurm import Slurm

pytestmark = pytest.mark.cluster

SCRIPTS = sorted(path.name for path in (jobs.REPOSITORY / "jobscripts" / "slurm").glob("*.sh"))


@pytest.fixture(scope="module")
def cluster(need: Callable[[str | None], None], required: bool) -> Iterator[Slurm]:
    if required and slurm.missing():
        slurm.install(slurm.PACKAGES)
    need(slurm.missing())
    with Slurm() as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return jobs.copy(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_every_script(cluster: Slurm, place: Path, script: str) -> None:
    ended = cluster.run("sbatch", "--test-only", f"slurm/{script}", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "4 nodes" in ended.stderr or "node[1-4]" in ended.stderr
