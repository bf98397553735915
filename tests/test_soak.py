"""Twenty whole runs of random configurations, and what the soak does about a run that goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soak

from goco_mpi.core.methods import METHODS

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")

SEED = 733
"""Twenty seeds from here on have everything but some numbers of ranks among them; see below."""
RUNS = 22
HANG_S = 30
"""What a hanging test is ended by."""


def test_random_runs_end_in_time_leave_nothing_behind_and_replay(mpiexec: list[str]) -> None:
    ended, n_failed = soak.soak(RUNS, mpiexec, SEED)
    assert n_failed == 0
    assert len(ended) == RUNS


def kinds(plans: list[soak.Plan]) -> dict[str, set[object]]:
    """Return what the plans have among them."""
    keys = ["topology.kind", "placement.kind", "stragglers.kind"]
    keys += [f"method.{key}" for key in ("kind", "late", "mixing", "rates", "compression")]
    found: dict[str, set[object]] = {
        key: {plan.tables[key.split(".")[0]].get(key.split(".")[1]) for plan in plans}
        for key in (*keys, "deadline.gossip_s", "deadline.compute_s")
    }
    found["stop"] = {key for plan in plans for key in plan.tables["stop"]} - {"every"}
    found["freezes"] = {plan.freezes for plan in plans}
    found["ranks"] = {plan.n_ranks for plan in plans}
    return found


def test_a_seed_is_one_plan_and_many_seeds_are_all_kinds() -> None:
    plans = [soak.draw(seed) for seed in range(200)]
    assert plans == [soak.draw(seed) for seed in range(200)]
    found = kinds(plans)
    assert found["ranks"] == set(range(2, 9))
    assert found["freezes"] == {True, False}
    assert found["stop"] == {"time_limit_s", "gradient_norm", "target_loss"}
    assert found["method.late"] == {"discard", "partial", "memory", "wait"}
    assert found["method.mixing"] == {"stale", "fold", "symmetric", "running", None}
    assert found["method.rates"] == {"ema", "counted", "live", None}
    assert found["method.kind"] == set(METHODS)
    assert found["method.compression"] == {"none", "top_k", "random_k", "quantize", None}
    assert found["stragglers.kind"] == {"none", "bernoulli", "persistent", "slow", "delays"}
    assert found["placement.kind"] == {"pairwise_balanced", "cyclic", "fractional_repetition", "bernoulli"}
    assert len(found["topology.kind"]) == 10
    for key in ("deadline.gossip_s", "deadline.compute_s"):
        assert found[key] > {"auto", "inf", 0.0}


def test_the_runs_made_here_have_every_kind_of_everything() -> None:
    here, all_ = (kinds([soak.draw(seed) for seed in seeds]) for seeds in (range(SEED, SEED + RUNS), range(200)))
    for key in here.keys() - {"ranks", "deadline.gossip_s", "deadline.compute_s"}:
        assert here[key] == all_[key], key


ONE_RANK = soak.Plan(
    seed=0,
    n_ranks=1,
    tables={
        "rounds": 3,
        "data": {"source": soak.DATA, "standardize": True, "shards": 2},
        "objective": {"kind": "logistic"},
        "topology": {"kind": "ring"},
        "placement": {"replication": 1},
        "method": {"kind": "goco", "late": "discard"},
        "stop": {},
    },
    freezes=False,
)


def launcher(directory: Path, body: str) -> list[str]:
    """Return a launcher that leaves its number in a file and does this; what it was given are the words."""
    path = directory / "launcher.py"
    path.write_text(
        "import os, pathlib, subprocess, sys, time\n"
        "words = sys.argv[3:]\n"
        f"pids = pathlib.Path({str(directory / 'pids')!r})\n"
        f"pids.write_text(str(os.getpid()))\n{body}\n"
    )
    return [sys.executable, str(path)]


def state(pid: int) -> str:
    """Return a process's state as its letter in /proc, nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def assert_gone(directory: Path) -> None:
    """Check that what the launcher named runs no more: where nobody waits for orphans they stay as zombies."""
    for pid in (directory / "pids").read_text().split():
        assert state(int(pid)) in ("", "Z")


