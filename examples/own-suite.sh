#!/usr/bin/env bash
# Your own questions: decide on what your users ask, not on a public benchmark.
#
#   examples/own-suite.sh [key=value ...]
#   examples/own-suite.sh dry_run=true                    the plan alone
#
# Why: the gate's claim is about the questions that were asked, and about nothing else. A support team cares about its
# own tickets. A task is a file in lm-eval's own format, so that plain lm_eval gives the same scores.
#
# Writes outputs/own-suite/support.jsonl (questions) and support.yaml (the task), then runs the embedded model and its
# INT8 variant on them. Prints what a run prints. The few questions here show the format: too few for a decision about
# two points, and the decision says so. Bring some hundreds.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra parsimony <<<"${PARSIMONY:-scripts/pipeline}" # an installed product: PARSIMONY=parsimony
folder=$PWD/outputs/own-suite
mkdir -p "$folder"
cat >"$folder/support.jsonl" <<'END'
{"question": "The order shows 'delivered', but the customer has nothing. First step?", "choices": ["Ask for the delivery address", "Close the ticket", "Ask for a new payment"], "answer": 0}
{"question": "A customer was charged twice for one order. First step?", "choices": ["Send a discount code", "Compare both payments with the order number", "Delete the account"], "answer": 1}
{"question": "A customer cannot log in after a password reset. First step?", "choices": ["Refund the last order", "Ask for the card number", "Check whether the reset link has expired"], "answer": 2}
{"question": "The invoice has an old company address. First step?", "choices": ["Correct the billing address and issue it again", "Cancel the contract", "Wait for the next month"], "answer": 0}
{"question": "A return label does not print. First step?", "choices": ["Order a printer", "Send the label as a PDF by e-mail", "Refuse the return"], "answer": 1}
{"question": "A customer asks to delete all personal data. First step?", "choices": ["Ignore the request", "Sell the data", "Confirm the identity of the customer"], "answer": 2}
END
cat >"$folder/support.yaml" <<END
task: support
dataset_path: json
dataset_kwargs:
  data_files: {validation: $folder/support.jsonl}
output_type: multiple_choice
validation_split: validation
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
END
"${parsimony[@]}" quant=int8 suite.source=files "suite.tasks=[support]" "suite.files={support: $folder/support.yaml}" \
  "$@"
