"""Whole runs one after another, each of another random configuration: make soak.

Every run is ``mpiexec -n N python -m goco_mpi run ...`` as a user starts it. It has to end in time, with
exit code 0 and by a condition that it was given; to leave no process behind; and to end where its replay
ends. What run R draws comes from the seed S + R alone: ``--seed S+R --runs 1`` is that run once more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

from goco_mpi.config import parse_config
from goco_mpi.core.methods import METHODS
from goco_mpi.errors import GocoError, InputError
from goco_mpi.experiment import lay_out
from goco_mpi.record import read_params, read_run
from goco_mpi.replay import replay

TIME_LIMIT_S = 60.0
"""What a whole run may take; few take ten."""
LEFT_LIMIT_S = 10.0
"""How long processes may outlive mpiexec, or what kills them."""
MARKER = "GOCO_SOAK_RUN"
"""Environment variable with the run's own name, by which its processes are found."""
RANK_VARIABLES = (b"PMI_RANK=", b"PMIX_RANK=", b"OMPI_COMM_WORLD_RANK=")
"""What a launcher gives to ranks, and neither to itself nor to its proxies."""
FREEZE_S = 0.5
"""Longest time that a rank is frozen."""
PAUSE_S = 0.3
"""Longest time between two such times, and between two looks at the clock."""
FROZEN_RUN_S = 1.0
"""Time limit in the round loop of a run with frozen ranks: long enough for some to be frozen there."""
ENDLESS = 1_000_000
"""Rounds of a run that something else is to end."""
DATA = "breast_cancer.npz"
"""The samples of every run, in its directory: a file is read sooner than scikit-learn, whose set it is, is imported."""
SHOWN = 20_000
"""Characters of a failed run's output."""

Tables = dict[str, Any]


class SoakError(Exception):
    """A run did not do what every run must."""


