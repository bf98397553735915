"""The recipes of other package managers say what setup.cfg says."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import goco_mpi

ROOT = Path(__file__).resolve().parent.parent
CONDA = ROOT / "packaging" / "conda" / "recipe.yaml"
VARIANTS = CONDA.with_name("variants.yaml")
SPACK = ROOT / "packaging" / "spack" / "spack_repo" / "goco" / "packages" / "py_goco_mpi" / "package.py"
APPTAINER = ROOT / "packaging" / "apptainer" / "goco.def"


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def required() -> dict[str, str]:
    """Return the least version of each requirement of setup.cfg."""
    return least(setup()["options"]["install_requires"])


def least(lines: str) -> dict[str, str]:
    """Return the least version of each requirement."""
    return {name: version for line in lines.split("\n") if line for name, version in [line.split(" >= ")]}


def test_the_versions_are_one() -> None:
    assert setup()["metadata"]["version"] == goco_mpi.__version__
    for path, pattern in (
        (CONDA, r"^  version: (\S+)$"),
        (SPACK, r'^    version\("(\S+)"\)$'),
        (ROOT / "CITATION.cff", r"^version: (\S+)$"),
    ):
        assert goco_mpi.__version__ in re.findall(pattern, path.read_text(), re.MULTILINE), path


def test_conda_requires_what_setup_requires() -> None:
    run = re.search(r"\n  run:\n(.*?)\n\n", CONDA.read_text(), re.DOTALL)
    assert run is not None
    found = dict(re.findall(r"- (\S+) >=(\S+)", run[1]))
    assert found == required()


def test_conda_s_variants_are_the_pythons_of_setup_and_all_the_recipe_asks_for() -> None:
    found = dict(re.findall(r"^(\w+):\n((?: .*\n)+)", VARIANTS.read_text(), re.MULTILINE))
    pythons = re.findall(r"Python :: (3\.\d+)$", setup()["metadata"]["classifiers"], re.MULTILINE)
    assert re.findall(r'^  - "(.*)"$', found["python"], re.MULTILINE) == pythons
    for language in re.findall(r'stdlib\("(\w+)"\)', CONDA.read_text()):  # no default: rattler-build stops without
        assert {f"{language}_stdlib", f"{language}_stdlib_version"} <= set(found)


def test_spack_requires_what_setup_requires() -> None:
    (package,) = (node for node in ast.parse(SPACK.read_text()).body if isinstance(node, ast.ClassDef))
    assert package.name == "PyGocoMpi"
    found: dict[str | None, dict[str, str]] = {None: {}, "+report": {}}
    for call in (node for node in ast.walk(package) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == "depends_on":
            when = {k.arg: ast.literal_eval(k.value) for k in call.keywords}.get("when")
            if known := re.fullmatch(r"(?:py-)?([a-z0-9-]+)@([0-9.]+):", ast.literal_eval(call.args[0])):
                found[when][known[1]] = known[2]
    assert found[None].pop("python") == setup()["options"]["python_requires"].removeprefix(">=")
    assert found[None].pop("setuptools") == "69"
    assert found == {None: required(), "+report": least(setup()["options.extras_require"]["report"])}


def test_the_image_is_made_of_what_setup_needs() -> None:
    text = APPTAINER.read_text()
    copied = re.findall(r"^    (\S+) /source/\1$", text, re.MULTILINE)
    assert set(copied) >= {"goco_mpi", "setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r"'/source\[(.*)\]'", text)
    assert set(extras.split(",")) <= set(setup()["options.extras_require"])


@pytest.mark.parametrize("path", [CONDA, SPACK, APPTAINER], ids=lambda path: path.name)
def test_a_build_without_the_kernels_is_seen(path: Path) -> None:
    (name,) = re.findall(r'Extension\(\s+"(\S+)"', (ROOT / "setup.py").read_text())
    assert name in path.read_text(), "They are optional to setup.py, so pip is content without them."


@pytest.mark.parametrize("section", ["post", "runscript", "test", "environment"])
def test_the_image_s_shell_code_is_sound(section: str, tmp_path: Path) -> None:
    found = re.search(rf"^%{section}\n(.*?)(?=^%|\Z)", APPTAINER.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\n{found[1]}")
    subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_entry_point_and_extras_of_the_docs_are_there() -> None:
    assert setup()["options.entry_points"]["console_scripts"].strip() == "goco = goco_mpi.cli:main"
    assert set(re.findall(r"^\| `([a-z0-9]+)`", (ROOT / "docs" / "installing.md").read_text(), re.MULTILINE)) <= set(
        setup()["options.extras_require"]
    )
