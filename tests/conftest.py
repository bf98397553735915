"""Tests under mpiexec: one rank reports, and a failure on any rank ends all of them.

pytest-mpi gives the markers; alone it hangs when one rank fails, since the others wait for it
in their next collective. Here a failing rank says so, prints its traceback and aborts the job.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

# Open MPI's own settings for more ranks than cores, as root in a container; others ignore them.
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path(sys.executable).with_name("mpiexec")
    parser.addoption(
        "--goco-mpiexec",
        default=str(default) if default.exists() else shutil.which("mpiexec") or "",
        help="the launcher that tests of the command line start ranks with",
    )


def _under_mpi(config: pytest.Config) -> bool:
    return bool(config.getoption("--only-mpi") or config.getoption("--with-mpi"))


def _world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give every rank a temporary directory of its own: in a common one each would tidy up after the others."""
    if _under_mpi(config) and config.option.basetemp is None:
        config.option.basetemp = tempfile.mkdtemp(prefix="goco_mpi-tests-")
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not _under_mpi(config):
        return
    from goco_mpi.engine.session import Session

    # A test that fails inside a session ends the job through this plugin, which says what failed.
    Session.abort = lambda self, message: None
    if _world().rank > 0:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        config.pluginmanager.unregister(reporter)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what this run is for: MPI tests that this many ranks can run, or serial ones."""
    size = _world().size if _under_mpi(config) else 0

    def wanted(item: pytest.Item) -> bool:
        marker = item.get_closest_marker("mpi")
        if not size:
            return marker is None
        return marker is not None and marker.kwargs.get("min_size", 1) <= size

    chosen = [item for item in items if wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = chosen


def _end_all(config: pytest.Config, what: str, trace: str) -> None:
    world = _world()
    print(f"\nrank {world.rank}/{world.size} FAILED {what}\n{trace}", file=sys.__stderr__, flush=True)
    if world.size > 1:
        from goco_mpi.engine.session import LAST_WORDS_S

        time.sleep(LAST_WORDS_S)  # or the abort overtakes what was printed
        world.Abort(1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = (yield).get_result()
    if report.failed and _under_mpi(item.config):
        _end_all(item.config, f"{item.nodeid} ({report.when})", report.longreprtext)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = (yield).get_result()
    if report.failed and _under_mpi(collector.config):
        _end_all(collector.config, f"import of {collector.nodeid}", str(report.longrepr))


@pytest.fixture
def mpiexec(request: pytest.FixtureRequest) -> list[str]:
    """The launcher as the beginning of a command line."""
    launcher = request.config.getoption("--goco-mpiexec")
    assert launcher, "no mpiexec: install an MPI, or name one with --goco-mpiexec"
    return launcher.split()
