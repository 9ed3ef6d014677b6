#!/usr/bin/env bash
# Two GPUs: one replica of an 8B model over two GPUs, INT4 against 16 bit, at a latency objective.
#
#   examples/two-gpus.sh [key=value ...]
#   examples/two-gpus.sh dry_run=true                     the plan alone: works on any machine
#   examples/two-gpus.sh model=mistral-7b quant=fp8
#
# Why: tensor parallelism halves the memory that each GPU needs, and costs communication. Whether the quantized model
# still is the cheaper one per token at your objective is a question for a measurement, with the price of both GPUs.
#
# Prints the plan with the price of two GPUs per hour, and on a machine with two of them what a run prints: theta_slo
# (the largest request rate that meets the objective), the price per token at that rate, and the decision.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra parsimony <<<"${PARSIMONY:-scripts/pipeline}" # an installed product: PARSIMONY=parsimony
given=" $* "
arguments=(hardware=h100-80gb engine.tensor_parallel_size=2 load=slo
  load.search.slo_ttft_p99_s=1.0 load.search.slo_tpot_p99_s=0.05)
[[ $given == *" model="* ]] || arguments+=(model=llama3-8b)
[[ $given == *" quant="* ]] || arguments+=(quant=awq)
"${parsimony[@]}" "${arguments[@]}" "$@"
