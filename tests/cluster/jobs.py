"""A copy of the checked-in job scripts with a site.sh for this machine, and what their runs left."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from goco_mpi.record import RunRecord, read_run
from goco_mpi.replay import replay

REPOSITORY = Path(__file__).resolve().parents[2]
# More ranks than cores, also as root in a container: for Open MPI, and not the scripts' business.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def copy(directory: Path, python: str = sys.executable) -> Path:
    """Return a copy of ``jobscripts/`` in which jobs use this interpreter's environment and this repository's goco."""
    place = directory / "jobscripts"
    shutil.copytree(REPOSITORY / "jobscripts", place)
    programs = directory / "bin"
    programs.mkdir()
    goco = programs / "goco"
    goco.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} -m goco_mpi "$@"\n')
    goco.chmod(0o755)
    path = f"{programs}:{Path(python).parent}"
    lines = [f'export PATH={shlex.quote(path)}:"$PATH"', f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}"]
    lines += [f"export {name}={value}" for name, value in (OPEN_MPI | {"OMP_NUM_THREADS": "1"}).items()]
    (place / "site.sh").write_text("\n".join(lines) + "\n")
    return place


def change(experiment: Path, *pairs: tuple[str, str]) -> None:
    """Replace lines of an experiment file, each of which must be there."""
    text = experiment.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    experiment.write_text(text)


def check(out: Path, n_ranks: int = 4) -> RunRecord:
    """Return a run's record, having made sure that it is of so many ranks and replays."""
    record = read_run(out)
    assert record.run["environment"]["n_ranks"] == n_ranks
    assert replay(record).agrees
    return record
