#!/usr/bin/env bash
# An external checkpoint: is a model that another tool quantized good enough, and cheaper?
#
#   examples/external-checkpoint.sh MODEL FOLDER [key=value ...]
#   examples/external-checkpoint.sh llama3-8b /models/llama3-8b-gptq hardware=l4-24gb
#
# Why: you have a checkpoint from GPTQModel, AutoRound, llm-compressor, auto-gptq, autoawq or bitsandbytes, and want
# numbers before you serve it. MODEL is the model that it was made from: the baseline. The format is read from FOLDER's
# own config.json, and a checkpoint of another shape than MODEL's is refused.
#
# Prints the plan (baseline and "external:FORMAT"), then, with a GPU or on a small model, what a run prints: health
# check, quality, price, decision. Add dry_run=true for the plan alone.
set -euo pipefail
if [[ $# -lt 2 ]]; then
  sed -n 's/^#   //p' "$0" >&2
  exit 2
fi
model=$1 folder=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
read -ra parsimony <<<"${PARSIMONY:-scripts/pipeline}" # an installed product: PARSIMONY=parsimony
"${parsimony[@]}" "model=$model" "model.path=$folder" quant=external "$@"
