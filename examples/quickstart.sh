#!/usr/bin/env bash
# The whole workflow on data in this repository: create a small vision-language ERNIE 4.5, train it to read
# handwritten digits, export it and verify that the export loads. Called by `make quickstart`.
#   examples/quickstart.sh 0    skips the comparison with transformers (PyTorch is not needed)
set -euo pipefail
cd "$(dirname "$0")/.."
compare="${1:-1}"
erniekit=.venv/bin/erniekit
out=runs/quickstart

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ erniekit %s\n' "$*"; "$erniekit" "$@"; }

# A second run starts from scratch, in about two minutes.
rm -rf "$out"

say "1/5 Create a small vision-language model (MoE with text and vision experts) and a tokenizer"
run init tiny-vl --output "$out/model" --tokenizer-text data/digits/train.jsonl

say "2/5 Train it to read handwritten digits: 1,497 images in chats"
run train examples/quickstart/digits.yaml

say "3/5 Evaluate it on 300 images that are not in the training data"
run eval "$out/run" --data data/digits/heldout.jsonl --min-exact-match 0.95

say "4/5 Export it for inference engines"
run export "$out/run" --output "$out/export" --layout transformers

say "5/5 Verify that the export loads"
if [ "$compare" = 0 ]; then
    run verify "$out/export" --no-transformers
    echo "The comparison with transformers was skipped (VERIFY=0)."
else
    run verify "$out/export" --data data/digits/heldout.jsonl --samples 20
fi

cat <<END

The model is in $out/export. transformers can load it directly.
Next:
  .venv/bin/tensorboard --logdir $out/run/tensorboard      view losses, learning rates and expert load
  .venv/bin/erniekit train --help                          train on your own chats; docs/data.md describes the formats
  .venv/bin/erniekit train examples/configs/ERNIE-4.5-VL-28B-A3B-Thinking/sft/run_sft_lora_8k.yaml --dry-run --no-weights
END
