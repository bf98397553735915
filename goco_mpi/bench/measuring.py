"""A figure: the median of what is measured again and again, with its spread and its bound."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goco_mpi.errors import InputError, RunError


@dataclass(frozen=True)
class Setup:
    """What members are measured with.

    Attributes
    ----------
    mpiexec : tuple of str
        The launcher, and what else its command begins with.
    peers_dir : Path
        Where the peers' environment is, or is to be made.
    n_ranks : int
    repeats : int
        Samples of a figure.
    limit_s : float
        How long one launch may take.
    """

    mpiexec: tuple[str, ...]
    peers_dir: Path
    n_ranks: int = 8
    repeats: int = 5
    limit_s: float = 600.0

    def on_ranks(self, *arguments: str) -> list[str]:
        """Return the command that starts this Python on all ranks."""
        return [*self.mpiexec, "-n", str(self.n_ranks), sys.executable, *arguments]

    def output(self, command: Sequence[str], variables: dict[str, str] | None = None) -> str:
        """Run a command and return what it prints.

        Raises
        ------
        FileNotFoundError, subprocess.TimeoutExpired, subprocess.CalledProcessError
        """
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
            try:
                printed, _ = process.communicate(timeout=self.limit_s)
            except BaseException:
                process.terminate()  # a launcher that is killed would leave its ranks behind
                try:
                    process.wait(timeout=20.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return printed

    def found(self, command: Sequence[str], variables: dict[str, str] | None = None) -> Any:
        """Run a command that says in JSON, in its last line, what it has found."""
        return json.loads(self.output(command, variables).splitlines()[-1])

    def call_on_ranks(self, function: str, **options: Any) -> Any:
        """Call a function of ``goco bench-rank`` on all ranks, and return what it returns."""
        return self.found(self.on_ranks("-m", "goco_mpi", "bench-rank", function, json.dumps(options)))


@dataclass(frozen=True)
class Member:
    """One thing to measure.

    Attributes
    ----------
    name, case : str
        What, and of which kind or size.
    sample : callable (Setup) -> list of float
        Measures it: one sample a repeat.
    bound : float or None
        What is aimed at.
    at_most : bool
        Whether the bound is an upper one.
    unit : str
    """

    name: str
    case: str
    sample: Callable[[Setup], list[float]]
    bound: float | None = None
    at_most: bool = True
    unit: str = "ratio"


@dataclass(frozen=True)
class Figure:
    """A measured member; ``ok`` is None where there is no bound."""

    name: str
    case: str
    value: float
    unit: str
    bound: float | None
    ok: bool | None
    median: float
    min: float
    max: float
    repeats: int


def figure(member: Member, samples: Sequence[float]) -> Figure:
    """Turn the samples of one member into its figure.

    Examples
    --------
    >>> figure(Member("exchange", "ring 1000", lambda setup: [], 2.0), [1.5, 1.0, 9.0]).ok
    True
    """
    median = statistics.median(samples)
    ok = None if member.bound is None else (median <= member.bound if member.at_most else median >= member.bound)
    return Figure(
        member.name,
        member.case,
        median,
        member.unit,
        member.bound,
        ok,
        median,
        min(samples),
        max(samples),
        len(samples),
    )


def measure(member: Member, setup: Setup) -> Figure:
    """Measure one member.

    Raises
    ------
    InputError
        If there is no such launcher, or the peers' environment cannot be made.
    RunError
        If the measurement failed.
    """
    what = f"bench {member.name} ({member.case})"
    try:
        return figure(member, member.sample(setup))
    except FileNotFoundError as error:
        raise InputError(f"--mpiexec {error.filename!r} does not exist. Name your MPI's launcher.") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{what} did not end within {setup.limit_s:g} s.") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"{what} failed with exit code {error.returncode}.") from None
