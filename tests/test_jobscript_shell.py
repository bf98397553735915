"""What a rendered batch script does in a shell, with stand-ins for the launcher and for goco.

Whether real schedulers and launchers do their part: tests/cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goco_mpi.cli import main

EXPERIMENT = """\
rounds = 5
[data]
source = "synthetic"
n_samples = 64
shards = 8
[objective]
kind = "least_squares"
"""
# Writes down how it was called. A run then does what the file "behaviour" says.
LAUNCHER = """\
#!/bin/bash
trap 'echo usr1 >>signals; exit "$(cat behaviour)"' USR1
while [ "$1" != goco ]; do shift; done
printf '%s\\0' "$OMP_NUM_THREADS" "$@" >call
cat call >>calls
printf '\\n' >>calls
[ "$2" = info ] && exit
out=$5
case $(cat behaviour) in
    wait) while [ ! -e "$out.stop" ]; do sleep 0.02; done; rm "$out.stop" ;;
    signal*) while :; do sleep 0.02; done ;;
    *) exit "$(cat behaviour)" ;;
esac
"""
LIMIT_S = 20.0
ENVIRONMENT = {
    "slurm": {"SLURM_SUBMIT_DIR": ".", "SLURM_JOB_ID": "17", "SLURM_CPUS_ON_NODE": "5"},
    "pbs": {"PBS_O_WORKDIR": ".", "PBS_JOBID": "17.server", "PBS_NODEFILE": "nodes"},
    "lsf": {"LS_SUBCWD": ".", "LSB_JOBID": "17", "LSB_DJOB_HOSTFILE": "nodes"},
}


class Shell:
    """A directory in which scripts run that have stand-ins for everything else."""

    def __init__(self, directory: Path, render: Callable[..., str]) -> None:
        self.directory = directory
        self._render = render
        programs = directory / "bin"
        programs.mkdir()
        for name in ("mpiexec", "srun"):
            (programs / name).write_text(LAUNCHER)
        (programs / "scontrol").write_text('#!/bin/bash\necho "$@" >>requeued\n')
        for path in programs.iterdir():
            path.chmod(0o755)
        (directory / "small.toml").write_text(EXPERIMENT)

    @contextlib.contextmanager
    def start(self, *words: str, behaviour: str = "0", **more: str) -> Iterator[subprocess.Popen[str]]:
        (self.directory / "behaviour").write_text(behaviour)
        (self.directory / "script.sh").write_text(self._render(*words))
        process = subprocess.Popen(
            ["bash", "script.sh"],
            cwd=self.directory,
            env={"PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}", **ENVIRONMENT[words[0]], **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:  # leaving waits for its end, which a failed test may never see
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, *words: str, behaviour: str = "0", **more: str) -> tuple[int, str, str]:
        with self.start(*words, behaviour=behaviour, **more) as process:
            printed, said = process.communicate(timeout=LIMIT_S)
        return process.returncode, printed, said

    def calls(self) -> list[list[str]]:
        """Return how goco was called, each time; first the number of threads."""
        lines = self._text("calls").split("\n")[:-1]
        return [line.split("\0")[:-1] for line in lines]

    def requeued(self) -> list[str]:
        return self._text("requeued").splitlines()

    def keep_checkpoint(self) -> None:
        place = self.directory / "runs" / "small.checkpoints" / "set-00000001"
        place.mkdir(parents=True)
        (place / "whole.json").touch()

    def wait_for_run(self) -> None:
        limit = time.monotonic() + LIMIT_S
        while not any(call[2] == "run" for call in self.calls()):
            assert time.monotonic() < limit, "no run was started"
            time.sleep(0.02)

    def _text(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    if not shutil.which("bash"):
        pytest.skip("no bash")
    monkeypatch.chdir(tmp_path)

    def render(*words: str) -> str:
        assert main(["jobscript", *words, "--nodes", "4"]) == 0
        return capsys.readouterr().out

    return Shell(tmp_path, render)


@pytest.mark.parametrize("scheduler", ENVIRONMENT)
def test_a_script_says_where_it_runs_and_runs_goco(shell: Shell, scheduler: str) -> None:
    code, printed, said = shell.run(scheduler, "small.toml")
    assert (code, said) == (0, "")
    assert [line.split()[0] for line in printed.splitlines()] == ["date", "host", "job", "revision", "threads"]
    assert "17" in printed.splitlines()[2]
    threads = {"slurm": "5"}.get(scheduler, str(os.cpu_count()))
    run = ["run", "small.toml", "--out", "runs/small", "--ranks", "4", "--resume"]
    assert shell.calls() == [[threads, "goco", "info"], [threads, "goco", *run]]


@pytest.mark.parametrize("scheduler", ENVIRONMENT)
def test_names_reach_goco_as_they_are(shell: Shell, scheduler: str) -> None:
    name = """it's a "$HOME" `x`; \\ *.toml"""
    (shell.directory / name).write_text(EXPERIMENT)
    words = [scheduler, name, "--out", "runs/a b$(touch pwned)", "--set", "record.every=3"]
    code, _, said = shell.run(*words, "--prologue", "pro logue.sh")
    assert code == 2
    assert "pro logue.sh" in said
    (shell.directory / "pro logue.sh").write_text("export OMP_NUM_THREADS=3\n")
    code, _, said = shell.run(*words, "--prologue", "pro logue.sh")
    assert (code, said) == (0, "")
    expected = ["3", "goco", "run", name, "--out", "runs/a b$(touch pwned)", "--ranks", "4", "--resume"]
    assert shell.calls()[-1] == [*expected, "--set", "record.every=3"]
    assert not (shell.directory / "pwned").exists()


