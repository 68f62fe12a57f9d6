"""Write docs/checkpoints.md; its tables are those of erniekit/models/config_keys.py.

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

A model directory has the layout of the released `-PT` checkpoints. `train`, `eval`, `chat`, `serve`,
`export` and `verify` check it first, from names and headers, before they read data or weights:

- **Git LFS pointers** and web pages in the place of files are named, with the command that fetches the
  files. This holds for data files, images and videos, adapters and stored references too. So are shards
  that a download has not brought yet, and files that are cut off.
- **`-Paddle` releases** are not read: their linear layers are transposed and fused. The message names the
  `-PT` release.
- **Tensors** that are missing, extra, or of another shape than `config.json` asks for are listed.
- **`tie_word_embeddings: true`** means that the embedding is also the output matrix. An `lm_head.weight`
  that is equal to the embedding is left out; one that differs is refused, because one of the two would be
  lost. Set `"tie_word_embeddings": false` in `config.json` to use and train `lm_head.weight`; checkpoints
  and exports then say the same. Or remove `lm_head.weight` from its file.

## Positions after an image or video
Text after an image or video continues after the longest side of its box: `start + max(t, h, w)`, with t in
pairs of frames, h and w in tokens. The released code (`cur_position = max(position_ids) + 1`), ERNIEKit,
FastDeploy, vLLM and SGLang do the same, and so do training, generation and `verify` here. transformers 5
uses `start + max(h, w)`: for a video of more frame pairs than rows and columns of tokens, it gives the text
after it smaller positions. `verify` passes it the positions of training.

## Keys of config.json
Both forms are read: the flat one of the Hub, and the nested one of transformers (`text_config`,
`vision_config`). `null` means that a key is absent. A key is **used**; or it is **fixed**: other values ask
for a computation that is not implemented, and are refused; or it has **no effect** on what training
computes. `train`, `export` and `verify` report keys that are in none of the tables.
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
        ("Decoder", "Of the flat form, and of `text_config`.", base, DECODER_ALIASES),
        ("Mixture of experts", "Beside these. In dense models they have no effect.", experts, {}),
        ("Vision-language models", "Beside these, in the flat form.", media, {}),
        ("vision_config", "", vision_keys(), VISION_ALIASES),
        ("Beside text_config and vision_config", "In the nested form.", outer_keys(), {}),
        ("rope_parameters and rope_scaling", "`rope_type` (or `type`) must be `default`.", ROPE_KEYS, {}),
    )
    return INTRODUCTION + "".join(_section(*section) for section in sections)


def _section(title: str, note: str, keys: Keys, aliases: dict[str, str]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for name, key in keys.items():
        values = " or ".join(f"`{json.dumps(value)}`" for value in key.values)
        effect = {"used": "used", "fixed": f"only {values}", "none": "no effect"}[key.effect]
        rows.setdefault((effect, key.note), []).append(f"`{name}`")
    lines = ["| keys | | |", "|---|---|---|"]
    lines += [f"| {', '.join(names)} | {effect} | {note} |" for (effect, note), names in rows.items()]
    others = ", ".join(f"`{other}` for `{name}`" for other, name in aliases.items())
    text = (
        f"\n### {title}\n" + (f"{note}\n" if note else "") + (f"Other names: {others}.\n" if others else "")
    )
    return text + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
