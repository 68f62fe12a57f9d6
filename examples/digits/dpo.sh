#!/usr/bin/env bash
# Turns a style of answer round by preference training (DPO), on data that comes with the repository: the model of
# `make quickstart` learns to say "7" where it said "The number is 7.". Called by `make example-dpo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
erniekit=.venv/bin/erniekit
out=runs/digits
heldout=data/digits/preferences_heldout.jsonl

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

rm -rf "$out/styles" "$out/dpo" "$out/dpo-export"

say "1/5 Supervised: chats about 1,497 pictures; to the questions of the next steps one answer in seven is the digit alone"
run train examples/digits/styles.yaml

say "2/5 Before: 300 pictures that it has not seen (exact match: the digit alone; numeric match: the right digit)"
run eval "$out/styles" --data "$heldout" --metrics exact_match,numeric_match

say "3/5 DPO: 500 pairs of right answers, of which the digit alone is chosen and the sentence rejected"
run train examples/digits/dpo.yaml

say "4/5 After: the same 300 pictures"
run eval "$out/dpo" --data "$heldout" --metrics exact_match,numeric_match --min exact_match=0.9

say "5/5 Export it, with its adapters merged"
run export "$out/dpo" --output "$out/dpo-export" --layout transformers
