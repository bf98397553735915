"""What the environment says of the launch, and how many threads a rank gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from goco_mpi.engine import launcher
from goco_mpi.engine.launcher import Launch, inspect, limit_threads

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
HYDRA = {"PMI_SIZE": "6", "PMI_RANK": "2", "MPI_LOCALNRANKS": "3"}
SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
BLAS = launcher._THREAD_VARIABLES


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (OPEN_MPI, Launch("Open MPI mpiexec", 8, 3, 4)),
        (HYDRA, Launch("mpiexec (PMI)", 6, 2, 3)),
        (SRUN, Launch("srun", 8, 5, 4)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "16"}, Launch("srun", 8, 5, 16)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,2(x2),1"}, Launch("srun", 8, 5, 3)),
        ({}, Launch("none", None, 0, 1)),
        # A Slurm allocation alone starts nothing: only a step has tasks.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, Launch("none", None, 0, 1)),
    ],
    ids=["Open MPI", "Hydra", "srun", "srun one node", "srun uneven", "alone", "Slurm allocation"],
)
def test_each_launcher(environment: dict[str, str], expected: Launch) -> None:
    assert inspect(environment) == expected


def test_mpiexec_inside_a_slurm_step_counts_not_slurm() -> None:
    # Slurm's step then is the launcher's proxies, one a node.
    proxies = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert inspect({**proxies, **HYDRA}) == inspect(HYDRA)
    assert inspect({**proxies, **OPEN_MPI}) == inspect(OPEN_MPI)
    assert inspect({**HYDRA, **OPEN_MPI}) == inspect(OPEN_MPI)


def test_srun_with_pmi2_knows_how_many_ranks_share_a_node() -> None:
    # Slurm's pmi2 plugin sets PMI_SIZE and PMI_RANK, but not Hydra's MPI_LOCALNRANKS. Taking all ranks
    # for one node's would leave every node but a fraction of its cores.
    launch = inspect({**SRUN, "PMI_SIZE": "8", "PMI_RANK": "5"})
    assert (launch.n_ranks, launch.rank, launch.n_local) == (8, 5, 4)


def test_nonsense_is_survived() -> None:
    launch = inspect({"PMI_SIZE": "many", "PMI_RANK": "", "MPI_LOCALNRANKS": "?"})
    assert (launch.rank, launch.n_local) == (0, 1)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty environment in the place of this process's, as it is before numpy is imported."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(launcher.os, "environ", empty)
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.setattr(launcher, "usable_cores", lambda: 16)
    monkeypatch.setattr(launcher, "node_cores", lambda: 16)
    return empty


def blas(environment: dict[str, str]) -> dict[str, str]:
    """Leave out what pytest itself writes there."""
    return {name: value for name, value in environment.items() if name in BLAS}


@pytest.mark.parametrize(("n_local", "threads"), [(1, 16), (3, 5), (4, 4), (16, 1), (64, 1)])
def test_ranks_share_the_cores_of_their_node(environment: dict[str, str], n_local: int, threads: int) -> None:
    assert limit_threads(Launch("none", n_local, 0, n_local)) == threads
    assert blas(environment) == dict.fromkeys(BLAS, str(threads))


def test_a_bound_rank_gets_no_more_threads_than_its_cores(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "usable_cores", lambda: 2)
    assert limit_threads(Launch("none", 4, 0, 4)) == 2


@pytest.mark.parametrize("variable", BLAS)
def test_what_the_user_set_is_honoured_and_left_alone(environment: dict[str, str], variable: str) -> None:
    environment[variable] = "7"
    assert limit_threads(Launch("none", 4, 0, 4)) == 7
    assert blas(environment) == {variable: "7"}


def test_a_list_of_threads_for_nested_regions_is_what_the_user_set(environment: dict[str, str]) -> None:
    environment["OMP_NUM_THREADS"] = "3,2"
    assert limit_threads(Launch("none", 4, 0, 4)) == 3
    assert blas(environment) == {"OMP_NUM_THREADS": "3,2"}


@pytest.mark.parametrize("value", ["", "0", "many"])
def test_what_is_no_number_of_threads_is_not_what_the_user_set(environment: dict[str, str], value: str) -> None:
    environment["OMP_NUM_THREADS"] = value
    assert limit_threads(Launch("none", 4, 0, 4)) == 4
    assert blas(environment) == dict.fromkeys(BLAS, "4")


def test_once_numpy_is_there_the_environment_is_left_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", os)  # any module: its name is what counts
    limited: list[int] = []
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda limits, user_api: limited.append(limits))
    assert [limit_threads(Launch("none", 4, 0, 4))] == limited
    assert blas(environment) == {}


def test_cores_are_positive() -> None:
    assert 1 <= launcher.usable_cores() <= launcher.node_cores()


@pytest.mark.parametrize("first", ["", "import numpy\n"])
def test_the_limit_reaches_the_blas(mpiexec: list[str], first: str) -> None:
    # Whether numpy is there already decides how, so it is a real process that must show it.
    program = first + (
        "from goco_mpi.engine.session import THREADS\n"
        "import numpy, os, threadpoolctl\n"
        "pools = {p['num_threads'] for p in threadpoolctl.threadpool_info() if p['user_api'] == 'blas'}\n"
        # One write a rank: the pieces of two prints may come out mixed.
        "os.write(1, (' '.join(map(str, [THREADS, *pools])) + chr(10)).encode())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in BLAS}
    ran = subprocess.run(
        [*mpiexec, "-n", "2", sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    expected = max(1, min(launcher.usable_cores(), launcher.node_cores() // 2))
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        threads, *pools = line.split()
        assert threads == str(expected)
        assert set(pools) <= {str(expected)}  # none where numpy has a BLAS that threadpoolctl does not know
