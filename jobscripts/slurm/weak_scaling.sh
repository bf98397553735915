#!/bin/bash
# goco jobscript slurm experiments/weak_scaling.toml --nodes 4 --prologue site.sh --scaling weak --time 00:30:00
#SBATCH --job-name=weak_scaling
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --no-requeue

cd "${SLURM_SUBMIT_DIR:?}" || exit
OMP_NUM_THREADS="$SLURM_CPUS_ON_NODE" # a rank has a node to itself
export OMP_NUM_THREADS
[ -r ./site.sh ] || { echo "$PWD has no "./site.sh: modules and environment of this site >&2; exit 2; }
# shellcheck source=/dev/null
. ./site.sh
set -u

echo "date      $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "host      $(hostname)"
echo "job       $SLURM_JOB_ID, restarted ${SLURM_RESTART_COUNT:-0} times"
echo "revision  $(git describe --always --dirty 2>/dev/null || echo none)"
echo "threads   $OMP_NUM_THREADS"

launch() { # launch RANKS COMMAND...: one rank a node, in this process
    local ranks=$1
    shift
    exec srun --mpi=pmi2 --nodes="$ranks" --ntasks="$ranks" --ntasks-per-node=1 \
        --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=1 "$@"
}

# A signal before the time limit, or from a user, stops the run, which leaves a checkpoint.
# It comes to this shell alone; srun takes it to all ranks.
stopped='' again='' run='' out=''
trap 'stopped=yes again=yes; [ -z "$run" ] || kill -USR1 "$run"' USR1 TERM

train() { # train RANKS EXPERIMENT OUT [ARGUMENT...]: resumes what is there
    local ranks=$1 experiment=$2 code=0
    out=$3
    shift 3
    [ -z "$stopped" ] || return 0
    mkdir -p "$(dirname "$out")"
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
