"""PBS's directives (qsub of PBS Professional and OpenPBS).

References
----------
PBS Professional 2022.1 Reference Guide, "qsub" and "Job Attributes".
"""

from __future__ import annotations

from goco_mpi.jobscripts.job import MPIEXEC, Job, Scheduler, clock


def directives(job: Job) -> list[str]:
    """Return the options of qsub for ``job``."""
    cores = "" if job.cores is None else f"ncpus={job.cores}:"
    array = f"1-{job.chain}%1" if job.chain > 1 else f"0-{job.members - 1}"
    return [
        "-S /bin/bash",
        f"-N {job.name}",
        f"-l select={job.nodes}:{cores}mpiprocs=1",
        "-l place=scatter:exclhost",
        f"-l walltime={clock(job.time_s)}",
        *([f"-J {array}"] if job.is_array else []),
        "-j oe",
        f"-r {'y' if job.requeue or job.is_array else 'n'}",  # PBS takes arrays only as rerunnable
    ]


PBS = Scheduler(
    name="pbs",
    marker="#PBS",
    launchers=(MPIEXEC,),
    directives=directives,
    directory="PBS_O_WORKDIR",
    index='"$PBS_ARRAY_INDEX"',
    job="$PBS_JOBID",
    cores='"$(getconf _NPROCESSORS_ONLN)"',  # not NCPUS, which is what was asked for, and 1 where nothing was
    hostfile='--hostfile "$PBS_NODEFILE"',
)