@pytest.mark.parametrize("scheduler", ENVIRONMENT)
def test_the_code_of_a_script_is_the_runs(shell: Shell, scheduler: str) -> None:
    assert shell.run(scheduler, "small.toml", behaviour="7")[0] == 7
    assert shell.run(scheduler, "small.toml", "--scaling", "strong", behaviour="7")[0] == 7
    assert sum(call[2] == "run" for call in shell.calls()) == 2  # the larger ones were not tried


def test_runs_of_a_scaling_job_follow_each_other(shell: Shell) -> None:
    assert shell.run("slurm", "small.toml", "--scaling", "strong")[0] == 0
    assert [call[7] for call in shell.calls() if call[2] == "run"] == ["1", "2", "4"]


@pytest.mark.parametrize("words", ["pbs small.toml", "lsf small.toml"])
def test_a_signal_to_all_processes_of_a_job_ends_none_of_them(shell: Shell, words: str) -> None:
    with shell.start(*words.split(), behaviour="wait") as process:
        shell.wait_for_run()
        os.killpg(process.pid, signal.SIGUSR1)
        assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("name", ["USR1", "TERM"])
@pytest.mark.parametrize("words", ["pbs small.toml", "lsf small.toml", "slurm small.toml --launcher mpiexec"])
def test_a_signal_stops_the_runs_of_mpiexec_by_a_file(shell: Shell, words: str, name: str) -> None:
    with shell.start(*words.split(), "--scaling", "strong", behaviour="wait") as process:
        shell.wait_for_run()
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.wait(LIMIT_S) == 0
    assert sum(call[2] == "run" for call in shell.calls()) == 1  # what was to follow did not begin


def test_a_stop_file_of_an_earlier_job_is_removed_and_a_users_is_not(shell: Shell) -> None:
    stop = shell.directory / "runs" / "small.stop"
    stop.parent.mkdir()
    stop.write_text("16.server\n")
    assert shell.run("pbs", "small.toml")[0] == 0
    assert not stop.exists()
    stop.touch()
    assert shell.run("pbs", "small.toml")[0] == 0
    assert stop.exists()  # goco refuses to start


@pytest.mark.parametrize(("behaviour", "code"), [("0", 0), ("7", 7)])
def test_a_signal_is_passed_on_to_srun_and_the_runs_own_end_counts(shell: Shell, behaviour: str, code: int) -> None:
    shell.keep_checkpoint()
    with shell.start("slurm", "small.toml", "--requeue", behaviour="signal") as process:
        shell.wait_for_run()
        (shell.directory / "behaviour").write_text(behaviour)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(LIMIT_S) == code
    assert (shell.directory / "signals").read_text() == "usr1\n"
    assert shell.requeued() == []  # it was asked to end


def test_a_run_that_kept_nothing_does_not_go_back_into_the_queue(shell: Shell) -> None:
    shell.run("slurm", "small.toml", "--requeue", behaviour="137")
    assert shell.requeued() == []


@pytest.mark.parametrize(
    ("behaviour", "restarts", "requeued"),
    [("137", 0, True), ("137", 4, True), ("137", 5, False), ("1", 0, False), ("2", 0, False), ("0", 0, False)],
)
def test_only_a_run_that_lost_a_rank_goes_back_into_the_queue_and_not_for_ever(
    shell: Shell, behaviour: str, restarts: int, requeued: bool
) -> None:
    shell.keep_checkpoint()
    code, printed, _ = shell.run(
        "slurm", "small.toml", "--requeue", behaviour=behaviour, SLURM_RESTART_COUNT=str(restarts)
    )
    assert code == int(behaviour)
    assert f"restarted {restarts} times" in printed
    assert shell.requeued() == (["requeue 17"] if requeued else [])


def test_without_requeue_nothing_goes_back_into_the_queue(shell: Shell) -> None:
    shell.keep_checkpoint()
    shell.run("slurm", "small.toml", behaviour="137")
    assert shell.requeued() == []
