"""LSF's directives (bsub).

References
----------
IBM Spectrum LSF 10.1, "bsub" and "Environment variables set for job execution".
"""

from __future__ import annotations

from goco_mpi.jobscripts.job import MARGIN_S, MPIEXEC, Job, Scheduler


def directives(job: Job) -> list[str]:
    """Return the options of bsub for ``job``."""
    minutes = -(-job.time_s // 60)  # LSF counts in minutes
    array = f"[1-{job.chain}]%1" if job.chain > 1 else f"[1-{job.members}]"
    return [
        f'-J "{job.name}{array if job.is_array else ""}"',
        f"-n {job.nodes}",
        '-R "span[ptile=1]"',
        *([] if job.cores is None else [f'-R "affinity[core({job.cores})]"']),
        "-x",
        f"-W {minutes // 60:02d}:{minutes % 60:02d}",
        "-wa USR1",
        f"-wt {MARGIN_S // 60}",
        f"-o {job.name}-{'%J_%I' if job.is_array else '%J'}.out",
        # Again after a node's failure, and by -Q after codes above 2, of ranks that died; 1 and 2 are goco's own.
        *(["-r", '-Q "all ~0 ~1 ~2"'] if job.requeue else ["-rn"]),
    ]


LSF = Scheduler(
    name="lsf",
    marker="#BSUB",
    launchers=(MPIEXEC,),
    directives=directives,
    directory="LS_SUBCWD",
    index="$((LSB_JOBINDEX - 1))",
    job="$LSB_JOBID",
    cores='"$(getconf _NPROCESSORS_ONLN)"',
    hostfile='--hostfile "$LSB_DJOB_HOSTFILE"',
    remote_shell="blaunch",
)