@dataclass(frozen=True)
class Plan:
    """What a run is to be.

    Attributes
    ----------
    seed : int
    n_ranks : int
    tables : dict
        The experiment file.
    freezes : bool
        Whether ranks are frozen now and then, from outside.
    """

    seed: int
    n_ranks: int
    tables: Tables
    freezes: bool

    @property
    def toml(self) -> str:
        """The experiment file's text: strings, numbers, booleans and lists are written as in JSON."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.tables.items() if not isinstance(value, dict)]
        for name, table in self.tables.items():
            if isinstance(table, dict):
                lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        method = self.tables["method"]
        words = [f"{self.n_ranks} ranks", self.tables["topology"]["kind"], method["kind"]]
        words += [f"late={method['late']}", *(["frozen now and then"] if self.freezes else [])]
        return f"seed {self.seed}: {', '.join(words)}"


@dataclass(frozen=True)
class Ended:
    """A run that did all it must."""

    plan: Plan
    seconds: float
    n_steps: int
    stopped_by: str

    def __str__(self) -> str:
        return f"{self.plan}: {self.n_steps} steps, stopped by {self.stopped_by}, {self.seconds:.1f} s"


def draw(seed: int) -> Plan:
    """Return the plan that ``seed`` stands for: drawn again until the configuration is one."""
    rng = np.random.default_rng(seed)
    n_ranks = int(rng.integers(2, 9))
    while True:
        tables = _draw_tables(rng, n_ranks)
        freezes = bool(rng.random() < 0.4)
        if freezes and "time_limit_s" in tables["stop"]:
            tables["stop"]["time_limit_s"] = FROZEN_RUN_S
        try:
            lay_out(parse_config(tables), n_ranks)
        except InputError:
            continue
        return Plan(seed, n_ranks, tables, freezes)


def _draw_tables(rng: np.random.Generator, n_ranks: int) -> Tables:
    def one_of(**chances: float) -> str:
        return str(rng.choice(list(chances), p=np.array(list(chances.values())) / sum(chances.values())))

    def between(low: float, high: float) -> float:
        """Draw a number, its logarithm uniformly."""
        return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")

    def seconds(auto: float, zero: float, short: float, inf: float) -> float | str:
        kind = one_of(auto=auto, zero=zero, short=short, inf=inf)
        return kind if kind in ("auto", "inf") else 0.0 if kind == "zero" else between(1e-4, 2e-2)

    end = _draw_end(rng, one_of(rounds=1, time_limit_s=2, gradient_norm=1, target_loss=1), between)
    kinds = ["ring", "complete", "star", "exponential", "grid", "torus", "hypercube", "erdos_renyi", "random_regular"]
    late = one_of(discard=3, partial=3, memory=3, wait=1)
    n_slow = int(rng.integers(0, n_ranks // 2 + 1))
    kind = one_of(goco=8, push_pull=3, exact_diffusion=6, table_newton=2, dgd=1, allreduce=1, gradient_coding=3, sgc=2)
    # What a method offers beside its defaults.
    mixing = one_of(**dict.fromkeys(METHODS[kind].mixings or ["none"], 1))
    rates = one_of(none=4, ema=2, counted=1, live=1)
    choice = {"mixing": mixing} if METHODS[kind].mixings else {}
    choice |= {"rates": rates} if rates != "none" else {}
    if kind in ("goco", "dgd") and mixing == "stale":
        choice |= {"compression": one_of(none=3, top_k=1, random_k=1, quantize=1)}
        choice |= {"momentum": 0.8} if rng.random() < 0.2 else {}
    if kind == "allreduce":
        choice |= {"solver": one_of(descent=1, nesterov=1, cg=1, lbfgs=1)}
    batch = {"batch_size": 8} if rng.random() < 0.2 else {}
    return {
        "seed": int(rng.integers(2**31)),
        **end,
        # Shards of alike samples and short steps: whatever is late or lost, the loss goes down, and the exit code is 0.
        "data": {"source": DATA, "standardize": True, "shards": int(rng.integers(1, 25)), **batch},
        "objective": {"kind": "logistic", "l2": 1e-3},
        "step": {"kind": "auto", "scale": between(0.01, 0.03 if late == "memory" else 0.3)},
        "topology": {
            "kind": one_of(complete=2, rook=1) if kind == "table_newton" else str(rng.choice(kinds)),
            "degree": int(rng.integers(1, n_ranks)),
            "p": float(rng.choice([0.3, 0.6, 1.0])),
        },
        "placement": {
            "kind": one_of(pairwise_balanced=3, cyclic=1, fractional_repetition=1, bernoulli=1),
            "replication": int(rng.integers(1, min(n_ranks, 4) + 1)),
        },
        "method": {
            "kind": kind,
            "late": late,
            "weights": one_of(coverage=3, own=1, plain=1, paper=1),
            **choice,
            "max_age": int(rng.choice([0, 1, 5, 20, 1000])),
        },
        "deadline": {
            "compute_s": seconds(auto=5, zero=1, short=2, inf=2),
            "gossip_s": seconds(auto=5, zero=2, short=2, inf=1),
            "progress_thread": bool(rng.random() < 0.25),
            # Less than the time limit: the rank that waits in vain can still say for whom.
            "shutdown_s": TIME_LIMIT_S / 2,
        },
        "stragglers": {
            "kind": one_of(none=1, slow=5, delays=2, bernoulli=1, persistent=1),
            "ranks": sorted(int(rank) for rank in rng.choice(n_ranks, n_slow, replace=False)),
            "factor": between(1.0, 30.0),
            "work_s": between(5e-4, 2e-3),
            "p": float(rng.choice([0.0, 0.3])),
            "delay_p": float(rng.choice([0.0, 0.05, 0.5])),
            "delay_s": between(1e-3, 3e-2),
            "link_p": float(rng.choice([0.0, 0.0, 0.0, 0.3])),
        },
        # The rows of a history are worked out after the run, one by one: few of a long run, or it is they that last.
        "record": {
            "every": int(rng.choice([20, 100] if end["rounds"] == ENDLESS else [1, 7])),
            "timeline": bool(rng.random() < 0.25),
        },
    }


def _draw_end(rng: np.random.Generator, kind: str, between: Callable[[float, float], float]) -> Tables:
    """Draw what is to end the run; what may never come true has a time limit beside it."""
    if kind == "rounds":
        return {"rounds": int(rng.integers(1, 61)), "stop": {}}
    stop: Tables = {"time_limit_s": between(0.05, 1.0), "every": int(rng.choice([1, 3, 10, 50]))}
    if kind == "gradient_norm":
        stop |= {"gradient_norm": between(0.01, 1.0), "time_limit_s": 1.0}
    if kind == "target_loss":
        stop |= {"target_loss": between(0.15, 0.69), "time_limit_s": 1.0}
    return {"rounds": ENDLESS, "stop": stop}


def carriers(marker: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the environment of every live process of the run that ``marker`` names."""
    variable = f"{MARKER}={marker}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's; a zombie's is empty
            environment = path.read_bytes()
            if variable in environment.split(b"\0"):
                yield int(path.parent.name), environment


