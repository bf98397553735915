"""``goco bench``: figures, their bounds, every member measured once for real, and the peers' environment."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from goco_mpi.bench import gradient, load, members, run, simulation
from goco_mpi.bench import peers as peer_programs
from goco_mpi.bench.measuring import Figure, Member, Setup, figure, measure
from goco_mpi.bench.members import MEMBERS, ON_REQUEST, on_ranks
from goco_mpi.cli import main
from goco_mpi.core import objectives
from goco_mpi.core.events import NONE, Events
from goco_mpi.core.pace.suspicion import TRUSTED_AFTER
from goco_mpi.core.simulate import simulate
from goco_mpi.core.stacked import gossip_step
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.engine import benchmarks
from goco_mpi.engine.freezing import Freeze, rounds_to_trust, seconds_lost
from goco_mpi.errors import InputError, RunError

KEYS = {"name", "case", "value", "unit", "bound", "ok", "median", "min", "max", "repeats"}
NAMES = [
    "exchange",
    "isolation",
    "memory",
    "gradient",
    "load",
    "startup",
    "recovery",
    "simulate",
    "train",
    "train-2gb",
    "peers",
]


@pytest.fixture
def setup(mpiexec: list[str], tmp_path: Path) -> Setup:
    return Setup(tuple(mpiexec), tmp_path / "peers")


def nothing(*arguments: object) -> list[float]:
    raise AssertionError("nobody asked for this")


def measured(setup: Setup, n_ranks: int, sample: Callable[[Setup], list[float]]) -> float:
    """Return what one repeat on a few ranks gives: what is tested is the way of a figure, not the figure."""
    found = measure(Member("reduced", "form", sample), dataclasses.replace(setup, n_ranks=n_ranks, repeats=1))
    assert found.repeats == 1
    return found.value


# --- figures ---


def test_a_figure_is_the_median_and_its_spread_in_the_unit_of_its_member() -> None:
    found = figure(Member("memory", "x", nothing, unit="MiB"), [3.0, 1.0, 2.0])
    assert (found.median, found.min, found.max, found.repeats) == (2.0, 1.0, 3.0, 3)
    assert found.value == found.median
    assert found.unit == "MiB"
    assert found.ok is None


@pytest.mark.parametrize(
    ("at_most", "median", "ok"), [(True, 1.0, True), (True, 1.1, False), (False, 1.0, True), (False, 0.9, False)]
)
def test_a_bound_holds_from_its_side(at_most: bool, median: float, ok: bool) -> None:
    assert figure(Member("isolation", "x", nothing, 1.0, at_most), [median]).ok is ok


def test_every_member_has_a_case_of_its_own_and_is_repeated_five_times() -> None:
    assert len({(member.name, member.case) for member in MEMBERS}) == len(MEMBERS)
    assert list(dict.fromkeys(member.name for member in MEMBERS)) == NAMES
    assert Setup((), Path()).repeats >= 5


def test_a_name_that_is_no_member_is_refused_with_those_that_are(setup: Setup) -> None:
    with pytest.raises(InputError, match=rf"'speed'. Known: {', '.join(NAMES)}"):
        run.run(["speed"], setup, as_json=True)


def test_a_table_shows_every_figure_and_its_unit_but_peers_only_on_request(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer_programs, "environment", nothing)
    monkeypatch.setattr(run, "measure", lambda member, setup: figure(member, [0.5]))
    assert not run.run([], setup, as_json=False)  # isolation of 0.5 misses its bound
    printed = capsys.readouterr().out
    for member in MEMBERS:
        assert (member.case in printed) is (member.name not in ON_REQUEST), member
        assert member.unit in printed
    assert "missed" in printed


@pytest.mark.parametrize(
    ("names", "peers", "wanted"),
    [
        ([], True, set(NAMES) - {"train-2gb"}),
        (["train-2gb"], False, {"train-2gb"}),
        (["exchange"], True, {"exchange", "peers"}),
        (["peers"], False, {"peers"}),
    ],
)
def test_peers_are_measured_beside_what_is_named(
    names: list[str], peers: bool, wanted: set[str], setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, made = [], []
    monkeypatch.setattr(peer_programs, "environment", made.append)

    def measure(member: Member, setup: Setup) -> Figure:
        assert made == [setup.peers_dir] * ("peers" in wanted)  # first of all: it may fail
        seen.append(member.name)
        return figure(member, [0.5])

    monkeypatch.setattr(run, "measure", measure)
    run.run(names, setup, as_json=True, peers=peers)
    assert set(seen) == wanted


# --- a measurement that fails ---


def test_a_launcher_that_is_missing_or_fails_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_such_launcher"):
        measure(MEMBERS[0], Setup(("no_such_launcher",), tmp_path))
    with pytest.raises(RunError, match=r"exchange \(ring 1000\) failed with exit code 1"):
        measure(MEMBERS[0], Setup(("false",), tmp_path))


def test_what_all_ranks_refuse_is_said_once(setup: Setup, capfd: pytest.CaptureFixture[str]) -> None:
    setup = dataclasses.replace(setup, n_ranks=2)
    with pytest.raises(RunError, match=r"bench isolation \(no such rank\) failed with exit code"):
        measure(Member("isolation", "no such rank", on_ranks("frozen", rank=7, frozen_s=1.0)), setup)
    assert capfd.readouterr().err.count("goco: Rank 7 is to be frozen") == 1


def test_a_measurement_that_hangs_is_ended_by_the_signal_that_a_launcher_passes_on(
    setup: Setup, tmp_path: Path
) -> None:
    passed_on = tmp_path / "passed on"
    code = (
        "import pathlib, signal, time\n"
        "def end(number, frame):\n"
        f"    pathlib.Path({str(passed_on)!r}).touch()\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(600)"
    )
    hangs = Member("exchange", "for ever", lambda setup: setup.found([sys.executable, "-c", code]))
    with pytest.raises(RunError, match=r"exchange \(for ever\) did not end within 3 s"):
        measure(hangs, dataclasses.replace(setup, limit_s=3.0))
    assert passed_on.exists()


# --- every member, really measured in a reduced form ---


def test_exchange_is_measured_under_mpiexec_and_printed_as_json(
    mpiexec: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible = Member("exchange", "ring 100", on_ranks("exchange", kind="ring", n_params=100), bound=0.0)
    monkeypatch.setattr(run, "MEMBERS", (impossible,))
    command = ["bench", "exchange", "--json", "--mpiexec", " ".join(mpiexec)]
    assert main(command) == 0  # bounds are for people
    found = json.loads(capsys.readouterr().out)
    assert set(found) == KEYS
    assert found["repeats"] >= 5
    assert 0.0 < found["min"] <= found["median"] <= found["max"]
    assert found["unit"] == "ratio"
    assert found["ok"] is False
    assert main([*command, "--strict"]) == 1


def test_the_fast_ranks_do_not_go_at_the_pace_of_the_slow_one(setup: Setup) -> None:
    # Whoever waits for the slow rank has a tenth of the undisturbed rate.
    rate = measured(setup, 4, on_ranks("isolation", rank=3, factor=10.0, rounds=60))
    assert 0.3 < rate < 3.0


def test_the_fast_ranks_do_not_wait_for_the_frozen_one(setup: Setup) -> None:
    # Whoever waits loses 1.5 s; free cores may even make up for some time.
    lost_s = measured(setup, 4, on_ranks("frozen", rank=3, frozen_s=1.5))
    assert -1.5 < lost_s < 0.75


def test_memory_is_measured_in_processes_of_its_own(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = on_ranks("memory", apart=True, rank=1, factor=10.0, from_round=20, rounds=120)
    assert 0.0 <= measured(setup, 3, sample) < 20.0
    commands = []
    monkeypatch.setattr(Setup, "output", lambda self, command, variables=None: commands.append(command) or "[1.0]")
    assert measure(Member("memory", "x", sample), setup).repeats == len(commands) == 5


def test_a_rank_has_its_shards_once_in_memory(setup: Setup) -> None:
    # Each of two ranks holds all 96 MiB: a second copy would be as much again.
    sample = on_ranks("over_shards", apart=True, n_samples=25_000, n_features=500, rounds=3)
    assert 10.0 < measured(setup, 2, members.beyond_python(sample)) < 100.0


@pytest.mark.parametrize("kind", load.WRITERS)
def test_loading_is_measured_in_this_process(kind: str, setup: Setup) -> None:
    assert 0.0 < measured(setup, 0, members.loaded(kind, n_rows=300, n_features=20)) < math.inf


def test_startup_is_measured_against_bare_mpi4py(setup: Setup) -> None:
    # Ours imports what bare mpi4py does and more.
    assert 0.7 < measured(setup, 3, members.startup) < 100.0


def test_a_rank_that_caught_up_is_waited_for_after_the_rounds_that_suspicion_says(setup: Setup) -> None:
    rounds = measured(setup, 4, on_ranks("recovery", rank=3, frozen_s=0.5))
    assert 1 <= rounds <= TRUSTED_AFTER


# --- what the members compute ---


@pytest.mark.parametrize("against", ["reading", "two_products", "float64"])
def test_gradients_are_measured_in_this_process(against: str) -> None:
    assert all(ratio > 0.0 for ratio in gradient.dense(2, against, "float32", nbytes=1 << 22))
    assert len(gradient.coded(2, 3, nbytes=1 << 22)) == 2
    assert len(gradient.csr(2, "logistic", ones=against == "reading")) == 2


@pytest.mark.parametrize("kind", ["least_squares", "logistic"])
@pytest.mark.parametrize("ones", [False, True])
def test_what_a_gradient_is_measured_against_is_the_same_gradient(kind: str, ones: bool) -> None:
    rows, params = gradient.like_a9a(500, ones), np.linspace(-1.0, 1.0, gradient.A9A_FEATURES)
    objective = objectives.build(kind, len(params), gradient.L2, 2)
    found = objective.gradient(params, rows)
    np.testing.assert_allclose(gradient.products(kind, rows, params), found, rtol=1e-12, atol=1e-14)
    assert 0.98 < rows.features.nnz / (500 * gradient.A9A_ONES) < 1.0


def test_the_simulator_is_measured_in_this_process(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "WORKER_ROUNDS", 1000)
    overhead = members.simulated("overhead", n_workers=64, n_rows=24)
    assert measured(setup, 0, overhead) > 0.0
    assert measured(setup, 0, members.simulated("growth", n_workers=128, than=64, n_rows=6)) > 0.0


def test_the_simulator_is_measured_against_its_own_arithmetic() -> None:
    # What is called bare ends in the same parameters where nobody is late: else the ratio would say nothing.
    network = simulation.Network(16, 6)
    found = simulate(
        gossip_step(network.shares, network.mixing_matrix, StragglerModel("none", 16)),
        network.shares,
        lambda t: simulation.STEP,
        StragglerModel("none", 16),
        network.rounds,
    )
    network.bare_s()
    np.testing.assert_allclose(network.bare_params, found, rtol=0, atol=1e-12)


def rank_times(ends: list[float]) -> np.ndarray:
    """Return the timeline of a rank without neighbours whose steps end at these times."""
    return np.repeat(np.array(ends)[:, None], 3, axis=1)


def rank_events(points: list[int]) -> Events:
    """Return the events of steps with these gradients, and the goodbye."""
    table = [[round_, point] for round_, point in enumerate([*points, NONE])]
    return Events(np.array(table, dtype=np.int32), degree=0)


def test_who_goes_on_at_the_usual_pace_loses_nothing() -> None:
    ends = np.arange(1.0, 21.0)  # a round a second; ten of them end in the window
    assert seconds_lost(rank_times(ends.tolist()), rank_events(list(range(20))), (5.5, 15.5)) == pytest.approx(0.0)


def test_who_stands_still_loses_the_whole_window() -> None:
    ends = [1.0, 2.0, 3.0, 4.0, 5.0, 16.0, 17.0]
    assert seconds_lost(rank_times(ends), rank_events(list(range(7))), (5.5, 15.5)) == pytest.approx(10.0)


def test_rounds_without_a_gradient_are_lost_time() -> None:
    ends = np.arange(1.0, 21.0)
    points = [NONE if 6 <= end <= 9 else step for step, end in enumerate(ends)]
    assert seconds_lost(rank_times(ends.tolist()), rank_events(points), (5.5, 15.5)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [  # i: in time and a suspect, T: in time and trusted, x: late and trusted, .: late and a suspect
        ("...iiTTT", 3),
        ("iiT", 3),
        ("..i.ii..iiT", 3),  # what did not stay in time had not caught up
        ("..T", 1),  # trusted for its pace in that very round
        (".iiiiiiT.", 7),  # too long
        (".iiiiii....", 6),  # longer than it should be, and in vain
        ("..iiTT..iiiiT", 5),  # every recovery counts
        ("...xTTT", None),  # on trial and then in time: it was waited for already
        ("...x.....", None),
        (".ii.", None),
        ("", None),
    ],
)
def test_rounds_to_trust_count_from_the_first_in_time_that_stays_so(rounds: str, expected: int | None) -> None:
    in_time = [mark in "iT" for mark in rounds]
    suspect = [mark in "i." for mark in rounds]
    assert rounds_to_trust(in_time, suspect) == expected


def test_growth_is_the_peak_above_the_first_round_that_counts() -> None:
    growth = benchmarks._Growth(from_round=2)
    early = np.ones(8 << 20)  # 64 MiB before what counts
    growth(1)
    growth(2)
    late = np.ones(8 << 20)  # 64 MiB: too large for memory that malloc has kept
    growth(3)
    del late
    growth(4)
    assert early.size
    assert 48.0 < growth.mib < 96.0


def test_a_frozen_process_goes_on_when_the_run_fails() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        try:
            with pytest.raises(RunError), Freeze(process.pid, 0.0, lasts_s=60.0) as freeze:
                freeze.start(1)
                freeze.start(2)  # of every round; the first counts
                assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
                raise RunError("meanwhile")
            until = time.monotonic() + 20.0  # no wait for ever if this fails
            while not (seen := os.waitpid(process.pid, os.WCONTINUED | os.WNOHANG))[0] and time.monotonic() < until:
                time.sleep(0.01)
            assert seen[0] and os.WIFCONTINUED(seen[1])
            assert freeze.window is not None
            assert freeze.window[1] - freeze.window[0] < 30.0  # the freeze was cut short
        finally:
            process.kill()


# --- peers ---


def test_a_peer_is_compared_in_turn_and_all_its_cases_at_once(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    code = f"print('news of the network'); print([1.0, 2.0]); open({str(log)!r}, 'a').write('theirs ')"
    output = Setup.output

    def noted(setup: Setup, command: list[str], variables: dict[str, str] | None = None) -> str:
        if "exchange_seconds" in command:
            with log.open("a") as file:
                file.write("ours\n")
        return output(setup, command, variables)

    setup = dataclasses.replace(setup, n_ranks=2, repeats=2)
    monkeypatch.setattr(Setup, "output", noted)
    monkeypatch.setattr(peer_programs, "CASES", ("ring 10", "exponential 10"))
    monkeypatch.setattr(peer_programs, "sizes", lambda n_ranks: [("ring", 10, 5), ("exponential", 10, 5)])
    monkeypatch.setattr(peer_programs, "environment", lambda path: path / "bin" / "python")
    monkeypatch.setattr(peer_programs, "command", lambda peer, python, n_ranks: [sys.executable, "-c", code])
    ring, exponential = (
        measure(Member("peers", case, members.against("gloo", case)), setup) for case in peer_programs.CASES
    )
    assert log.read_text().split() == ["ours", "theirs"] * 2
    assert ring.repeats == exponential.repeats == 2
    # Theirs are said to take 1 and 2 s a round; ours take far less than that, and more than nothing.
    assert 1.0 < ring.min <= ring.max < 1e7
    assert 2.0 < exponential.min <= exponential.max < 2e7


def test_a_peer_gets_our_graphs_and_sizes() -> None:
    for peer in peer_programs.PEERS:
        *launcher, script, cases = peer_programs.command(peer, Path("/env/bin/python"), 8)
        assert Path(script).is_file()
        assert launcher[0].startswith("/env/bin/")
        assert "8" in launcher
        ours = peer_programs.sizes(8)
        assert len(ours) == len(peer_programs.CASES)
        for case, (kind, n_params, rounds), (graph, *theirs) in zip(
            peer_programs.CASES, ours, json.loads(cases), strict=True
        ):
            assert case == f"{kind} {n_params}"
            assert theirs == [n_params, rounds]
            assert rounds >= 10
            assert all(rank in graph[j] for rank in range(8) for j in graph[rank])
            assert kind != "ring" or graph[0] == [1, 7]


def test_peers_run_alone_and_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    variables = peer_programs.variables()
    assert variables["OMP_NUM_THREADS"] == "1"
    assert "PYTHONPATH" not in variables
    for peer in peer_programs.PEERS:
        script = Path(peer_programs.command(peer, Path("/env/bin/python"), 2)[-2])
        nodes = list(ast.walk(ast.parse(script.read_text())))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not [name for name in imported if name.startswith("goco_mpi")]


def test_the_peers_environment_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert peer_programs.default_dir() == tmp_path / "goco_mpi" / "peers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert peer_programs.default_dir() == tmp_path / ".cache" / "goco_mpi" / "peers"


def test_the_peers_environment_is_made_once_and_anew_for_other_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def call(*command: str) -> None:
        calls.append(command)
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "python").touch()

    monkeypatch.setattr(peer_programs, "_call", call)
    assert peer_programs.environment(tmp_path) == tmp_path / "bin" / "python"
    made = len(calls)
    assert made > 0
    assert "making the peers' environment" in capsys.readouterr().err
    assert peer_programs.environment(tmp_path) == tmp_path / "bin" / "python"
    assert len(calls) == made
    monkeypatch.setattr(peer_programs, "ALONE", ("disropt==0.1.8",))
    peer_programs.environment(tmp_path)
    assert len(calls) == 2 * made


def test_an_environment_that_pip_cannot_fill_is_one_line_and_nothing_is_measured(
    mpiexec: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(run, "measure", nothing)
    command = ["bench", "exchange", "--peers", "--peers-dir", str(tmp_path / "env"), "--mpiexec", " ".join(mpiexec)]
    assert main(command) == 2
    printed = capsys.readouterr()
    making, message = printed.err.splitlines()
    assert making.startswith("making the peers' environment")
    assert message.startswith("goco: The peers' environment cannot be made in")
    assert "No matching distribution found for torch" in message
    assert "--peers-dir" in message
    assert printed.out == ""
    assert not list((tmp_path / "env").glob("*.json"))  # the next attempt begins again


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made in '.*file/env': .*Not a directory"):
        peer_programs.environment(tmp_path / "file" / "env")
