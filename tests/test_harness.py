"""The plugin in conftest.py: a failure on one rank is reported, and ends all ranks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
TIMEOUT_S = 60
"""What a hanging job is ended by; a failing one takes seconds."""

HEAD = """\
import pytest
from mpi4py import MPI
world = MPI.COMM_WORLD
"""


def pytest_on_two_ranks(mpiexec: list[str], directory: Path, body: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, directory)
    (directory / "test_inner.py").write_text(HEAD + body)
    (directory / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    return subprocess.run(
        [*mpiexec, "-n", "2", sys.executable, "-m", "pytest", "--only-mpi", "-q", "test_inner.py"],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


# In each, rank 0 waits for rank 1 and would do so for ever.
FAILURES = {
    "assertion": """
@pytest.mark.mpi(min_size=2)
def test_inner():
    assert world.rank == 0, "the reason"
    world.Barrier()
""",
    "import": """
if world.rank == 1:
    raise ValueError("the reason")
world.Barrier()
""",
    "fixture": """
@pytest.fixture
def broken():
    if world.rank == 1:
        raise ValueError("the reason")

@pytest.mark.mpi(min_size=2)
def test_inner(broken):
    world.Barrier()
""",
    "teardown": """
@pytest.fixture
def broken():
    yield
    if world.rank == 1:
        raise ValueError("the reason")
    world.Barrier()

@pytest.mark.mpi(min_size=2)
def test_inner(broken):
    pass
""",
    "session": """
from goco_mpi.engine.session import Session

@pytest.mark.mpi(min_size=2)
def test_inner():
    with Session() as session:
        assert session.rank == 0, "the reason"
        session.comm.Barrier()
""",
}


@pytest.mark.parametrize("where", FAILURES)
def test_a_failure_on_one_rank_is_told_and_ends_all(mpiexec: list[str], tmp_path: Path, where: str) -> None:
    ended = pytest_on_two_ranks(mpiexec, tmp_path, FAILURES[where])
    assert ended.returncode != 0
    assert "rank 1/2 FAILED" in ended.stderr
    assert "test_inner.py" in ended.stderr
    assert "the reason" in ended.stderr
    assert "rank 0/2 FAILED" not in ended.stderr


PASSING = """
@pytest.mark.mpi(min_size=2)
def test_on_two():
    world.Barrier()

@pytest.mark.mpi
def test_on_any():
    pass

@pytest.mark.mpi(min_size=3)
def test_on_three():
    assert False

def test_serial():
    assert False
"""


def test_one_rank_reports_what_these_ranks_can_run(mpiexec: list[str], tmp_path: Path) -> None:
    ended = pytest_on_two_ranks(mpiexec, tmp_path, PASSING)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("2 passed, 2 deselected") == 1
    assert "FAILED" not in ended.stdout + ended.stderr


def test_few_ranks_share_the_combinations_and_each_size_has_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("harness", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    monkeypatch.setattr(harness, "_under_mpi", lambda config: True)
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    config = SimpleNamespace(hook=hook, getoption=lambda name: False)
    marks = [
        pytest.mark.parametrize("a", "xyz").mark,
        pytest.mark.parametrize(("b", "c"), [(0, 4), (1, 5), (2, 6)]).mark,
    ]
    every = [
        SimpleNamespace(
            callspec=SimpleNamespace(params={"a": "xyz"[a], "b": b, "c": b + 4}),
            get_closest_marker={"mpi": pytest.mark.mpi(shared=True).mark}.get,
            iter_markers=lambda name: marks,
        )
        for a in range(3)
        for b in range(3)
    ]
    parts = []
    for n_ranks in (1, 2, 3, 4):
        monkeypatch.setattr(harness, "_world", lambda n_ranks=n_ranks: SimpleNamespace(size=n_ranks))
        chosen = list(every)
        harness.pytest_collection_modifyitems(config, chosen)
        parts.append([(item.callspec.params["a"], item.callspec.params["b"]) for item in chosen])
    assert [len(part) for part in parts] == [3, 3, 3, 9]
    assert sorted(parts[0] + parts[1] + parts[2]) == parts[3]
    for part in parts:
        assert [set(values) for values in zip(*part, strict=True)] == [set("xyz"), {0, 1, 2}]


def test_mpi_tests_stay_out_of_a_serial_run(tmp_path: Path) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_inner.py").write_text(HEAD + PASSING.replace("assert False", "assert True"))
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--basetemp={tmp_path / 'inner'}", "test_inner.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed, 3 deselected" in ended.stdout
