#!/usr/bin/env bash
# Flips the style of answers with preference training (DPO) on data in this repository: the model of `make quickstart`,
# which mostly answers "The number is 7.", learns to answer "7". Called by `make example-dpo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
erniekit=.venv/bin/erniekit
out=runs/digits
heldout=data/digits/preferences_heldout.jsonl

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

rm -rf "$out/dpo" "$out/dpo-export"

say "1/4 Before DPO: 300 images that are not in the training data (exact match: the digit alone; numeric match: the correct digit)"
run eval runs/quickstart/run --data "$heldout" --metrics exact_match,numeric_match

say "2/4 DPO on 500 pairs of correct answers: the digit alone is chosen, the sentence rejected"
run train examples/digits/dpo.yaml

say "3/4 After DPO: the same 300 images"
run eval "$out/dpo" --data "$heldout" --metrics exact_match,numeric_match --min exact_match=0.9

say "4/4 Export it with merged adapters"
run export "$out/dpo" --output "$out/dpo-export" --layout transformers
