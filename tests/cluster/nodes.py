"""Emulated nodes: one rank each on a network of its own, and faults of links and ranks.

A node has a network, a UTS, an IPC and a mount namespace: its own host name, address and shared memory, so that ranks
on two of them have nothing but TCP between them. A veth pair leads from each to a bridge, which is in a namespace of
its own without a way to the machine's network. Node i is ``node<i>``, and rank i is on it.

Nothing is named in the machine, and nothing outlives this process: a namespace is gone with the last process in it, and
the one that keeps it ends when the pipe from here does.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from throttle import DutyCycle, Quota, slow_down

SUBNET = "10.77.0"
MTU = "9000"
TOOLS = ("hostname", "ip", "mount", "nsenter", "setpriv", "unshare")
UNSHARE = ("unshare", "--net", "--uts", "--ipc", "--mount", "--propagation", "private")
RANK_VARIABLES = (b"PMI_RANK=", b"OMPI_COMM_WORLD_RANK=")
"""What a launcher gives to ranks, and neither to itself nor to its daemons."""
END_LIMIT_S = 20.0
AGENT = """#!/bin/sh
# What ssh is on other clusters: agent [OPTION...] HOST COMMAND...
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
nsenter -t "$(cat "${0%/*}/$host.pid")" --net --uts --ipc --mount -- /bin/sh -c "$*"
status=$?
[ $status -le 128 ] || status=255
exit $status
"""
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
Process = subprocess.Popen[str]


class NodesError(Exception):
    """Nodes could not be emulated, or did not do what they were told."""


@functools.cache
def missing() -> str | None:
    """Return why nodes cannot be emulated here; None if they can."""
    if not sys.platform.startswith("linux"):
        return "emulated nodes need Linux"
    if os.geteuid() != 0:
        return "emulated nodes need root"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"emulated nodes need {', '.join(absent)} (Debian: iproute2, util-linux, mount, hostname)"
    probe = (
        "mount -t tmpfs tmpfs /dev/shm && ip link add name br0 type bridge"
        " && ip link add name v0 type veth peer name v1 && ip tuntap add dev t0 mode tap"
    )
    done = subprocess.run([*UNSHARE, "sh", "-c", probe], capture_output=True, text=True)
    return None if done.returncode == 0 else f"this kernel refuses emulated nodes: {done.stderr.strip()}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NodesError(f"{' '.join(command)}: {done.stderr.strip()}")


def _start_ready(command: Sequence[str]) -> Process:
    """Start a process that says when it is ready, and ends when its input does: at the latest with this one."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        _, said = process.communicate()
        raise NodesError(f"{' '.join(command[:3])} ...: {said.strip()}")
    return process


def _end_ready(process: Process) -> None:
    process.communicate(timeout=END_LIMIT_S)


class Nodes:
    """Emulated nodes ``node0``, ``node1``, ...; a context manager that ends all that runs on them.

    Parameters
    ----------
    n_nodes : int
        At most 250.

    Raises
    ------
    NodesError
        If they cannot be set up; nothing is left then.
    """

    def __init__(self, n_nodes: int) -> None:
        self.n_nodes = n_nodes
        self.names = [f"node{node}" for node in range(n_nodes)]
        self._keepers: list[Process] = []
        self._jobs: list[Process] = []
        self._wires: dict[int, Process] = {}
        self._throttles: dict[int, Quota | DutyCycle] = {}

    def __enter__(self) -> Nodes:
        if (reason := missing()) is not None:
            raise NodesError(reason)
        with contextlib.ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goco-nodes-")))
            self._set_up(stack)
            stack.callback(self._end_processes)
            stack.callback(self._mend_all)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        agent = self._directory / "agent"
        agent.write_text(AGENT)
        agent.chmod(0o755)
        hosts = self._directory / "hosts"
        addresses = [f"{SUBNET}.{node + 1} {name}\n" for node, name in enumerate(self.names)]
        hosts.write_text("127.0.0.1 localhost\n" + "".join(addresses))

        def keep(set_up: str, *arguments: str) -> Process:
            script = f"{set_up} && echo ready && exec cat >/dev/null"
            process = _start_ready([*UNSHARE, "sh", "-c", script, "sh", *arguments])
            stack.callback(_end_ready, process)
            return process

        self._switch = keep("ip link set lo up && ip link add br0 type bridge && ip link set br0 up mtu " + MTU)
        for node, name in enumerate(self.names):
            keeper = keep(
                'hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts && ip link set lo up',
                *(name, str(hosts)),
            )
            self._keepers.append(keeper)
            (self._directory / f"{name}.pid").write_text(str(keeper.pid))
            near, far = (f"port{node}", "mtu", MTU), ("eth0", "mtu", MTU, "netns", str(keeper.pid))
            self._at_switch("link", "add", *near, "type", "veth", "peer", "name", *far)
            self._at_switch("link", "set", f"port{node}", "master", "br0", "up")
            inside = ("nsenter", "-t", str(keeper.pid), "--net", "ip")
            _run(*inside, "addr", "add", f"{SUBNET}.{node + 1}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")

    def _at_switch(self, *words: str) -> None:
        _run("nsenter", "-t", str(self._switch.pid), "--net", "ip", *words)

    # What runs on them

    def inside(self, node: int) -> list[str]:
        """Return the beginning of a command line that runs on a node."""
        pid = str(self._keepers[node].pid)
        return ["nsenter", "-t", pid, "--net", "--uts", "--ipc", "--mount", f"--wd={Path.cwd()}", "--"]

    def start(self, mpiexec: Sequence[str], command: Sequence[str], output: Path) -> Process:
        """Start an MPI program with one rank on each node, as a user on node 0 would.

        Parameters
        ----------
        mpiexec : sequence of str
            MPICH's or Open MPI's launcher, as the beginning of a command line.
        command : sequence of str
        output : Path
            What the ranks print.
        """
        # Should this process be killed, the launcher still ends its ranks.
        line = ["setpriv", "--pdeathsig", "TERM", *self.launcher(mpiexec), "-n", str(self.n_nodes), *command]
        with output.open("w") as file:
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **OPEN_MPI, "OMP_NUM_THREADS": "1"},
                text=True,
                start_new_session=True,
            )
        self._jobs.append(process)
        return process

    def launcher(self, mpiexec: Sequence[str]) -> list[str]:
        """Return the launcher on node 0, with all that puts rank i on node i."""
        return [*self.inside(0), *mpiexec, *self._placement(mpiexec)]

    def _placement(self, mpiexec: Sequence[str]) -> list[str]:
        agent = str(self._directory / "agent")
        version = subprocess.run(
            [*mpiexec, "--version"], capture_output=True, text=True, env={**os.environ, **OPEN_MPI}
        )
        if "Open MPI" in version.stdout:
            hosts = ",".join(f"{name}:1" for name in self.names)
            return ["--prtemca", "plm_ssh_agent", agent, "--host", hosts, "--map-by", "ppr:1:node"]
        return ["-launcher", "rsh", "-launcher-exec", agent, "-hosts", ",".join(self.names), "-ppn", "1"]

    def processes(self) -> Iterator[tuple[int, int]]:
        """Yield the node and the number of every process on a node, launchers and daemons included."""
        node_of = {_network(keeper.pid): node for node, keeper in enumerate(self._keepers)}
        keepers = {keeper.pid for keeper in self._keepers}
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            node = node_of.get(_network(pid))
            if node is not None and pid not in keepers:
                yield node, pid

    def rank_pid(self, node: int) -> int:
        """Return the process number of the rank on a node.

        Raises
        ------
        NodesError
            If there is none.
        """
        for at, pid in sorted(self.processes()):
            if at == node:
                with contextlib.suppress(OSError):
                    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    if any(variable.startswith(RANK_VARIABLES) for variable in variables):
                        return pid
        raise NodesError(f"no rank runs on node {node}")

    def bytes_sent(self, node: int) -> int:
        """Return how many bytes a node has sent into the network, headers of its frames included."""
        read = [*self.inside(node), "cat", "/proc/net/dev"]
        lines = subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines()
        return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("eth0:"))

    def _end_processes(self) -> None:
        end = time.monotonic() + END_LIMIT_S
        while left := list(self.processes()):
            if time.monotonic() >= end:
                raise NodesError(f"processes {[pid for _, pid in left]} do not end")
            for _, pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for job in self._jobs:
                job.poll()  # or they stay as zombies
            time.sleep(0.01)
        for job in self._jobs:
            job.wait(END_LIMIT_S)

    # Faults

    def unplug(self, node: int) -> None:
        """Cut a node off."""
        self._at_switch("link", "set", f"port{node}", "down")

    def plug_in(self, node: int) -> None:
        """Give a node its link back."""
        self._at_switch("link", "set", f"port{node}", "up")

    def impair(self, node: int, delay_s: float = 0.0, loss: float = 0.0, bits_per_s: float = math.inf) -> None:
        """Lead a node's traffic over a bad link, in both directions; other nodes' stays in the kernel.

        Parameters
        ----------
        node : int
        delay_s : float
            Of each frame, on top of what its turn takes.
        loss : float
            Share of frames that are lost.
        bits_per_s : float
        """
        self.mend(node)
        wire = [sys.executable, str(Path(__file__).with_name("wire.py")), f"near{node}", f"far{node}"]
        enter = ["nsenter", "-t", str(self._switch.pid), "--net", "--"]
        self._wires[node] = _start_ready([*enter, *wire, str(delay_s), str(loss), str(bits_per_s)])
        self._at_switch("link", "add", f"way{node}", "type", "bridge")
        self._at_switch("link", "set", f"way{node}", "up", "mtu", MTU)
        self._at_switch("link", "set", f"near{node}", "master", f"way{node}", "up", "mtu", MTU)
        self._at_switch("link", "set", f"far{node}", "master", "br0", "up", "mtu", MTU)
        self._at_switch("link", "set", f"port{node}", "master", f"way{node}")

    def mend(self, node: int) -> None:
        """Take a node's bad link away, if it has one."""
        if node in self._wires:
            self._at_switch("link", "set", f"port{node}", "master", "br0")
            self._at_switch("link", "del", f"way{node}")
            _end_ready(self._wires.pop(node))

    def freeze(self, node: int) -> None:
        """Stop a node's rank where it is."""
        os.kill(self.rank_pid(node), signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        """Let a frozen rank go on."""
        os.kill(self.rank_pid(node), signal.SIGCONT)

    def kill(self, node: int) -> None:
        """Kill a node's rank."""
        os.kill(self.rank_pid(node), signal.SIGKILL)

    def slow_down(self, node: int, factor: float) -> None:
        """Give a node's rank a ``factor``-th of the processor time that it uses."""
        self._throttles[node] = slow_down(self.rank_pid(node), factor)

    def speed_up(self, node: int) -> None:
        """Let a slowed rank have all the processor time that it wants."""
        if node in self._throttles:
            self._throttles.pop(node).end()

    def _mend_all(self) -> None:
        endings: list[Callable[[], None]] = [functools.partial(self.speed_up, node) for node in self._throttles]
        endings += [functools.partial(self.mend, node) for node in self._wires]
        with contextlib.ExitStack() as stack:  # one that fails does not keep the others from their end
            for ending in endings:
                stack.callback(ending)


def _network(pid: int) -> int:
    """Return the number of a process's network namespace; -1 if it has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 - thousands of them in a loop
    except OSError:
        return -1
