"""Ranks on nodes of their own, with real TCP between them, and what they do when a node is in trouble."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import slurm
import watched
from nodes import Nodes, NodesError, missing
from throttle import DutyCycle, processor_time_s
from watched import Watched, Window
from wire import Line

from goco_mpi.record import read_run
from goco_mpi.replay import replay

pytestmark = pytest.mark.cluster

EXPERIMENT = """
rounds = 100000
[data]
source = "breast_cancer"
shards = 8
standardize = true
partition = "by_label"
[objective]
kind = "logistic"
l2 = 0.1
[topology]
kind = "complete"
[deadline]
poll_s = 1e-4
[stragglers]
work_s = 0.01
[record]
every = 1000
optimum = true
timeline = true
"""
PUSH_PULL = ["method.kind=push_pull", "step.scale=2"]
AT_FAULT = 2
LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def possible(need: Callable[[str | None], None], required: bool) -> None:
    if required and missing() is not None:
        slurm.install(["iproute2"])
        missing.cache_clear()
    need(missing())


@pytest.fixture
def four() -> Iterator[Nodes]:
    with Nodes(4) as nodes:
        yield nodes


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(params=["own", "other"])
def launch(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """Interpreter and launcher: those of this environment, then those of the other MPI."""
    if request.param == "other":
        return request.getfixturevalue("other_launch")
    return sys.executable, request.getfixturevalue("mpiexec")


def finish(job: subprocess.Popen[str], output: Path) -> str:
    """Wait for a job that should end well, and return what it printed."""
    code = job.wait(LIMIT_S)
    assert code == 0, output.read_text()
    return output.read_text()


def expect_optimum(run: Watched) -> None:
    assert replay(run.record).differences.max() <= 1e-12
    assert run.record.run["result"]["suboptimality"] <= 1e-5


def test_every_rank_is_alone_on_its_node_and_its_vectors_go_through_the_network(
    four: Nodes, experiment: Path, launch: tuple[str, list[str]], tmp_path: Path
) -> None:
    python, mpiexec = launch
    out, output = tmp_path / "run", tmp_path / "log"
    before = [four.bytes_sent(node) for node in range(4)]
    goco = [python, "-m", "goco_mpi", "run", str(experiment), "--set", "rounds=100", "--out", str(out)]
    finish(four.start(mpiexec, goco, output), output)
    run = read_run(out)
    assert run.run["environment"]["hosts"] == four.names
    assert run.run["environment"]["ranks_on_node"] == [1, 1, 1, 1]
    for node, row in enumerate(run.ranks):
        sent = four.bytes_sent(node) - before[node]
        assert sent >= row["bytes_sent"]
        # Headers, the data from rank 0, and what launcher and MPI tell each other.
        assert sent <= 2 * row["bytes_sent"] + 4e6


def test_sixteen_nodes_start(mpiexec: list[str], tmp_path: Path) -> None:
    program = (
        "from mpi4py import MPI; w = MPI.COMM_WORLD; s = w.Split_type(MPI.COMM_TYPE_SHARED);"
        "a = w.gather((MPI.Get_processor_name(), s.size)); w.rank or print(a)"
    )
    output = tmp_path / "log"
    with Nodes(16) as nodes:
        said = finish(nodes.start(mpiexec, [sys.executable, "-c", program], output), output)
        assert said.strip() == str([(name, 1) for name in nodes.names])


def cut(nodes: Nodes, seconds: float) -> Window:
    return watched.during(partial(nodes.unplug, AT_FAULT), seconds, partial(nodes.plug_in, AT_FAULT))


def test_gossip_goes_on_without_a_node_that_is_cut_off_and_takes_it_back(
    four: Nodes, experiment: Path, mpiexec: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # TCP may take 6 s until it tries again; some hundred rounds are left then.
    window = watched.run(four, mpiexec, experiment, out, [*PUSH_PULL, "rounds=900"], lambda: cut(four, 3.0))
    run = watched.read(out)
    expect_optimum(run)
    others = [rank for rank in range(4) if rank != AT_FAULT]
    # At 10 ms and more a gradient there is time for 300: a standstill of two seconds would leave fewer than that.
    assert min(run.gradients(rank, window) for rank in others) >= 100
    assert max(run.heard_of(AT_FAULT, by=rank, window=window) for rank in others) <= 2  # what was under way
    after = Window(window.end_s, run.end_s(range(4)))
    assert max(run.heard_of(AT_FAULT, by=rank, window=after) for rank in others) >= 10


def test_an_allreduce_stands_still_while_a_node_is_cut_off(
    four: Nodes, experiment: Path, mpiexec: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["method.kind=allreduce", "stop.time_limit_s=5"]
    window = watched.run(four, mpiexec, experiment, out, settings, lambda: cut(four, 3.0))
    run = watched.read(out)
    assert replay(run.record).differences.max() <= 1e-12
    assert max(run.gradients(rank, window) for rank in range(4)) <= 2
    assert min(run.gradients(rank, Window(0.0, run.end_s(range(4)))) for rank in range(4)) >= 5


def test_a_run_with_a_delayed_node_ends_at_the_optimum(
    four: Nodes, experiment: Path, mpiexec: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    delay = partial(four.impair, AT_FAULT, delay_s=0.02)
    watched.run(four, mpiexec, experiment, out, [*PUSH_PULL, "rounds=500"], delay)
    expect_optimum(watched.read(out))


def test_a_killed_rank_ends_the_job(four: Nodes, experiment: Path, mpiexec: list[str], tmp_path: Path) -> None:
    with pytest.raises(NodesError, match=r"the run ended with (?!0|None)"):
        watched.run(four, mpiexec, experiment, tmp_path / "run", [], lambda: four.kill(AT_FAULT))


def connect_s(nodes: Nodes) -> float:
    """Return how long node 1 takes to connect to node 0: a round trip."""
    serve = "import socket; s = socket.create_server(('node0', 5000)); print('ready', flush=True); s.accept()"
    connect = (
        "import socket, time; t = time.perf_counter(); socket.create_connection(('node0', 5000));"
        "print(time.perf_counter() - t)"
    )
    server = subprocess.Popen([*nodes.inside(0), sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        client = [*nodes.inside(1), sys.executable, "-c", connect]
        return float(subprocess.run(client, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout)


def test_a_bad_link_delays_both_ways_until_it_is_mended() -> None:
    with Nodes(2) as nodes:
        nodes.impair(1, delay_s=0.2)
        assert connect_s(nodes) >= 0.4
        nodes.mend(1)
        assert connect_s(nodes) < 0.4


def test_a_line_keeps_its_rate_its_order_and_its_loss() -> None:
    line = Line(delay_s=0.01, loss=0.0, bits_per_s=8e6)
    arrivals = [line.arrival(0.0, 1000) for _ in range(100)]
    assert arrivals == pytest.approx([0.011 + 0.001 * place for place in range(100)])
    n_dropped = [line.arrival(0.0, 1000) for _ in range(300)].count(None)
    assert 195 <= n_dropped <= 205  # those that would wait more than 0.2 s
    lossy = Line(delay_s=0.0, loss=0.05, bits_per_s=float("inf"))
    assert 400 <= [lossy.arrival(0.0, 1000) for _ in range(10_000)].count(None) <= 600


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


def test_nothing_outlives_the_nodes_whatever_happens(mpiexec: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Nodes(2) as nodes:
        program = "from mpi4py import MPI; print('here', flush=True); import time; time.sleep(600)"
        output = tmp_path / "log"
        job = nodes.start(mpiexec, [sys.executable, "-c", program], output)
        end = time.monotonic() + LIMIT_S
        while output.read_text().count("here") < 2 and time.monotonic() < end:
            time.sleep(0.01)
        pids = [pid for _, pid in nodes.processes()]
        assert {nodes.rank_pid(0), nodes.rank_pid(1), job.pid} <= set(pids)
        nodes.freeze(1)
        nodes.impair(1, delay_s=0.1)
        raise KeyboardInterrupt
    assert not [pid for pid in pids if alive(pid)]
    assert job.returncode is not None


BUSY = "while True: pass"


def test_a_slowed_rank_gets_a_tenth_of_its_processor_time_until_it_is_sped_up(
    mpiexec: list[str], tmp_path: Path
) -> None:
    with Nodes(1) as nodes:
        nodes.start(mpiexec, [sys.executable, "-c", BUSY], tmp_path / "log")
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                pid = nodes.rank_pid(0)
                break
            except NodesError:
                assert time.monotonic() < end
        nodes.slow_down(0, 10.0)
        before, start = processor_time_s(pid), time.perf_counter()
        time.sleep(1.0)
        assert processor_time_s(pid) - before <= 0.2 * (time.perf_counter() - start)
        nodes.speed_up(0)
        before = processor_time_s(pid)
        end = time.monotonic() + LIMIT_S
        while processor_time_s(pid) - before < 0.3:
            assert time.monotonic() < end


def test_without_cgroups_a_process_is_stopped_for_most_of_the_time() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        cycle = DutyCycle(process.pid, 0.1)
        try:
            start = time.perf_counter()
            time.sleep(1.0)
            assert processor_time_s(process.pid) <= 0.4 * (time.perf_counter() - start)
        finally:
            cycle.end()
            process.kill()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    missing.cache_clear()
    try:
        assert missing() == "emulated nodes need root"
        with pytest.raises(NodesError, match="root"), Nodes(2):
            pass
    finally:
        missing.cache_clear()
