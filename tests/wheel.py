"""Build what is published, install it where nothing is, and train with it on 4 ranks, outside the repository.

    python tests/wheel.py

As a user would: source distribution, the wheel built from it, an empty virtual environment, ``pip install
goco-mpi[mpich]``. Needs an index that pip can ask, for the dependencies.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IN_WHEEL = (
    "goco_mpi/py.typed",
    "goco_mpi/jobscripts/slurm.py",
    "goco_mpi/commands/run.py",
    "goco_mpi/reporting/templates/page.html",
    "goco_mpi/bench/peer_programs/gloo_exchange.py",
    "/licenses/LICENSE",
)
IN_SOURCE = ("setup.py", "README.md", "LICENSE", "goco_mpi/core/objectives/_kernels.c")
EXPERIMENT = """\
rounds = 60
[data]
source = "breast_cancer"
shards = 8
standardize = true
[objective]
kind = "logistic"
[stragglers]
kind = "slow"
ranks = [1]
work_s = 1e-3
"""
CONSUMER = """\
import goco_mpi

result: goco_mpi.Result = goco_mpi.train({"rounds": 1})
loss: float = result.fun
"""


def run(*words: object, cwd: Path, expect: str = "") -> str:
    """Run a command, end if it fails or does not say what is expected, and return what it printed."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    if done.returncode or expect not in printed:
        sys.exit(f"wheel: {' '.join(map(str, words))}\n{printed}")
    return printed


def build(place: Path) -> tuple[Path, Path]:
    """Build source distribution and wheel of a copy of the repository, and return them."""
    clone, dist = place / "clone", place / "dist"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "site", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, clone, ignore=unwanted)
    run(sys.executable, "-m", "build", "--outdir", dist, clone, cwd=place)
    (source,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return source, wheel


def check(source: Path, wheel: Path) -> None:
    """Look at both: what is in them, and what an index would say to them."""
    run(sys.executable, "-m", "twine", "check", "--strict", source, wheel, cwd=wheel.parent)
    run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=wheel.parent)
    with zipfile.ZipFile(wheel) as whole, tarfile.open(source) as archive:
        in_wheel, in_source = whole.namelist(), archive.getnames()
    for wanted, names in ((IN_WHEEL, in_wheel), (IN_SOURCE, in_source)):
        missing = [name for name in wanted if not any(there.endswith(name) for there in names)]
        if missing:
            sys.exit(f"wheel: {missing} is not in what was built.")
    if strange := [name for name in in_wheel if not name.startswith(("goco_mpi/", "goco_mpi-"))]:
        sys.exit(f"wheel: {strange} is in the wheel.")


def use(wheel: Path, place: Path) -> None:
    """Install the wheel in an empty environment, and do with it what users do."""
    run(sys.executable, "-m", "venv", place / "venv", cwd=place)
    commands = place / "venv" / "bin"
    pip = [commands / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, f"{wheel}[mpich]", cwd=place)
    (place / "experiment.toml").write_text(EXPERIMENT)
    run(commands / "goco", "--version", cwd=place, expect="goco 0.")
    launch = [commands / "mpiexec", "-n", "4", commands / "goco"]
    print(run(*launch, "run", "experiment.toml", "--quiet", cwd=place), end="")
    run(commands / "goco", "replay", "runs/experiment", cwd=place, expect="within 1e-12")
    run(commands / "goco", "jobscript", "slurm", "experiment.toml", "--nodes", "4", cwd=place, expect="#SBATCH")
    print(run(commands / "goco", "report", "runs/experiment", cwd=place), end="")
    (place / "consumer.py").write_text(CONSUMER)
    types = ["--strict", "--python-executable", commands / "python", "consumer.py"]
    run(sys.executable, "-m", "mypy", *types, cwd=place, expect="no issues")
    (place / "consumer.py").write_text(CONSUMER.replace("loss: float", "loss: str"))
    wrong = subprocess.run([sys.executable, "-m", "mypy", *types], cwd=place, capture_output=True, text=True)
    if "Incompatible types" not in wrong.stdout:
        sys.exit(f"wheel: its types are not seen.\n{wrong.stdout}")


def main() -> None:
    """Build, check and use."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        source, wheel = build(place)
        check(source, wheel)
        print(f"{source.name}, {wheel.name}: built and checked in {time.perf_counter() - begun:.0f} s")
        use(wheel, place)
    print(f"installed in an empty environment and used on 4 ranks; all in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
