"""Comparison of an export with the run or checkpoint that it was made from: prompts, images, end tokens and logits."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle

from erniekit.checkpoint.hub import read_index
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.tokenizer import load_tokenizer, stop_token_ids
from erniekit.data.load.loader import load_row
from erniekit.export.check import Check
from erniekit.export.engines.prompts import make_prompts
from erniekit.export.reference import LOGITS_TOLERANCE
from erniekit.generation.load import ModelSource, find_model
from erniekit.models.row import RowInputs
from erniekit.models.specs import is_router_tensor
from erniekit.objectives.device_batch import row_inputs

# Of weights that were rounded to 16 bits. Each rounding changes a weight by at most 0.4%.
_ROUNDED_TOLERANCE = 0.05


def check_source(directory: Path, source: Path) -> Iterator[Check]:
    """Compare an export with its source: its settings, and its logits, both in Paddle, in float32.

    Adapters are applied beside their base model, not merged, and a base model that was quantized in training has its
    original values, which the export is made from. Raises ErnieKitError if the source cannot be loaded.
    """
    tensors = read_index(directory)
    exact = all(info.dtype == "F32" for info in tensors.values() if not is_router_tensor(info.name))
    tolerance = LOGITS_TOLERANCE if exact else _ROUNDED_TOLERANCE
    encoder = make_encoder(directory)
    prompts = make_prompts(encoder)
    rows = [load_row([prompt.document], encoder.media_spec) for prompt in prompts]
    trained = replace(find_model(source), quantize="none")
    yield from _check_settings(directory, encoder, trained)
    inputs = [row_inputs(row) for row in rows]
    wanted = _logits(trained, inputs)
    gc.collect()
    found = _logits(find_model(directory), inputs)
    for prompt, own, theirs in zip(prompts, found, wanted, strict=True):
        if own.shape != theirs.shape:
            yield Check("FAIL", f"the export has {own.shape[1]} tokens, {source} has {theirs.shape[1]}")
            return
        difference = float(np.linalg.norm(own - theirs) / np.linalg.norm(theirs))
        text = f"logits of a prompt with {prompt.name}: the export and {source} differ by {difference:.2g} in norm"
        yield Check("ok" if difference <= tolerance else "FAIL", f"{text} (allowed {tolerance:g})")


def _check_settings(directory: Path, encoder: Encoder, source: ModelSource) -> Iterator[Check]:
    """Compare what engines give the model with what training gave it."""
    trained = source.encoder()
    problems = []
    prompts, wanted = ({prompt.name: prompt for prompt in make_prompts(each)} for each in (encoder, trained))
    # Videos have a placeholder of their own in the layout of transformers.
    for name in (prompts.keys() & wanted.keys()) - {"video"}:
        if not np.array_equal(prompts[name].document.input_ids, wanted[name].document.input_ids):
            problems.append(f"a prompt with {name} has other tokens: its chat template or tokenizer differs")
    if encoder.image_spec != trained.image_spec:
        problems.append(f"images are processed with {encoder.image_spec}, in the source {trained.image_spec}")
    stops, ends = (set(_stops(place)) for place in (directory, source.directory))
    if stops != ends:
        problems.append(f"answers stop at the token ids {sorted(stops)}, in the source {sorted(ends)}")
    if encoder.limits.max_positions != trained.limits.max_positions:
        problems.append(
            f"max_position_embeddings is {encoder.limits.max_positions}, in the source "
            f"{trained.limits.max_positions}"
        )
    yield from (Check("FAIL", f"{problem} ({source.checkpoint})") for problem in sorted(problems))
    if not problems:
        yield Check(
            "ok", f"prompts, images, end tokens and positions are those of the source {source.checkpoint}"
        )


def _stops(directory: Path) -> tuple[int, ...]:
    return stop_token_ids(directory, load_tokenizer(directory).eos_token_id)


def _logits(model: ModelSource, rows: list[RowInputs]) -> list[np.ndarray]:
    loaded = model.load()
    with paddle.no_grad():
        return [loaded.logits(loaded(row).hidden).numpy() for row in rows]
