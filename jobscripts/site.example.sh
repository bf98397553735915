# shellcheck shell=bash
# The one file about your site: copy it to site.sh (git ignores that) and change what does not fit.
# Source it where you submit, for the account and the partition; the jobs source it for the software.

# Slurm reads these on sbatch:
export SBATCH_ACCOUNT=my_project
export SBATCH_PARTITION=standard
# LSF reads these on bsub:
export LSB_DEFAULTPROJECT=my_project
export LSB_DEFAULTQUEUE=normal
# PBS reads none, so: qsub "${QSUB[@]}" pbs/train.sh
export QSUB=(-A my_project -q workq)

# What goco needs: an MPI and the Python environment it is installed in.
if command -v module >/dev/null; then
    module load mpich
fi
if [ -r "$HOME/goco/bin/activate" ]; then
    # shellcheck source=/dev/null
    . "$HOME/goco/bin/activate"
fi
