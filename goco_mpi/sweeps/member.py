"""One member of a sweep as an experiment file of its own, for ranks that something else starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from goco_mpi.config import to_dict
from goco_mpi.errors import InputError, RunError, check_range
from goco_mpi.schema import RunConfig
from goco_mpi.sweeps.file import Member, Sweep


def write_member(sweep: Sweep, out: Path, place: int) -> str:
    """Write the experiment of a member that a job of its own will run, and return the name of its run directory.

    Parameters
    ----------
    sweep : Sweep
    out : Path
        Directory of the sweep. The experiment is ``out/experiments/NAME.toml``, the run belongs to ``out/runs/NAME``.
    place : int
        Which member, from 0.

    Raises
    ------
    InputError
        If there is no such member, or it is refused.
    RunError
        If the experiment cannot be written.
    """
    check_range("--member", place, 0, len(sweep.members) - 1, "Members count from 0, in the order of the table.")
    member = sweep.members[place]
    if member.config is None:
        raise InputError(f"Member {place} ({member.label}) is refused: {member.refusal}")
    write_experiment(out, member)
    return member.identity


def write_experiment(out: Path, member: Member) -> Path:
    """Write what the ranks of a member read, whole or not at all, and return where.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    assert member.config is not None
    path = out / "experiments" / f"{member.identity}.toml"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(to_toml(member.config))
        fresh.replace(path)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written: {error.strerror}. Choose another --out.") from None
    return path


def to_toml(config: RunConfig) -> str:
    """Return an experiment as TOML.

    Examples
    --------
    >>> from goco_mpi.config import parse_config
    >>> to_toml(parse_config({"rounds": 5})).splitlines()[:4]
    ['seed = 0', 'rounds = 5', '[data]', 'source = "digits"']
    """

    def line(key: str, value: Any) -> str:
        return f"{key} = {json.dumps(value, ensure_ascii=False)}"  # what TOML and JSON have in common

    lines, tables = [], []
    for key, value in to_dict(config).items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(line(name, item) for name, item in value.items() if item is not None)]
        else:
            lines.append(line(key, value))
    return "\n".join([*lines, *tables]) + "\n"
