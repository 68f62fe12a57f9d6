#!/usr/bin/env bash
# Trains function calls on data in this repository: the model of `make quickstart` learns to call report_digit with
# the digit in the image. Called by `make example-calls`.
set -euo pipefail
cd "$(dirname "$0")/../.."
erniekit=.venv/bin/erniekit
out=runs/digits/calls

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

rm -rf "$out" "$out-export"

say "1/3 Train on 500 chats that call report_digit(digit)"
run train examples/digits/calls.yaml

say "2/3 Evaluate it on 300 images that are not in the training data: is the call valid for the tool's schema, and correct?"
run eval "$out" --data data/digits/calls_heldout.jsonl --min call_valid=0.9 --min call_match=0.9

say "3/3 Export it"
run export "$out" --output "$out-export" --layout transformers
