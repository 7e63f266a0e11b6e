#!/usr/bin/env bash
# One training run on several machines of a Slurm cluster:
#
#   sbatch scripts/slurm_train.sh --config_path cfgs/mire_vid2r.yaml train.precision=bf16
#
# Change the lines below to your cluster, or give them to sbatch (sbatch --nodes=4 --gpus-per-node=4 scripts/...).
# run.out and the data must lie on a file system that every node sees. One torchrun per node starts one process per GPU;
# they meet on the first node. train.batch_size is per process: the whole batch is nodes x GPUs x batch_size.
#
# A run that is pre-empted or reaches its time limit gets SIGTERM some minutes earlier (--signal), ends its step, writes
# a checkpoint and stops with status 130; the job then queues itself again and goes on where it was. A process that dies
# is restarted with all others from the newest checkpoint (--max-restarts).

#SBATCH --job-name=retrieval
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=experiments/slurm-%j.log

set -euo pipefail

processes="${SLURM_GPUS_ON_NODE:-1}"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
host="${hosts%%$'\n'*}" # no "| head": who writes into a pipe that is closed dies, and pipefail with it
port=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # a store for each round: after a restart nobody reads old addresses

grace=() # how long torchrun waits for the checkpoint of a stopped run; older versions always wait 30 s
known="$(python -m torch.distributed.run --help)"
if [[ "$known" == *--shutdown-timeout* ]]; then grace=(--shutdown-timeout=240); fi

srun --kill-on-bad-exit=1 python -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc_per_node="$processes" --max-restarts=3 "${grace[@]}" \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$host:$port" \
  train_retrieval.py "$@" &
training=$!

stopping=0
trap 'stopping=1; scancel --signal=TERM "$SLURM_JOB_ID.0" || true' TERM
status=0
wait "$training" || status=$?
if [ "$stopping" = 1 ]; then
  wait "$training" || true # the first wait ended with the signal, not with the training
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
