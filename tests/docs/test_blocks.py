"""Every code block of the documentation is run, a page from its top to its bottom in a directory of its own.

``sh`` blocks go through bash, with the stand-ins of `standins` on the PATH: commands are run with smaller numbers of
ranks and rounds, and by ``make test-large`` nearly as they stand. A block with a title (*in a clone*, *installing*,
*on a cluster*, *with PyTorch*) needs what is not here; the title is there for readers, and the test insists on it.
``toml`` blocks are experiments or sweeps. Blocks with a file name in their first line are written there. The other
``python`` blocks of a page are run one after the other in one process, on several ranks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from markdown_blocks import PAGES, ROOT, Block, blocks, indented, inline_code
from standins import ALWAYS, LARGEST, TITLES, fewer_rounds

from goco_mpi import cli
from goco_mpi.config import parse_config, refuse_unknown_keys
from goco_mpi.errors import InputError
from goco_mpi.schema import RunConfig
from goco_mpi.sweeps.file import read_sweep

LIMIT_S = 300
EXPERIMENT = """\
rounds = 40
[data]
source = "synthetic"
n_samples = 160
n_features = 4
shards = 8
[objective]
kind = "least_squares"
[method]
rates = "stated"
[step]
scale = 0.5
[record]
every = 5
"""
SWEEP = """\
workers = 4
base = "experiment.toml"
[grid]
seed = [0, 1]
"""
FILES = {"experiment.toml": EXPERIMENT, "other.toml": EXPERIMENT, "sweep.toml": SWEEP, "site.sh": "true\n"}
"""What pages take for granted: an experiment of the reader's own, and files of a site. It ends well on any machine."""
RECORDED = {"docs/plan.md": "mpiexec -n 2 goco run experiment.toml --quiet"}
"""Pages that begin with a run that is there already."""
SUFFIXES = (".npy", ".toml")
"""What makes a name that looks like a key one of a file."""
WITH_BLOCKS = [page for page in PAGES if any(block.language for block in blocks(page))]