def test_a_sound_run_is_found_sound(tmp_path: Path) -> None:
    ended = soak.run_once(ONE_RANK, launcher(tmp_path, "sys.exit(subprocess.run(words).returncode)"))
    assert (ended.n_steps, ended.stopped_by) == (3, "rounds")
    assert_gone(tmp_path)


TAMPERING = {
    "its replay ends elsewhere": "import numpy as np; np.save('run/params.npy', np.load('run/params.npy') + 1e-6)",
    "it was stopped by rest, and only rounds could": (
        "run = pathlib.Path('run/run.json'); run.write_text(run.read_text().replace("
        '\'"stopped_by": "rounds"\', \'"stopped_by": "rest"\'))'
    ),
    "its record is not sound": "os.remove('run/events.npz')",
    "exit code 3": "print('the reason'); sys.exit(3)",
}


@pytest.mark.parametrize("what", TAMPERING)
def test_a_run_that_is_not_sound_is_told_with_its_configuration(tmp_path: Path, what: str) -> None:
    with pytest.raises(soak.SoakError) as error:
        soak.run_once(ONE_RANK, launcher(tmp_path, f"subprocess.run(words, check=True)\n{TAMPERING[what]}"))
    text = str(error.value)
    assert what in text
    assert "seed 0: 1 ranks" in text
    assert ONE_RANK.toml in text
    assert ("the reason" in text) == ("exit code" in what)


def test_a_run_that_hangs_is_ended_and_its_ranks_say_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "LEFT_LIMIT_S", 1.0)  # what the launcher, which waits on, is given then
    rank = "[sys.executable, '-S', '-c', 'import time\\ndef hang(): time.sleep(600)\\nhang()']"
    body = (
        f"child = subprocess.Popen({rank}, env={{**os.environ, 'PMI_RANK': '0'}})\n"
        "pids.write_text(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(600)"
    )
    with pytest.raises(soak.SoakError, match="did not end within 5 s") as error:
        soak.run_once(ONE_RANK, launcher(tmp_path, body), time_limit_s=5.0)
    assert "in hang" in str(error.value)
    assert len((tmp_path / "pids").read_text().split()) == 2
    assert_gone(tmp_path)


def test_a_process_left_behind_is_found_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "LEFT_LIMIT_S", 1.0)
    body = "subprocess.run(words, check=True); child = subprocess.Popen(['sleep', '600'], start_new_session=True)"
    with pytest.raises(soak.SoakError, match=r"left processes \[\d+\] behind"):
        soak.run_once(ONE_RANK, launcher(tmp_path, f"{body}; pids.write_text(str(child.pid))"))
    assert_gone(tmp_path)


def test_only_ranks_are_frozen_and_always_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = {**os.environ, soak.MARKER: "test"}
    others = [subprocess.Popen(["sleep", "600"], env=env) for env in (marked, {**os.environ, "PMI_RANK": "1"})]
    rank = subprocess.Popen(["sleep", "600"], env={**marked, "PMI_RANK": "0"})
    frozen: list[list[bool]] = []

    def look(seconds: float) -> None:
        assert 0.0 <= seconds <= soak.FREEZE_S
        end = time.monotonic() + HANG_S
        while state(rank.pid) != "T" and time.monotonic() < end:
            pass
        frozen.append([state(process.pid) == "T" for process in (rank, *others)])

    try:
        monkeypatch.setattr(soak.time, "sleep", look)
        soak._freeze_one("test", soak.np.random.default_rng(0))
        assert frozen == [[True, False, False]]
        end = time.monotonic() + HANG_S
        while state(rank.pid) == "T":
            assert time.monotonic() < end
    finally:
        for process in (rank, *others):
            process.send_signal(signal.SIGKILL)
            process.wait()
