"""A throw-away Slurm on this machine: munged, slurmctld and one slurmd a node, all of them children of this process.

Everything is in a temporary directory, and everything that is started is ended by its pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

PACKAGES = ("slurm-wlm", "munge", "libpmix-dev")
"""The last has the name by which Slurm's plugin looks for PMIx."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
START_S = 60.0
COMMAND_S = 60.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
TmpFS={root}/tmp.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout=60
KillWait=2
MinJobAge=600
JobRequeue=1
SlurmdParameters=config_overrides
SwitchType=switch/none
PartitionName=main Nodes=ALL Default=YES MaxTime=120 DefaultTime=5 State=UP OverSubscribe=NO
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=500\n"
)


def missing() -> str | None:
    """Return why there can be no Slurm here; None: there can."""
    if os.geteuid() != 0:
        return "a throw-away Slurm needs root"
    absent = [name for name in PROGRAMS if _program(name) is None]
    return f"no {', '.join(absent)}: apt-get install {' '.join(PACKAGES)}" if absent else None


def install(packages: Sequence[str]) -> None:
    """Install Debian packages, where that is possible."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with (Path(tempfile.gettempdir()) / "goco_mpi-tests-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests of another file may be about to do the same
            for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
                subprocess.run(["apt-get", "-q", *words], env=environment, stdout=subprocess.DEVNULL, timeout=300)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Slurm:
    """A Slurm of ``n_nodes`` nodes named node1, node2, ... on this machine, as a context manager.

    Attributes
    ----------
    environment : dict of str to str
        For commands that are to find it, without what a launcher around the tests has set.
    """

    def __init__(self, n_nodes: int = 4, cpus: int = 2) -> None:
        self.n_nodes = n_nodes
        self._root = Path(tempfile.mkdtemp(prefix="goco_mpi-slurm-"))
        self._root.chmod(0o755)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "PMI", "OMPI_COMM"))}
        self.environment = {**kept, "SLURM_CONF": str(self._root / "slurm.conf")}
        host, ports = socket.gethostname().split(".")[0], _free_ports(n_nodes + 1)
        text = CONF.format(host=host, ports=ports, root=self._root)
        nodes = [NODE.format(name=f"node{i}", host=host, port=ports[i], cpus=cpus) for i in range(1, n_nodes + 1)]
        (self._root / "slurm.conf").write_text("".join([*nodes, text]))

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        munge = self._root / "munge"
        munge.mkdir(mode=0o755)
        key = self._root / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *options)
        self._wait_until(lambda: (munge / "socket").exists(), "munged made no socket")
        (self._root / "state").mkdir()
        self._daemon("slurmctld", "-D", "-i")
        for node in range(1, self.n_nodes + 1):
            self.start_node(node)
        idle = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
        self._wait_until(lambda: len(self._ask(idle).split()) == self.n_nodes, "the nodes did not come up")

    def start_node(self, node: int) -> None:
        """Start a node's slurmd."""
        for directory in ("spool", "tmp"):
            (self._root / f"{directory}.node{node}").mkdir(exist_ok=True)
        self._daemon(f"slurmd.node{node}", "-D", "-N", f"node{node}")

    def fail_node(self, node: int) -> None:
        """Let a node fail, and Slurm hear of it: its slurmd, its steps and all that they run are killed at once."""
        daemon = self._daemons.pop(f"slurmd.node{node}")
        victims = [pid for pid in self._processes() if f"SLURMD_NODENAME=node{node}" in _environment(pid)]
        steps = {_parent(pid) for pid in victims} - {1, os.getpid(), daemon.pid}
        for pid in (daemon.pid, *steps, *victims):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()
        # As a site's health check does; by itself Slurm would notice after SlurmdTimeout.
        self._ask(["scontrol", "update", f"NodeName=node{node}", "State=DOWN", "Reason=failed"])

    def ranks(self, word: str) -> list[int]:
        """Return the pids of this Slurm's tasks whose command line has ``word``, in the order of their ranks."""
        found = {}
        for pid in self._processes():
            variables = dict(item.partition("=")[::2] for item in _environment(pid))
            rank, step = variables.get("SLURM_PROCID", ""), variables.get("SLURM_STEP_ID", "")
            if rank and step.isdigit() and word in _command(pid) and "srun" not in _command(pid)[0]:
                found[int(rank)] = pid
        return [found[rank] for rank in sorted(found)]

    def run(self, *command: str | Path, cwd: Path, timeout: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands, or something that calls them."""
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def submit(self, *command: str | Path, cwd: Path) -> str:
        """Submit a job and return its number."""
        ended = self.run("sbatch", "--parsable", *command, cwd=cwd)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def states(self, job: str) -> dict[str, str]:
        """Return the state of a job, or of each element of an array, by number."""
        listed = self._ask(["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i %T"])
        return dict(line.split(maxsplit=1) for line in listed.splitlines())

    def signal_batch(self, job: str, name: str) -> None:
        """Send a signal to a job's script alone, as ``--signal=B:`` does."""
        # An element of an array by its own number: by the array's, scancel tries until that element has ended. What it
        # returns says little: it asks again afterwards, when the job may be gone.
        number = self._ask(["squeue", "-h", "-j", job, "-o", "%A"]).strip()
        self._ask(["scancel", f"--signal={name}", "--batch", number])

    def wait(self, job: str, seconds: float = 180.0) -> dict[str, str]:
        """Wait until a job, or all of an array, has ended; return the states."""

        def ended() -> bool:
            states = self.states(job)
            return bool(states) and all(state in ENDED for state in states.values())

        self._wait_until(ended, f"job {job} did not end", seconds)
        return self.states(job)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
        """Wait until ``condition``; fail with ``what`` after so many seconds."""
        self._wait_until(lambda: bool(condition()), what, seconds)

    def close(self) -> None:
        """End all jobs, then what was started."""
        if (self._root / "munge" / "socket").exists():
            self._ask(["scancel", "--user=root"])
            with contextlib.suppress(AssertionError):
                self._wait_until(lambda: not self._ask(["squeue", "-h"]).strip(), "", 15.0)
        for name in reversed(list(self._daemons)):
            _end(self._daemons.pop(name))
        for pid in self._processes():  # steps that lost their slurmd
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._root, ignore_errors=True)

    def _daemon(self, name: str, *options: str) -> None:
        program = _program(name.split(".")[0])
        assert program is not None, missing()
        with (self._root / f"{name}.said").open("ab") as said:
            # A session of its own: Ctrl-C is for the tests, which then end it in order.
            self._daemons[name] = subprocess.Popen(
                [program, *options], env=self.environment, stdout=said, stderr=said, start_new_session=True
            )

    def _ask(self, command: Sequence[str]) -> str:
        try:
            ended = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=COMMAND_S, check=False
            )
        except subprocess.TimeoutExpired:
            return ""
        return ended.stdout

    def _wait_until(self, condition: Callable[[], bool], what: str, seconds: float = START_S) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            for name, daemon in self._daemons.items():
                assert daemon.poll() is None, f"{name} ended:\n{self.log(name)}"
            assert time.monotonic() < limit, f"{what}\n{self.log('slurmctld')}"
            time.sleep(0.1)

    def log(self, name: str) -> str:
        """Return the end of what a daemon said."""
        text = ""
        for suffix in ("said", "log"):
            path = self._root / f"{name}.{suffix}"
            text += path.read_text()[-3000:] if path.exists() else ""
        return text

    def _processes(self) -> list[int]:
        """Return the pids of all that carries this Slurm's configuration, but for daemons, tests and their commands."""
        ours = f"SLURM_CONF={self._root / 'slurm.conf'}"
        known = {os.getpid(), *(daemon.pid for daemon in self._daemons.values())}
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if pid not in known and ours in _environment(pid)]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(pid: int) -> list[str]:
    return _words(pid, "environ")


def _command(pid: int) -> list[str]:
    return _words(pid, "cmdline")


def _words(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 1