class Reader:
    """Somebody who does what a page says, in a directory."""

    def __init__(self, directory: Path, launcher: str) -> None:
        self.directory = directory
        self.used = directory / ".used"
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GOCO_DOCS_MPIEXEC": launcher,
            "GOCO_DOCS_USED": str(self.used),
            "SCRATCH": str(directory / "scratch"),
            "COLUMNS": "120",
        }
        for name, text in FILES.items():
            (directory / name).write_text(text)
        rows = "\n".join(f"{(-1) ** i} 1:{i % 7 / 7} 2:{(-1) ** i * 0.5 + i % 3}" for i in range(200))
        (directory / "train.svm").write_text(rows + "\n")
        with h5py.File(directory / "big.h5", "w") as big:
            targets = np.arange(200) % 3 * 1.0
            big["features"] = targets[:, None] + np.random.default_rng(0).standard_normal((200, 2))
            big["targets"] = targets
        (directory / "scratch").mkdir()
        for name in ("jobscripts", "examples"):
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
        for title, commands in TITLES.items():
            place = self._commands(title)
            place.mkdir(parents=True)
            for command in {name for names in TITLES.values() for name in names} | set(ALWAYS):
                there = command in {**ALWAYS, **commands}
                standin = f'exec {sys.executable} {ROOT}/tests/docs/standins.py "{title}" {command} "$@"'
                path = place / command
                path.write_text(f"#!/bin/sh\n{standin if there else f'echo {command}: needs a title >&2; exit 1'}\n")
                path.chmod(0o755)

    def _commands(self, title: str) -> Path:
        return self.directory / ".commands" / (title.replace(" ", "_") or "plain")

    def sh(self, text: str, title: str = "") -> None:
        """Run commands, with what blocks of that title have."""
        self.used.write_text("")
        path = f"{self._commands(title)}:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.directory,
            env={**self.environment, "PATH": path},
            stdin=subprocess.DEVNULL,  # a launcher in the background that reads a terminal is stopped
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        if title:
            assert self.used.read_text(), f"nothing in this block needs its title {title!r}"

    def python(self, text: str) -> None:
        """Run a program, on several ranks if it is for that."""
        (self.directory / "program.py").write_text(text)
        launch = [*self.environment["GOCO_DOCS_MPIEXEC"].split(), "-n", str(LARGEST)] if "goco_mpi" in text else []
        done = subprocess.run(
            [*launch, sys.executable, "-W", "error", "-m", "mpi4py", "program.py"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr

    def toml(self, text: str) -> None:
        """Keep a file that the block names, and read it as what it is; what has no name is part of an experiment."""
        named = re.match(r"# (\S+\.toml)\n", text)
        if named:
            (self.directory / named[1]).write_text(fewer_rounds(text))
        tables = tomllib.loads(text)
        if {"base", "variant", "grid"} & set(tables):
            assert named
            refused = [member.refusal for member in read_sweep(self.directory / named[1]).members if member.refusal]
            assert not refused
        else:
            parse_config(tables)


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_what_a_page_tells_its_readers_to_do_works(page: str, mpiexec: list[str], tmp_path: Path) -> None:
    reader = Reader(tmp_path, " ".join(mpiexec))
    if page in RECORDED:
        reader.sh(RECORDED[page])
    program = ""
    for block in blocks(page):
        where = f"{page}:{block.line}"
        assert block.title in TITLES, f"{where}: {block.title!r} is none of {list(TITLES)}"
        match block.language:
            case "sh":
                reader.sh(block.text, block.title)
            case "toml":
                reader.toml(block.text)
            case "python" if block.title == "with PyTorch" and find_spec("torch") is None:
                compile(block.text, where, "exec")  # make test-torch runs it
            case "python" if named := re.match(r"# (\S+\.py)\n", block.text):
                (tmp_path / named[1]).write_text(block.text)
            case "python":
                program += block.text
                reader.python(program)
            case _:
                assert block.language in ("", "text"), f"{where}: nobody tests blocks of {block.language!r}"


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_where_it_is_not_tested(page: str) -> None:
    text = "\n".join([*indented(page), *(block.text for block in blocks(page) if block.language in ("", "text"))])
    assert not re.search(r"^\s*(\$ )?(goco|make|mpiexec|sbatch|pip|python) [a-z-]", text, re.MULTILINE)


def known_options() -> dict[str, set[str]]:
    """Return the options of every command of goco."""
    (commands,) = (action.choices for action in cli.parser()._actions if isinstance(action.choices, dict))
    return {name: set(parser._option_string_actions) for name, parser in commands.items()}


def is_key(name: str) -> bool:
    """Return whether there is such a key in an experiment file."""
    section, key = name.split(".")
    try:
        refuse_unknown_keys({section: {key: None}})
    except InputError:
        return False
    return True


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_a_page_names_only_commands_options_and_keys_that_there_are(page: str) -> None:
    options = known_options()
    unknown = []
    for code in inline_code(page):
        words = code.split()
        if words[0] == "goco" and len(words) > 1 and re.fullmatch("[a-z-]+", words[1]):
            known = options.get(words[1])
            if known is None or not {word.partition("=")[0] for word in words if word.startswith("--")} <= known:
                unknown.append(code)
        for section, key in re.findall(r"^([a-z]+)\.([a-z_0-9]+)\b(?!\.)", code):
            name = f"{section}.{key}"
            if section in RunConfig.__struct_fields__ and not is_key(name) and f".{key}" not in SUFFIXES:
                unknown.append(code)
    assert not unknown


def test_a_block_that_needs_a_scheduler_says_so(tmp_path: Path) -> None:
    reader = Reader(tmp_path, "mpiexec")
    script = "printf '#!/bin/bash\\ntrue\\n' > job.sh; sbatch job.sh"
    reader.sh(script, "on a cluster")
    with pytest.raises(AssertionError, match="sbatch: needs a title"):
        reader.sh(script)
    with pytest.raises(AssertionError, match="nothing in this block needs"):
        reader.sh("true", "on a cluster")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("goco report nothing", ""),
        ("goco simulate experiment.toml --worker 3 --out a --frobnicate", ""),
        ("make frobnicate", "in a clone"),
        ("pip install 'goco-mpi[frobnicate]'", "installing"),
        ("goco run experiment.toml --set method.frobnicate=1", "on a cluster"),
        ("sbatch site.sh", "on a cluster"),
        ("goco info | false | true", ""),
    ],
)
def test_a_command_that_does_not_work_is_found(text: str, title: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Reader(tmp_path, "mpiexec").sh(text, title)


def test_an_experiment_that_is_none_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Reader(tmp_path, "mpiexec").toml("[data]\nfrobnicate = 1\n")


def test_blocks_have_language_title_and_line() -> None:
    assert Block(line=15, language="sh", title="in a clone", text="") in [
        Block(block.line, block.language, block.title, "") for block in blocks("README.md")
    ]
