#!/usr/bin/env bash
# The main job in one go, on data that comes with the repository: make a small vision-language ERNIE 4.5, teach it
# to read handwritten digits, export it and prove that the export loads. Called by `make quickstart`.
#   examples/quickstart.sh 0    leaves out the comparison with transformers (no PyTorch needed)
set -euo pipefail
cd "$(dirname "$0")/.."
compare="${1:-1}"
erniekit=.venv/bin/erniekit
out=runs/quickstart

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

# A second run starts afresh: everything here is made anew in about two minutes.
rm -rf "$out"

say "1/5 A small vision-language model (MoE with text and vision experts), fresh, with a tokenizer of its own"
run init tiny-vl --output "$out/model" --tokenizer-text data/digits/train.jsonl

say "2/5 Teach it to read handwritten digits: 1,497 pictures in chats"
run train examples/quickstart/digits.yaml

say "3/5 Ask it about 300 pictures that it has not seen"
run eval "$out/run" --data data/digits/heldout.jsonl --min-exact-match 0.95

say "4/5 Export it for inference engines"
run export "$out/run" --output "$out/export" --layout transformers

say "5/5 Prove that the export loads"
if [ "$compare" = 0 ]; then
    run verify "$out/export" --no-transformers
    echo "The comparison with transformers was left out (VERIFY=0)."
else
    run verify "$out/export" --data data/digits/heldout.jsonl --samples 20
fi

cat <<END

The model is in $out/export: transformers loads it as it is.
Next:
  .venv/bin/tensorboard --logdir $out/run/tensorboard      look at losses, rates and the load of the experts
  .venv/bin/erniekit train --help                          train on your own chats: data/README.md says how they look
  .venv/bin/erniekit train examples/configs/ERNIE-4.5-VL-28B-A3B-Thinking/sft/run_sft_lora_8k.yaml --dry-run --no-weights
END
