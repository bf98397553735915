"""Slurm's directives (sbatch).

References
----------
https://slurm.schedmd.com/sbatch.html, https://slurm.schedmd.com/srun.html
"""

from __future__ import annotations

from goco_mpi.jobscripts.job import MARGIN_S, MPIEXEC, SRUN, Job, Scheduler, clock

MAX_RESTARTS = 5
"""A job that fails again and again is not put back into the queue for ever."""


def directives(job: Job) -> list[str]:
    """Return the options of sbatch for ``job``."""
    array = f"1-{job.chain}%1" if job.chain > 1 else f"0-{job.members - 1}"
    return [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([] if job.cores is None else [f"--cpus-per-task={job.cores}"]),
        "--exclusive",
        f"--time={clock(job.time_s)}",
        f"--signal=B:USR1@{MARGIN_S}",
        *([f"--array={array}"] if job.is_array else []),
        f"--output=%x-{'%A_%a' if job.is_array else '%j'}.out",
        "--open-mode=append",
        "--requeue" if job.requeue else "--no-requeue",
    ]


SLURM = Scheduler(
    name="slurm",
    marker="#SBATCH",
    launchers=(SRUN, MPIEXEC),
    directives=directives,
    directory="SLURM_SUBMIT_DIR",
    index='"$SLURM_ARRAY_TASK_ID"',
    job="$SLURM_JOB_ID, restarted ${SLURM_RESTART_COUNT:-0} times",
    cores='"$SLURM_CPUS_ON_NODE"',
    tells_end=True,
    requeue=f"""\
# A rank died (codes 1 and 2 are goco's own), and something is kept to go on from: back into the queue.
if [ "$code" -gt 2 ] && [ -z "$stopped" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ] &&
    compgen -G "$out.checkpoints/*/whole.json" >/dev/null; then
    scontrol requeue "$SLURM_JOB_ID"
fi
""",
)
