#!/usr/bin/env bash
# A budget and an approval: an expensive run waits for a colleague, and no run passes the budget.
#
#   examples/budget-with-approval.sh
#
# Why: two runs that start at once must not spend one budget twice, and somebody else should look before much is spent.
# Nothing is loaded here: a CPU at 3600 USD an hour makes the smallest run expensive, in a ledger of the example's own.
#
# Prints the budget, the run that waits (exit code 3), the request, its approval by somebody else, the same command
# again (approved, and refused by the budget: exit code 4), and the budget with room for it.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra parsimony <<<"${PARSIMONY:-scripts/pipeline}" # an installed product: PARSIMONY=parsimony
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PARSIMONY_LEDGER_URL=sqlite:///$folder/finops.db
run=(quant=none tags.team=research hardware.usd_per_hour=3600 finops.approval.threshold_usd=1
  "tracking.uri=sqlite:///$folder/mlflow.db" "tracking.artifacts=$folder/artifacts")

expect() { # expect CODE COMMAND...: run it, and fail where it ends with another exit code
  local wanted=$1 code=0
  shift
  "$@" || code=$?
  echo "exit code $code"
  [[ $code == "$wanted" ]]
}

echo "--- a budget of 100 USD a month for the team research"
"${parsimony[@]}" budgets set research-monthly --limit-usd 100 --period month --team research
echo "--- the run waits for an approval"
expect 3 "${parsimony[@]}" "${run[@]}"
"${parsimony[@]}" approvals list
echo "--- somebody else approves it"
PARSIMONY_USER=the-colleague "${parsimony[@]}" approvals approve 1 --reason "agreed in planning"
echo "--- the same command again: approved, and refused by the budget before anything starts"
expect 4 "${parsimony[@]}" "${run[@]}"
echo "--- a budget with room for it; the same command would start now"
"${parsimony[@]}" budgets set research-monthly --limit-usd 5000 --period month --team research
