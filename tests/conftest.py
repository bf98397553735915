"""Tests under mpiexec: one rank reports, and a failure on any rank ends all of them.

pytest-mpi gives the markers; alone it hangs when one rank fails, since the others wait for it
in their next collective. Here a failing rank says so, prints its traceback and aborts the job.

Tests of many combinations are marked ``mpi(shared=True)``: 1, 2 and 3 ranks share them, and more ranks go through
all of them. Each of those three sizes gets every value of every parameter (a Latin square of them), as what few
ranks have to themselves, such as no neighbour or one, goes with a value and hardly with a combination of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("goco_mpi", deadline=None)
settings.load_profile("goco_mpi")

collect_ignore_glob = ["*conftest.py"]  # which have no examples to run, and the same name in every directory

# Open MPI's own settings for more ranks than cores, as root in a container; others ignore them.
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")

SHARING = 3
"""So many ranks or fewer share the combinations of a test that is marked ``shared``."""
PAUSE_S = 2e-3
"""Between two looks for the others at the beginning of a test."""
RUN_LIMIT_S = 60
"""What a hanging run of a few seconds is ended by."""


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path(sys.executable).with_name("mpiexec")
    parser.addoption(
        "--goco-mpiexec",
        default=str(default) if default.exists() else shutil.which("mpiexec") or "",
        help="the launcher that tests of the command line start ranks with",
    )
    parser.addoption("--goco-large", action="store_true", help="also what takes minutes")
    parser.addoption(
        "--goco-resumed",
        action="store_true",
        help="what is compared with the simulator is ended and resumed in the place of that",
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
    if config.getoption("--goco-resumed"):
        os.environ["GOCO_TESTS_RESUMED"] = "1"
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
        if marker is None or marker.kwargs.get("min_size", 1) > size:
            return False
        if not (config.getoption("--goco-large") or _quick(item, size)):
            return False
        return size > SHARING or not marker.kwargs.get("shared") or _turn(item) % SHARING == size % SHARING

    chosen = [item for item in items if wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = chosen


def _quick(item: pytest.Item, size: int) -> bool:
    """Return whether a test is among the quick ones of those that are otherwise for --goco-large."""
    marker = item.get_closest_marker("quick")
    if marker is None:
        return True
    name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
    return size in marker.kwargs["sizes"] and (name is None or name in marker.kwargs["names"])


def _turn(item: pytest.Item) -> int:
    """Return the sum of the places of a test's values among those of their parameters."""
    places = 0
    for mark in item.iter_markers("parametrize"):
        names, values = mark.args
        several = names.split(",") if isinstance(names, str) else list(names)
        value = tuple(item.callspec.params[name.strip()] for name in several)
        places += list(values).index(value if len(several) > 1 else value[0])
    return places


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin a test together: whoever waits for rank 0, which compares and replays, leaves it the cores."""
    if _under_mpi(item.config):
        request = _world().Ibarrier()
        while not request.Test():
            time.sleep(PAUSE_S)


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


@pytest.fixture(scope="module")
def run_experiment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that runs a module's EXPERIMENT with some settings on its N_RANKS, and returns the record."""
    directory = tmp_path_factory.mktemp("runs")
    (directory / "experiment.toml").write_text(request.module.EXPERIMENT)
    launcher = [*request.config.getoption("--goco-mpiexec").split(), "-n", str(request.module.N_RANKS)]

    def run(name: str, *settings: str, resume: bool = False) -> Path:
        command = [sys.executable, "-m", "goco_mpi", "run", "experiment.toml", "--out", name, "--quiet"]
        words = [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(
            [*launcher, *command, *words, *(["--resume"] if resume else [])],
            cwd=directory,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return directory / name

    return run
