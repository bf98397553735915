"""``goco jobscript``: a batch script for an experiment."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from goco_mpi.errors import InputError, check_range

if TYPE_CHECKING:
    from goco_mpi.jobscripts.job import Run
    from goco_mpi.schema import RunConfig


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.jobscripts.job import SRUN, Job, job_name, parse_time
    from goco_mpi.jobscripts.render import SCHEDULERS, render

    scheduler = SCHEDULERS[options.scheduler]
    launcher = options.launcher or scheduler.launchers[0]
    if options.mpi and launcher != SRUN:
        raise InputError(f"--mpi is for srun; {launcher} finds its MPI by itself. Leave it out.")
    check_range("--nodes", options.nodes, 1, 2**20)
    name = Path(options.experiment).stem
    out = str(options.out or Path("runs") / name)
    runs, members = _member_runs(options, out) if options.array else (_runs(options, out), 0)
    job = Job(
        command=shlex.join(["goco", "jobscript", *options.words]),
        experiment=options.experiment,
        name=job_name(name),
        nodes=options.nodes,
        runs=tuple(runs),
        time_s=parse_time(options.time),
        launcher=launcher,
        mpi=options.mpi or "pmi2",
        cores=options.cores,
        members=members,
        chain=options.chain,
        requeue=options.requeue,
        container=tuple(options.container or ()),
        prologue=options.prologue,
        directives=tuple(options.directive),
    )
    print(render(job, scheduler), end="")
    return 0


def _runs(options: argparse.Namespace, out: str) -> list[Run]:
    """Return the runs of an experiment, each of which fits its number of ranks."""
    from goco_mpi.config import read_config
    from goco_mpi.experiment import lay_out
    from goco_mpi.jobscripts.job import Run

    given = tuple(options.set)
    if not options.scaling:
        lay_out(read_config(options.experiment, given), options.nodes)
        return [Run(options.nodes, out, given)]
    runs = []
    for n_ranks in _doubling(options.nodes):
        settings = given
        if options.scaling == "weak":
            settings += _grown(read_config(options.experiment, given), n_ranks)
        lay_out(read_config(options.experiment, settings), n_ranks)
        runs.append(Run(n_ranks, f"{out}/{n_ranks}", settings))
    return runs


def _doubling(nodes: int) -> list[int]:
    """Return 1, 2, 4, ... and ``nodes``."""
    return [*(2**power for power in range(nodes.bit_length()) if 2**power < nodes), nodes]


def _grown(config: RunConfig, n_ranks: int) -> tuple[str, ...]:
    """Return the settings by which an experiment for one rank grows with the ranks."""
    from goco_mpi.values import GENERATED

    if config.data.source not in ("synthetic", *GENERATED):
        raise InputError(
            f"--scaling weak needs data that can grow, such as data.source = 'synthetic_regression'. "
            f"Got {config.data.source!r}."
        )
    return (f"data.n_samples={config.data.n_samples * n_ranks}", f"data.shards={config.data.shards * n_ranks}")


def _member_runs(options: argparse.Namespace, out: str) -> tuple[list[Run], int]:
    """Return the run of a job array's element, and how many elements there are."""
    from goco_mpi.experiment import lay_out
    from goco_mpi.jobscripts.job import Run
    from goco_mpi.sweeps.file import read_sweep

    if options.set or options.scaling:
        raise InputError("--array runs the members of a sweep as its file has them. Leave out --set and --scaling.")
    sweep = read_sweep(options.experiment)
    if sweep.mode != "mpi":
        raise InputError(f"--array trains on MPI, and {options.experiment!r} simulates. Set mode = 'mpi' in it.")
    for place, member in enumerate(sweep.members):
        what = f"Member {place} ({member.label}) of {options.experiment!r}"
        if member.config is None:
            raise InputError(f"{what} is refused: {member.refusal}")
        if member.workers != options.nodes:
            raise InputError(
                f"Every member must have as many workers as there are --nodes = {options.nodes}. {what} has "
                f"{member.workers}. Set workers = {options.nodes}, or write a sweep for each size."
            )
        try:
            lay_out(member.config, member.workers)
        except InputError as error:
            raise InputError(f"{what} is refused: {error}") from None
    if len({member.identity for member in sweep.members}) < len(sweep.members):
        raise InputError(f"Two members of {options.experiment!r} are the same run. An array would do it twice at once.")
    return [Run(options.nodes, out)], len(sweep.members)
