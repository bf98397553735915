"""A job and a scheduler to the text of a batch script."""

from __future__ import annotations

import shlex

from goco_mpi.errors import check_one_of
from goco_mpi.jobscripts.job import SRUN, Job, Run, Scheduler
from goco_mpi.jobscripts.lsf import LSF
from goco_mpi.jobscripts.pbs import PBS
from goco_mpi.jobscripts.slurm import SLURM

SCHEDULERS = {scheduler.name: scheduler for scheduler in (SLURM, PBS, LSF)}


def render(job: Job, scheduler: Scheduler) -> str:
    """Return the batch script of ``job``, for bash.

    Raises
    ------
    InputError
        If the scheduler does not have the job's launcher.

    Examples
    --------
    >>> script = render(Job("goco jobscript ...", "digits.toml", "digits", 4, (Run(4, "runs/digits"),)), PBS)
    >>> script.splitlines()[-1]
    'train 4 digits.toml runs/digits'
    """
    check_one_of(f"--launcher of {scheduler.name}", job.launcher, scheduler.launchers)
    parts = [
        "\n".join(["#!/bin/bash", f"# {job.command}", *_directives(job, scheduler)]) + "\n",
        _place(job, scheduler),
        _provenance(scheduler),
        _launch(job, scheduler),
        _train(job, scheduler),
        f"(launch {job.nodes} {_goco(job)} info)\n",
        _runs(job, scheduler),
    ]
    return "\n".join(parts)


def _directives(job: Job, scheduler: Scheduler) -> list[str]:
    return [f"{scheduler.marker} {line}" for line in [*scheduler.directives(job), *job.directives]]


def _goco(job: Job) -> str:
    if not job.container:
        return "goco"
    program, image = job.container
    return f'{program} exec --bind "$PWD" {shlex.quote(image)} goco'


def _place(job: Job, scheduler: Scheduler) -> str:
    """Where the job runs, and with what."""
    lines = [f'cd "${{{scheduler.directory}:?}}" || exit']
    if not scheduler.tells_end:
        lines += [
            f"GOCO_JOB_END_TIME=$(($(date +%s) + {job.time_s})) # {scheduler.name.upper()} does not tell its jobs",
            "export GOCO_JOB_END_TIME",
        ]
    cores = scheduler.cores if job.cores is None else str(job.cores)
    lines += [f"OMP_NUM_THREADS={cores} # a rank has a node to itself", "export OMP_NUM_THREADS"]
    if job.launcher != SRUN:
        lines += [
            "# Open MPI would bind a rank to one of those cores; others do not read this.",
            "export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none",
        ]
    if scheduler.remote_shell:
        shell = scheduler.remote_shell
        lines += [
            f"# Open MPI would take ssh, which may be forbidden; MPICH takes {shell} by itself.",
            f"export OMPI_MCA_plm_rsh_agent={shell} PRTE_MCA_plm_ssh_agent={shell}",
        ]
    if job.prologue:
        path = shlex.quote(job.prologue if "/" in job.prologue else f"./{job.prologue}")
        lines += [
            f'[ -r {path} ] || {{ echo "$PWD has no "{path}: modules and environment of this site >&2; exit 2; }}',
            "# shellcheck source=/dev/null",
            f". {path}",
        ]
    return "\n".join([*lines, "set -u"]) + "\n"


def _provenance(scheduler: Scheduler) -> str:
    return f"""\
echo "date      $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "host      $(hostname)"
echo "job       {scheduler.job}"
echo "revision  $(git describe --always --dirty 2>/dev/null || echo none)"
echo "threads   $OMP_NUM_THREADS"
"""


def _launch(job: Job, scheduler: Scheduler) -> str:
    if job.launcher == SRUN:
        cores = scheduler.cores if job.cores is None else str(job.cores)
        command = (
            f'srun --mpi={job.mpi} --nodes="$ranks" --ntasks="$ranks" --ntasks-per-node=1 \\\n'
            f"        --cpus-per-task={cores} --kill-on-bad-exit=1"
        )
        shield = ""
    else:
        shield = "    trap '' USR1 # some schedulers send it to all processes of a job; goco alone does not ignore it\n"
        command = " ".join(["mpiexec", *([scheduler.hostfile] if scheduler.hostfile else []), '-n "$ranks"'])
    return f"""\
launch() {{ # launch RANKS COMMAND...: one rank a node, in this process
    local ranks=$1
    shift
{shield}    exec {command} "$@"
}}
"""


def _train(job: Job, scheduler: Scheduler) -> str:
    if job.launcher == SRUN:
        why, how, tidy = "It comes to this shell alone; srun takes it to all ranks.", 'kill -USR1 "$run"', ""
    else:
        why = "Not every mpiexec takes it to its ranks: they look for this file."
        how = f'echo "{scheduler.job}" >"$out.stop"'
        tidy = '    [ ! -s "$out.stop" ] || rm "$out.stop" # of a job that was killed meanwhile; a user\'s is empty\n'
    return f"""\
# A signal before the time limit, or from a user, stops the run, which leaves a checkpoint.
# {why}
stopped='' again='' run='' out=''
trap 'stopped=yes again=yes; [ -z "$run" ] || {how}' USR1 TERM

train() {{ # train RANKS EXPERIMENT OUT [ARGUMENT...]: resumes what is there
    local ranks=$1 experiment=$2 code=0
    out=$3
    shift 3
    [ -z "$stopped" ] || return 0
    mkdir -p "$(dirname "$out")"
{tidy}    launch "$ranks" {_goco(job)} run "$experiment" --out "$out" --ranks "$ranks" --resume "$@" &
    run=$!
    again=yes
    while [ -n "$again" ]; do # a signal ends the wait, and not the run
        again=''
        wait "$run"
        code=$?
    done
    run=''
    return "$code"
}}
"""


def _runs(job: Job, scheduler: Scheduler) -> str:
    """Do the job's runs one after the other until one fails; the script ends with its code."""
    experiment = shlex.quote(job.experiment)
    if job.members:
        (run,) = job.runs
        out = shlex.quote(run.out)
        lines = [
            f"member=$({_goco(job)} sweep {experiment} --out {out} --member {scheduler.index}) || exit",
            f'train {run.n_ranks} {out}/experiments/"$member".toml {out}/runs/"$member"',
        ]
    else:
        lines = [" &&\n    ".join(_call(experiment, run) for run in job.runs)]
    if job.requeue and scheduler.requeue:
        lines += ["code=$?", scheduler.requeue.rstrip(), 'exit "$code"']
    return "\n".join(lines) + "\n"


def _call(experiment: str, run: Run) -> str:
    settings = "".join(f" --set {shlex.quote(setting)}" for setting in run.settings)
    return f"train {run.n_ranks} {experiment} {shlex.quote(run.out)}{settings}"
