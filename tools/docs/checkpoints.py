"""Write docs/checkpoints.md, with the tables of erniekit/models/config_keys.py.

    python tools/docs/checkpoints.py

A test compares the page with the tables.
"""

from __future__ import annotations

import json
from pathlib import Path

from erniekit.models.config_keys import (
    DECODER_ALIASES,
    ROPE_KEYS,
    VISION_ALIASES,
    Keys,
    decoder_keys,
    outer_keys,
    vision_keys,
)

TARGET = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
INTRODUCTION = """# Checkpoints
<!-- Written by tools/docs/checkpoints.py. -->

A model directory has the layout of the released `-PT` or `-Paddle` checkpoints, or of transformers
([Export](export.md#layouts) describes them). Commands recognize the layout from the files. Before they read data or
weights, they check file names and headers:

- **Git LFS pointers** and web pages in place of files are errors that name the command to download the files. Missing
  shards and truncated files are errors too. Data files, images, videos and adapters are also checked for pointers.
- **Pickles** (`*.pdparams`, `*.bin`) are not read.
- **Tensors** that are missing, unexpected or of the wrong shape are listed.
- **`tie_word_embeddings: true`** makes the embedding the output matrix too. An `lm_head.weight` equal to the embedding
  is ignored. A different one is an error, because one of the two would be lost: set `"tie_word_embeddings": false` in
  `config.json` to use and train `lm_head.weight`, also in checkpoints and exports, or remove it from its file.
- **Media token ids** that a `-Paddle` release leaves out of `config.json` are taken from the released tokenizer.

## Models on the Hub
A model is a directory or, if there is no such directory, a repository of the Hugging Face Hub (`owner/name`). This
applies to `model.path`, to MODEL and `--base` of `eval`, `chat`, `serve`, `export`, `convert` and `verify`, to
`data check --model`, and to the base model of an adapter.

- **Files.** `*.safetensors`, their index, configurations, tokenizer, processor and license, from the top folder of the
  repository. `*.py` files are downloaded too: exports include them, and vLLM needs them for vision-language models.
  erniekit does not run them. `data check` and `data preview` download no weights.
- **Cache.** Files are in huggingface_hub's cache (`HF_HOME`). A cached model is used without asking the Hub.
  `erniekit download REPO` fetches the newest commit of the main branch, or of `--revision`. `--to DIR` writes to a
  directory, for `model.path: DIR`.
- **Commit.** `RUN/config.yaml`, checkpoints and adapters record the repository and the commit. A resumed run, and
  `eval`, `chat` and `export` of an adapter, use this commit. `model.revision` selects another branch, tag or commit.
- **Interruptions.** A broken connection is retried. Repeat the command to continue a download that ended early:
  complete files are kept, incomplete ones start again.
- **Several processes.** One process downloads, and the others on the machine (or with the same cache) wait. With
  several machines and no shared cache, run `erniekit download REPO` on each machine first: at the start of a run,
  processes wait 5 minutes for each other.
- **Without a network.** `HF_HUB_OFFLINE=1` guarantees that nothing is fetched. `HF_ENDPOINT` selects a mirror of the
  Hub. Download from ModelScope or AI Studio with the tools of those sites, and set `model.path` to the directory.

## Positions after an image or video
Text after an image or video continues at `start + max(t, h, w)`, with t in pairs of frames and h and w in tokens, as in
the released code (`cur_position = max(position_ids) + 1`), ERNIEKit, FastDeploy, vLLM and SGLang. transformers 5 uses
`start + max(h, w)`, so text after a video with more frame pairs than rows and columns of tokens gets smaller positions;
`verify` passes it the positions of training.

## Keys of config.json
Both layouts are supported: the Hub's flat one, and transformers' nested one (`text_config`, `vision_config`). `null` is
the same as an absent key. A key is **used**; or accepted **only** with the listed values, because other values need a
computation that is not implemented; or has **no effect** on training. `train`, `export` and `verify` report keys that
are not in these tables.
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole page."""
    dense, moe, vl = (decoder_keys(family) for family in ("dense", "moe", "vl"))
    experts = {name: key for name, key in moe.items() if dense.get(name) != key}
    media = {name: key for name, key in vl.items() if moe.get(name) != key}
    base = {
        name: key for name, key in dense.items() if name in moe and name not in experts and name not in media
    }
    sections = (
        ("Decoder", "In the flat layout and in `text_config`.", base, DECODER_ALIASES),
        (
            "Mixture of experts",
            "In addition to the decoder keys. They have no effect in dense models.",
            experts,
            {},
        ),
        ("Vision-language models", "In addition to these, in the flat layout.", media, {}),
        ("vision_config", "", vision_keys(), VISION_ALIASES),
        (
            "Top-level keys of the nested layout",
            "Next to `text_config` and `vision_config`.",
            outer_keys(),
            {},
        ),
        ("rope_parameters and rope_scaling", "`rope_type` (or `type`) must be `default`.", ROPE_KEYS, {}),
    )
    return INTRODUCTION + "".join(_section(*section) for section in sections)


def _section(title: str, note: str, keys: Keys, aliases: dict[str, str]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for name, key in keys.items():
        values = " or ".join(f"`{json.dumps(value)}`" for value in key.values)
        effect = {"used": "used", "fixed": f"only {values}", "none": "no effect"}[key.effect]
        rows.setdefault((effect, key.note), []).append(f"`{name}`")
    lines = ["| keys | effect | note |", "|---|---|---|"]
    lines += [f"| {', '.join(names)} | {effect} | {note} |" for (effect, note), names in rows.items()]
    others = ", ".join(f"`{other}` for `{name}`" for other, name in aliases.items())
    text = (
        f"\n### {title}\n" + (f"{note}\n" if note else "") + (f"Other names: {others}.\n" if others else "")
    )
    return text + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
