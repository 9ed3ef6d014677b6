#!/usr/bin/env bash
# Distillation as a Slurm job that may be preempted: requeued, it goes on from its newest whole checkpoint.
#
#   sbatch scripts/slurm/distill.sh model=llama3-8b distill=depth-half quant=awq
#   CHECKPOINTS=/shared/distill/a GRACE_S=60 sbatch --signal=TERM@70 scripts/slurm/distill.sh ...
#
# CHECKPOINTS: a folder that all nodes see, or any fsspec URL; one per run. GRACE_S: seconds between Slurm's SIGTERM and its
# SIGKILL (KillWait, or the cluster's GraceTime); --signal must leave a little more.
#SBATCH --job-name=parsimony-distill
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@40
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
checkpoints="${CHECKPOINTS:-$PWD/checkpoints/distill-${SLURM_JOB_ID:-local}}"
# A job step of its own: --signal reaches steps. Where preemption signals this shell too, it waits for the step's end.
trap : TERM
code=0
srun scripts/pipeline "$@" hardware.purchase_option=spot \
  distill.spot.url="$checkpoints" distill.spot.grace_s="${GRACE_S:-25}" || code=$?
# Requeue only what SIGTERM ended; after a preemption Slurm has done it already.
if [[ $code -eq 143 && -n "${SLURM_JOB_ID:-}" ]]; then
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