def run_once(plan: Plan, mpiexec: Sequence[str], time_limit_s: float = TIME_LIMIT_S) -> Ended:
    """Run a plan and check all that must hold; nothing that it started is left, whatever happens.

    Raises
    ------
    SoakError
        If anything does not hold.
    """
    marker = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="goco-soak-") as name:
        directory = Path(name)
        (directory / "experiment.toml").write_text(plan.toml)
        (directory / DATA).write_bytes(_samples())
        command = [*mpiexec, "-n", str(plan.n_ranks), sys.executable, "-m", "goco_mpi", "run", "experiment.toml"]
        start = time.monotonic()
        # A file, not a pipe: whoever is left behind cannot keep us reading.
        with (directory / "output").open("wb") as output:
            process = subprocess.Popen(
                [*command, "--out", "run"],
                cwd=directory,
                env={**os.environ, MARKER: marker, "PYTHONFAULTHANDLER": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _watch(process, marker, plan, time_limit_s)
            seconds = time.monotonic() - start
            _expect_none_left(marker)
            n_steps, stopped_by = _expect_sound(directory / "run", plan)
        except SoakError as error:
            text = (directory / "output").read_text(errors="replace")[-SHOWN:]
            raise SoakError(f"{plan}: {error}\n--- experiment.toml\n{plan.toml}--- output\n{text}---") from None
        finally:
            _end_all(process, marker)
    return Ended(plan, seconds, n_steps, stopped_by)


@functools.cache
def _samples() -> bytes:
    """Return the file ``DATA``."""
    features, targets = load_breast_cancer(return_X_y=True)
    file = io.BytesIO()
    np.savez(file, features=features, targets=targets)
    return file.getvalue()


def _watch(process: subprocess.Popen[bytes], marker: str, plan: Plan, time_limit_s: float) -> None:
    """Wait for the end of a run, and freeze a rank now and then if that is the plan."""
    rng = np.random.default_rng(plan.seed)
    end = time.monotonic() + time_limit_s
    while True:
        pause_s = float(rng.uniform(0.0, PAUSE_S)) if plan.freezes else PAUSE_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pause_s)
            break
        if time.monotonic() >= end:
            _make_ranks_say_where_they_are(process, marker)
            raise SoakError(f"it did not end within {time_limit_s:g} s")
        if plan.freezes:
            _freeze_one(marker, rng)
    if process.returncode != 0:
        raise SoakError(f"exit code {process.returncode}")


def _ranks(marker: str) -> list[int]:
    return sorted(pid for pid, environment in carriers(marker) if any(name in environment for name in RANK_VARIABLES))


def _make_ranks_say_where_they_are(process: subprocess.Popen[bytes], marker: str) -> None:
    """End a hanging run with a traceback of every rank in its output: that is what faulthandler does on SIGABRT."""
    for pid in _ranks(marker):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEFT_LIMIT_S)


