#!/usr/bin/env bash
# Teaches function calls, on data that comes with the repository: after it the model of `make quickstart` calls
# report_digit with the digit that it sees. Called by `make example-calls`.
set -euo pipefail
cd "$(dirname "$0")/../.."
erniekit=.venv/bin/erniekit
out=runs/digits/calls

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

rm -rf "$out" "$out-export"

say "1/3 Train on 500 chats that offer report_digit(digit), and call it"
run train examples/digits/calls.yaml

say "2/3 Ask it about 300 pictures that it has not seen: is the call valid by the tool's schema, is it the right one?"
run eval "$out" --data data/digits/calls_heldout.jsonl --min call_valid=0.9 --min call_match=0.9

say "3/3 Export it"
run export "$out" --output "$out-export" --layout transformers
