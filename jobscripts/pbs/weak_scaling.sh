#!/bin/bash
# goco jobscript pbs experiments/weak_scaling.toml --nodes 4 --prologue site.sh --scaling weak --time 00:30:00
#PBS -S /bin/bash
#PBS -N weak_scaling
#PBS -l select=4:mpiprocs=1
#PBS -l place=scatter:exclhost
#PBS -l walltime=00:30:00
#PBS -j oe
#PBS -r n

cd "${PBS_O_WORKDIR:?}" || exit
GOCO_JOB_END_TIME=$(($(date +%s) + 1800)) # PBS does not tell its jobs
export GOCO_JOB_END_TIME
OMP_NUM_THREADS="$(getconf _NPROCESSORS_ONLN)" # a rank has a node to itself
export OMP_NUM_THREADS
# Open MPI would bind a rank to one of those cores; others do not read this.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
[ -r ./site.sh ] || { echo "$PWD has no "./site.sh: modules and environment of this site >&2; exit 2; }
# shellcheck source=/dev/null
. ./site.sh
set -u

echo "date      $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "host      $(hostname)"
echo "job       $PBS_JOBID"
echo "revision  $(git describe --always --dirty 2>/dev/null || echo none)"
echo "threads   $OMP_NUM_THREADS"

launch() { # launch RANKS COMMAND...: one rank a node, in this process
    local ranks=$1
    shift
    trap '' USR1 # some schedulers send it to all processes of a job; goco alone does not ignore it
    exec mpiexec --hostfile "$PBS_NODEFILE" -n "$ranks" "$@"
}

# A signal before the time limit, or from a user, stops the run, which leaves a checkpoint.
# Not every mpiexec takes it to its ranks: they look for this file.
stopped='' again='' run='' out=''
trap 'stopped=yes again=yes; [ -z "$run" ] || echo "$PBS_JOBID" >"$out.stop"' USR1 TERM

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

train 1 experiments/weak_scaling.toml runs/weak_scaling/1 --set data.n_samples=10000 --set data.shards=8 &&
    train 2 experiments/weak_scaling.toml runs/weak_scaling/2 --set data.n_samples=20000 --set data.shards=16 &&
    train 4 experiments/weak_scaling.toml runs/weak_scaling/4 --set data.n_samples=40000 --set data.shards=32
