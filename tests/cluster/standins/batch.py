"""What the stand-ins of qsub and bsub have in common: reading directives, and running a job as a scheduler does."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GRACE_S = 10.0
"""From the first signal at the limit to the last."""


def options(
    text: str, marker: str, values: tuple[str, ...], lists: tuple[str, ...], flags: tuple[str, ...], given: list[str]
) -> argparse.Namespace:
    """Return the directives of a script, overridden by the command line; one that is not known ends the program."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in values:
        parser.add_argument(option)
    for option in lists:
        parser.add_argument(option, action="append", default=[])
    for option in flags:
        parser.add_argument(option, action="store_true")
    lines = re.findall(rf"^{marker} (.*)$", text, re.MULTILINE)
    return parser.parse_args([*(word for line in lines for word in shlex.split(line)), *given])


def match(pattern: str, text: str, what: str) -> tuple[str, ...]:
    """Return the groups of ``text``; end the program if it is not of this form."""
    found = re.fullmatch(pattern, text)
    if not found:
        sys.exit(f"illegal {what}: {text}")
    return found.groups()


def environment() -> dict[str, str]:
    """Return what a login has: nothing of the shell that a job was submitted from."""
    return {
        "HOME": str(Path.home()),
        "LOGNAME": "root",
        "USER": "root",
        "SHELL": "/bin/bash",
        "PATH": f"{HERE}:/usr/bin:/bin",  # of ssh there is a stand-in too
    }


def run(script: Path, variables: dict[str, str], directory: Path, output: Path, limit_s: float) -> int:
    """Run a job in a session of its own, which is ended whole at its limit; SIGUSR1 to this process goes to all of it.

    Returns
    -------
    int
        The job's exit code.
    """
    with output.open("wb") as file:
        job = subprocess.Popen(
            ["/bin/bash", script], env=variables, cwd=directory, stdout=file, stderr=file, start_new_session=True
        )
    signal.signal(signal.SIGUSR1, lambda *_: os.killpg(job.pid, signal.SIGUSR1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the job ends with this process
    try:
        return job.wait(limit_s)
    except subprocess.TimeoutExpired:
        return 143
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGTERM)  # first: SIGKILL would leave the ranks behind
            try:
                job.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
