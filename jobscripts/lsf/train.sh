#!/bin/bash
# goco jobscript lsf experiments/train.toml --nodes 4 --prologue site.sh --time 00:30:00 --requeue
#BSUB -J "train"
#BSUB -n 4
#BSUB -R "span[ptile=1]"
#BSUB -x
#BSUB -W 00:30
#BSUB -wa USR1
#BSUB -wt 2
#BSUB -o train-%J.out
#BSUB -r
#BSUB -Q "all ~0 ~1 ~2"

cd "${LS_SUBCWD:?}" || exit
GOCO_JOB_END_TIME=$(($(date +%s) + 1800)) # LSF does not tell its jobs
export GOCO_JOB_END_TIME
OMP_NUM_THREADS="$(getconf _NPROCESSORS_ONLN)" # a rank has a node to itself
export OMP_NUM_THREADS
# Open MPI would bind a rank to one of those cores; others do not read this.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
# Open MPI would take ssh, which may be forbidden; MPICH takes blaunch by itself.
export OMPI_MCA_plm_rsh_agent=blaunch PRTE_MCA_plm_ssh_agent=blaunch
[ -r ./site.sh ] || { echo "$PWD has no "./site.sh: modules and environment of this site >&2; exit 2; }
# shellcheck source=/dev/null
. ./site.sh
set -u

echo "date      $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "host      $(hostname)"
echo "job       $LSB_JOBID"
echo "revision  $(git describe --always --dirty 2>/dev/null || echo none)"
echo "threads   $OMP_NUM_THREADS"

launch() { # launch RANKS COMMAND...: one rank a node, in this process
    local ranks=$1
    shift
    trap '' USR1 # some schedulers send it to all processes of a job; goco alone does not ignore it
    exec mpiexec --hostfile "$LSB_DJOB_HOSTFILE" -n "$ranks" "$@"
}

# A signal before the time limit, or from a user, stops the run, which leaves a checkpoint.
# Not every mpiexec takes it to its ranks: they look for this file.
stopped='' again='' run='' out=''
trap 'stopped=yes again=yes; [ -z "$run" ] || echo "$LSB_JOBID" >"$out.stop"' USR1 TERM

train() { # train RANKS EXPERIMENT OUT [ARGUMENT...]: resumes what is there
    local ranks=$1 experiment=$2 code=0
    out=$3
    shift 3
    [ -z "$stopped" ] || return 0
    mkdir -p "$(dirname "$out")"
    [ ! -s "$out.stop" ] || rm "$out.stop" # of a job that was killed meanwhile; a user's is empty
    launch "$ranks" goco run "$experiment" --out "$out" --ranks "$ranks" --resume "$@" &
    run=$!
    again=yes
    while [ -n "$again" ]; do # a signal ends the wait, and not the run
        again=''
        wait "$run"
        code=$?
    done
    run=''
    return "$code"
}

(launch 4 goco info)

train 4 experiments/train.toml runs/train
