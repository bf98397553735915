"""What a batch job is to do, whatever the scheduler."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from goco_mpi.errors import InputError, check_one_of, check_range

MARGIN_S = 120
"""How long before the end a scheduler is asked to say so: signals come up to 60 s early and 30 s late."""
MPIEXEC, SRUN = "mpiexec", "srun"


@dataclass(frozen=True)
class Run:
    """One run of a job.

    Attributes
    ----------
    n_ranks : int
        On as many nodes.
    out : str
        Run directory.
    settings : tuple of str
        ``KEY=VALUE``, as ``goco run --set`` takes them.
    """

    n_ranks: int
    out: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A batch job: one rank a node.

    Attributes
    ----------
    command : str
        What rendered the script, for its second line.
    experiment : str
        The experiment file as the job's working directory sees it; with ``members`` a sweep file.
    name : str
        What the scheduler calls the job.
    nodes : int
    runs : tuple of Run
        One after the other. With ``members`` there is one, whose ``out`` is the sweep's directory.
    time_s : int
        Limit of wall-clock seconds.
    launcher : {'srun', 'mpiexec'}
    mpi : {'pmi2', 'pmix'}
        What srun speaks with the MPI library.
    cores : int or None
        Cores of a node; None: all that it has.
    members : int
        Of a sweep, each an element of a job array; 0: there is no sweep.
    chain : int
        Jobs one after the other, each of which resumes the last; 1: no chain.
    requeue : bool
        Whether the job starts again after a failure.
    container : tuple of str
        Program and image, such as ``("apptainer", "goco.sif")``; empty: none.
    prologue : str
        File that the script sources first; empty: none.
    directives : tuple of str
        More for the scheduler, such as ``--partition=long``.

    Raises
    ------
    InputError
        If one of them is out of range, or would break the text of a script.
    """

    command: str
    experiment: str
    name: str
    nodes: int
    runs: tuple[Run, ...]
    time_s: int = 3600
    launcher: str = MPIEXEC
    mpi: str = "pmi2"
    cores: int | None = None
    members: int = 0
    chain: int = 1
    requeue: bool = False
    container: tuple[str, ...] = ()
    prologue: str = ""
    directives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("--nodes", self.nodes, 1, 2**20)
        check_range("--chain", self.chain, 1, 1000)
        if self.cores is not None:
            check_range("--cores", self.cores, 1, 2**15)
        if self.time_s < 2 * MARGIN_S:
            raise InputError(
                f"--time must be at least {2 * MARGIN_S} s, since a run is told to stop {MARGIN_S} s before the end. "
                f"Got {self.time_s} s."
            )
        if self.members == 1:
            raise InputError("--array needs a sweep of at least two members. Got one. Give its experiment without.")
        if self.members and self.chain > 1:
            raise InputError("--chain resumes one run, and --array has many. Use one of them.")
        if self.container:
            check_one_of("--container", self.container[0], ("apptainer",))
        words = {"EXPERIMENT": [self.experiment], "--prologue": [self.prologue], "--container": self.container}
        words |= {"--directive": self.directives, "--out": [run.out for run in self.runs]}
        words |= {"--set": [setting for run in self.runs for setting in run.settings], "The command": [self.command]}
        for parameter, values in words.items():
            for value in values:
                if not value.isprintable():
                    raise InputError(f"{parameter} must be one line of printable text. Got {value!r}.")
        for directive in self.directives:
            if not re.match(r"-{1,2}[A-Za-z]", directive):
                raise InputError(
                    f"--directive must be an option of the scheduler, such as --directive=--partition=long. "
                    f"Got {directive!r}."
                )

    @property
    def is_array(self) -> bool:
        """Whether the scheduler has several elements to start."""
        return self.members > 0 or self.chain > 1


@dataclass(frozen=True)
class Scheduler:
    """How a scheduler is spoken to.

    Attributes
    ----------
    name : str
    marker : str
        What begins a line that is for the scheduler.
    launchers : tuple of str
        The first is the default.
    directives : callable (Job) -> list of str
    directory : str
        Variable with the directory that the job was submitted from.
    index : str
        This element of an array, from 0, in shell.
    job : str
        The job's identity and how often it was restarted, as far as the scheduler says, in a shell string.
    cores : str
        The cores of the node, in shell.
    hostfile : str
        Options of mpiexec that name the job's nodes; empty where every MPI finds them itself.
    remote_shell : str
        What starts a process on another node of the job, where ssh may be forbidden; empty: ssh.
    tells_end : bool
        Whether a job learns from the scheduler when it will be ended.
    requeue : str
        Shell that puts a failed job back into the queue; empty where a directive does.
    """

    name: str
    marker: str
    launchers: tuple[str, ...]
    directives: Callable[[Job], list[str]]
    directory: str
    index: str
    job: str
    cores: str
    hostfile: str = ""
    remote_shell: str = ""
    tells_end: bool = False
    requeue: str = ""


def job_name(stem: str) -> str:
    """Return a name that every scheduler takes: letters, digits, ``_`` and ``-``, a letter first, at most 15 of them.

    Examples
    --------
    >>> job_name("my run.v2"), job_name("2nd")
    ('my_run_v2', 'goco_2nd')
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", stem)
    return (name if name[:1].isascii() and name[:1].isalpha() else f"goco_{name}")[:15]


def parse_time(text: str) -> int:
    """Return the seconds of a time as ``HH:MM:SS`` or ``D-HH:MM:SS``.

    Raises
    ------
    InputError
        For any other form: schedulers read ``30:00`` as minutes or as hours.

    Examples
    --------
    >>> parse_time("01:30:00"), parse_time("2-00:00:10")
    (5400, 172810)
    """
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", text, re.ASCII)
    if not found:
        raise InputError(f"--time must be HH:MM:SS or D-HH:MM:SS. Got {text!r}.")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def clock(time_s: int) -> str:
    """Return seconds as ``HH:MM:SS``, with as many hours as it takes.

    Examples
    --------
    >>> clock(5400), clock(172810)
    ('01:30:00', '48:00:10')
    """
    minutes, seconds = divmod(time_s, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
