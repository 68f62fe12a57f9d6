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

A model directory has the layout of the released `-PT` or `-Paddle` checkpoints, or the one of transformers
([export.md](export.md) describes them); which one is recognised from its files. `train`, `eval`, `chat`, `serve`,
`export`, `convert` and `verify` first check file names and headers, before they read data or weights:

- **Git LFS pointers** and web pages in place of files are reported, with the command that downloads the files; so are
  missing shards and truncated files. The check for pointers also covers data files, images and videos, adapters and
  stored references.
- **Pickles** (`*.pdparams`, `*.bin`) are not read. Some `-Paddle` releases leave the ids of media tokens out of
  `config.json`: they are those of the released tokenizer.
- **Tensors** that are missing, unexpected, or of a shape that does not fit `config.json` are listed.
- **`tie_word_embeddings: true`** means that the embedding is also the output matrix. An `lm_head.weight` equal to the
  embedding is ignored. A different one is rejected, because one of the two would be lost: set
  `"tie_word_embeddings": false` in `config.json` to use and train `lm_head.weight` (checkpoints and exports then have
  the same value), or remove `lm_head.weight` from its file.

## Models of the hub
A model is a directory, or a repository of the Hugging Face hub, `owner/name`, if there is no such directory. This holds
for `model.path`, for the arguments and `--base` options of `eval`, `chat`, `serve`, `export` and `verify`, for
`data check --model`, and for the base model of an adapter.

- **Files.** `*.safetensors`, their index, configurations, tokenizer, processor and licence, from the top folder of the
  repository. `*.py` files are downloaded too: exports include them, and vLLM needs them for vision-language models.
  erniekit does not run them. `data check` and `data preview` fetch no weights.
- **Cache.** Files are in huggingface_hub's cache, which HF_HOME moves. A model that is in the cache is used without
  asking the hub: nothing is fetched during a run that has started before. `erniekit download REPO` fetches the newest
  commit of the main branch, or of `--revision`. With `--to DIR` the files are in a directory, for `model.path: DIR`.
- **Commit.** `RUN/config.yaml`, checkpoints and adapters name the repository and the commit. A resumed run, and
  `eval`, `chat` and `export` of an adapter, use this commit. `model.revision` chooses another branch, tag or commit.
- **Interruptions.** A connection that breaks is continued. If a download ends early, its command continues it: complete
  files are kept, and a file that is not complete starts again.
- **Several processes.** One process downloads, and the others on the machine (or with the same cache) wait. With
  several machines and no shared cache, run `erniekit download REPO` on each machine first: processes wait 5 minutes for
  each other at the start of a run.
- **Without a network.** Set HF_HUB_OFFLINE=1 to be sure that nothing is fetched. HF_ENDPOINT names a mirror of the hub.
  Models on ModelScope and AI Studio are downloaded with the tools of those sites; `model.path` is then the directory.

## Positions after an image or video
Text after an image or video continues at `start + max(t, h, w)`, with t in pairs of frames and h and w in tokens. The
released code (`cur_position = max(position_ids) + 1`), ERNIEKit, FastDeploy, vLLM and SGLang do the same, and so do
training, generation and `verify` here. transformers 5 uses `start + max(h, w)`, so text after a video with more frame
pairs than rows and columns of tokens gets smaller positions. `verify` passes it the positions of training.

## Keys of config.json
Both layouts are supported: the flat one of the Hub, and the nested one of transformers (`text_config`,
`vision_config`). `null` is the same as an absent key. A key is **used**, or **fixed** to the listed values because
other values need a computation that is not implemented (they are rejected), or it has **no effect** on the
computation of training. `train`, `export` and `verify` report keys that are not in these tables.
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
