"""Write the checked-in batch scripts: ``make jobscripts``. Each is what the command in its second line prints."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from goco_mpi.cli import main

SCHEDULERS = ("slurm", "pbs", "lsf")
JOBS = {
    "train": "--time 00:30:00 --requeue",
    "strong_scaling": "--scaling strong --time 00:30:00",
    "weak_scaling": "--scaling weak --time 00:30:00",
    "straggler_study": "--array sweep --time 00:10:00",
    "resume_chain": "--chain 5 --requeue --time 01:00:00",
}
"""Name of the experiment and script, and the options that all schedulers share."""
COMMON = "--nodes 4 --prologue site.sh"


def render(scheduler: str, job: str) -> str:
    """Return the text of a script; the experiment is looked up from the directory of this file."""
    command = f"jobscript {scheduler} experiments/{job}.toml {COMMON} {JOBS[job]}".split()
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.chdir(Path(__file__).parent):
        code = main(command)
    if code:
        raise SystemExit(code)
    return text.getvalue()


if __name__ == "__main__":
    here = Path(__file__).parent
    for scheduler in SCHEDULERS:
        (here / scheduler).mkdir(exist_ok=True)
        for job in JOBS:
            path = here / scheduler / f"{job}.sh"
            path.write_text(render(scheduler, job))
            path.chmod(0o755)
