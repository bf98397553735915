"""What the commands of the documentation find on their PATH while they are tested.

Commands run for real, with smaller numbers: no more than LARGEST ranks and nodes, 8 simulated workers, ROUNDS rounds.
Only what this machine has not (batch schedulers), and what would take minutes (make, installers), is looked at instead:
that its files, targets and extras exist. Started as ``standins.py TITLE COMMAND ARGUMENTS``.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = int(os.environ.get("GOCO_DOCS_LARGEST", "3"))
ROUNDS = int(os.environ.get("GOCO_DOCS_ROUNDS", "40"))


def smaller(words: list[str], largest: int, *options: str) -> list[str]:
    """Return a command line with the numbers of some options cut down."""
    before = ["", *words[:-1]]
    return [
        str(min(int(word), largest)) if option in options else word for option, word in zip(before, words, strict=True)
    ]


def fewer_rounds(text: str) -> str:
    """Return an experiment, or the change of one, with no more than ROUNDS rounds."""
    return re.sub(r"(?m)^(rounds *= *)(\d+)", lambda found: f"{found[1]}{min(int(found[2]), ROUNDS)}", text)


def replace(words: list[str]) -> None:
    """Become another process."""
    os.execvp(words[0], words)


def goco(words: list[str]) -> None:
    """Run goco."""
    words = smaller(words, LARGEST, "--ranks", *(["--nodes"] if words[:1] == ["plan"] else []))
    words = [re.sub(r"(?<=^data.n_samples=)\d+$", "800", fewer_rounds(word)) for word in words]
    replace([sys.executable, "-m", "goco_mpi", *smaller(words, 8, "--workers")])


def goco_on_a_cluster(words: list[str]) -> None:
    """Read the command line only, as the records it is about would come of jobs; job scripts are printed."""
    if words[0] == "jobscript":
        goco(words)
    from goco_mpi.cli import parser
    from goco_mpi.config import put, refuse_unknown_keys

    for setting in getattr(parser().parse_args(words), "set", ()):
        raw: dict[str, object] = {}
        put(raw, setting.partition("=")[0], None, "--set")
        refuse_unknown_keys(raw)


def mpiexec(words: list[str]) -> None:
    """Start ranks with this environment's launcher, which need not know of ULFM."""
    if words[:2] == ["--with-ft", "ulfm"]:
        words = words[2:]
    assert words[0] == "-n", words
    replace([*os.environ["GOCO_DOCS_MPIEXEC"].split(), *smaller(words, LARGEST, "-n")])


def srun(words: list[str]) -> None:
    """Start what srun would, on a few ranks."""
    while words[0].startswith("-"):
        words = words[1:]
    mpiexec(["-n", str(LARGEST), *words])


def submit(words: list[str]) -> None:
    """Look whether there is a batch script that bash can read."""
    options = [word for word in words if not word.startswith("-")]
    script = Path(options[-1]).read_text() if options else sys.stdin.read()
    assert script.startswith("#!/bin/bash"), script[:80]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    print("Submitted batch job 1")


def make(words: list[str]) -> None:
    """Look whether there are such targets."""
    rules = re.findall(r"^([a-z0-9%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        if "=" not in word:
            assert any(re.fullmatch(rule.replace("%", ".+"), word) for rule in rules), word


def pip(words: list[str]) -> None:
    """Look whether there is such an extra, or such a file."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert words[0] == "install", words
    found = re.fullmatch(r"goco-mpi(?:\[([a-z0-9,]+)\])?", words[1])
    assert found, words
    for extra in (found[1] or "").split(","):
        assert not extra or extra in setup["options.extras_require"], extra


def files(words: list[str]) -> None:
    """Look whether the files that a command names are in the repository."""
    named = [word for word in words if word.startswith("packaging/")]
    assert named, words
    for name in named:
        assert (ROOT / name).exists(), name


def python(words: list[str]) -> None:
    """Look whether there is such a program; tests of its own run it."""
    assert words[:2] == ["-m", "mpi4py"], words
    assert (ROOT / words[2]).exists(), words


Commands = dict[str, Callable[[list[str]], None]]
ALWAYS: Commands = {"goco": goco, "mpiexec": mpiexec}
TITLES: dict[str, Commands] = {
    "": {},
    "in a clone": {"make": make},
    "installing": {"pip": pip, "rattler-build": files, "spack": files, "apptainer": files},
    "on a cluster": {"sbatch": submit, "qsub": submit, "bsub": submit, "srun": srun, "goco": goco_on_a_cluster},
    "with PyTorch": {"python": python},
}
"""What there is beside ``ALWAYS`` for blocks of a title, in place of what they would need."""


if __name__ == "__main__":
    title, command, *arguments = sys.argv[1:]
    if command in TITLES[title]:
        with Path(os.environ["GOCO_DOCS_USED"]).open("a") as used:
            used.write(f"{command}\n")
    {**ALWAYS, **TITLES[title]}[command](arguments)
