#!/bin/bash
# An experiment on several machines of a SLURM cluster, from the project's folder, which they share:
#   sbatch params/slurm.sh -f params/base.yaml -f params/experiment_4_control.yaml
# The machines' processes begin with the job and end with it; a job that goes on where another one
# ended is the same command. A machine on which Ray runs already is refused: hence --exclusive.
#SBATCH --job-name=warp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --output=slurm-%j.log
# With GPUs, one a run:
##SBATCH --gpus-per-node=4

set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"

# Whoever has the token can run programs in this cluster.
mkdir -p runs
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/runs/.ray-token-$SLURM_JOB_ID"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")

# Seconds until all machines have begun; a .venv on a network file system takes its time to import.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
# Ray sees the machine's memory, not the job's (MB); a fifth of it stays for Ray itself.
memory=${SLURM_MEM_PER_NODE:+--memory $((SLURM_MEM_PER_NODE * 800000))}

# All of scontrol's lines are read: one that writes behind a closed pipe fails, and the job with it.
address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p):6379"
srun ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" $memory --disable-usage-stats -- \
    env RAY_ADDRESS="$address" papermill notebooks/experiment.ipynb \
    "runs/slurm-$SLURM_JOB_ID.ipynb" -p engine ray --log-output --no-progress-bar "$@"
