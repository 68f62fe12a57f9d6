#!/usr/bin/env bash
# Flips the style of answers with preference training (DPO) on data in this repository: the model of
# `make quickstart` learns to answer "7" instead of "The number is 7.". Called by `make example-dpo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
erniekit=.venv/bin/erniekit
out=runs/digits
heldout=data/digits/preferences_heldout.jsonl

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

rm -rf "$out/styles" "$out/dpo" "$out/dpo-export"

say "1/5 Fine-tune on chats about 1,497 images, with the digit alone in one of seven answers to the questions of the next steps"
run train examples/digits/styles.yaml

say "2/5 Before DPO: 300 images that are not in the training data (exact match: the digit alone; numeric match: the correct digit)"
run eval "$out/styles" --data "$heldout" --metrics exact_match,numeric_match

say "3/5 DPO on 500 pairs of correct answers: the digit alone is chosen, the sentence rejected"
run train examples/digits/dpo.yaml

say "4/5 After DPO: the same 300 images"
run eval "$out/dpo" --data "$heldout" --metrics exact_match,numeric_match --min exact_match=0.9

say "5/5 Export it with merged adapters"
run export "$out/dpo" --output "$out/dpo-export" --layout transformers