def _freeze_one(marker: str, rng: np.random.Generator) -> None:
    """Stop a random rank for a while, wherever it is: in its start, a gradient, a wait or its end."""
    ranks = _ranks(marker)
    if not ranks:
        return
    pid = int(rng.choice(ranks))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(float(rng.uniform(0.0, FREEZE_S)))
        finally:
            os.kill(pid, signal.SIGCONT)


def _expect_none_left(marker: str) -> None:
    end = time.monotonic() + LEFT_LIMIT_S
    while left := [pid for pid, _ in carriers(marker)]:
        if time.monotonic() >= end:
            raise SoakError(f"mpiexec ended and left processes {left} behind")
        time.sleep(0.01)


def _end_all(process: subprocess.Popen[bytes], marker: str) -> None:
    """Kill what is left of a run: looked for again until there is none, as it may have started more."""
    end = time.monotonic() + LEFT_LIMIT_S
    while (left := [pid for pid, _ in carriers(marker)]) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        time.sleep(0.01)
    process.wait(LEFT_LIMIT_S)


def _expect_sound(out: Path, plan: Plan) -> tuple[int, str]:
    """Check a run's record; return its number of steps and by what it stopped."""
    try:
        run = read_run(out)
        with contextlib.chdir(out.parent):  # where the data are
            found = replay(run)
        finite = bool(np.isfinite(read_params(out)).all())
    except GocoError as error:
        raise SoakError(f"its record is not sound: {error}") from None
    if not found.agrees:
        raise SoakError(f"its replay ends elsewhere: {found.differences.tolist()}")
    if not finite:
        raise SoakError("its parameters are not finite")
    stopped_by = run.run["result"]["stopped_by"]
    allowed = set(plan.tables["stop"]) - {"every"} or {"rounds"}
    if stopped_by not in allowed:
        raise SoakError(f"it was stopped by {stopped_by}, and only {', '.join(allowed)} could")
    return found.n_steps, stopped_by


def summary(ended: Sequence[Ended], n_failed: int = 0) -> str:
    """Return what the runs were, in a few lines."""
    lines = [f"{len(ended) + n_failed} runs, {n_failed} failed"]
    if ended:
        ranks = Counter(run.plan.n_ranks for run in ended)
        stops = Counter(run.stopped_by for run in ended)
        lines += [
            "ranks: " + ", ".join(f"{n} ({count} runs)" for n, count in sorted(ranks.items())),
            "stopped by: " + ", ".join(f"{why} ({count} runs)" for why, count in stops.most_common()),
            f"frozen ranks in {sum(run.plan.freezes for run in ended)} runs",
            f"slowest: {max(ended, key=lambda run: run.seconds)}",
        ]
    return "\n".join(lines)


def soak(runs: int, mpiexec: Sequence[str], seed: int = 0, keep_going: bool = False) -> tuple[list[Ended], int]:
    """Make ``runs`` runs and print a line about each; return those that went well, and how many failed.

    Parameters
    ----------
    runs : int
    mpiexec : sequence of str
        The launcher as the beginning of a command line.
    seed : int
        Run R draws from seed + R.
    keep_going : bool
        Whether to go on after a failure.
    """
    ended: list[Ended] = []
    n_failed = 0
    for run in range(runs):
        try:
            ended.append(run_once(draw(seed + run), mpiexec))
        except SoakError as error:
            n_failed += 1
            print(f"FAILED {error}", flush=True)
            if not keep_going:
                break
        else:
            print(ended[-1], flush=True)
    print(summary(ended, n_failed), flush=True)
    return ended, n_failed


def main() -> int:
    """Run the command line; the exit code is 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--mpiexec", required=True, metavar="COMMAND", help="launcher, with its arguments")
    parser.add_argument("--seed", type=int, default=0, help="run R draws from seed + R (default 0)")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    options = parser.parse_args()
    if not Path("/proc/self/environ").exists():
        parser.error("finds the processes of a run in /proc, and there is none here: it needs Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
    _, n_failed = soak(options.runs, shlex.split(options.mpiexec), options.seed, options.keep_going)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
