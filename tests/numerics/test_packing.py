"""A document has the same hidden states in a packed row as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

pytest.importorskip("torch")

from erniekit.checkpoint.weights import load_model
from erniekit.models.layer_runner import CheckpointedLayers, DirectLayers
from erniekit.models.row import RowInputs
from tests.closeness import MODEL, assert_all_close, assert_close
from tests.numerics import hf


def _row(inputs: dict[str, Any]) -> RowInputs:
    ids = inputs["input_ids"][0]
    length = len(ids)
    zeros = np.zeros(length, np.int32)
    media = inputs.get("mm_token_type_ids", [zeros])[0] > 0
    vision = inputs.get("moe_mm_token_type_ids", [zeros])[0] > 0
    return RowInputs(
        input_ids=ids.astype(np.int64),
        position_ids=np.tile(np.arange(length), (3, 1)),
        modality=vision.astype(np.int8),
        cu_seqlens=np.array([0, length], np.int32),
        patches=inputs.get("pixel_values", np.zeros((0, 588), np.float32)),
        grid_thw=inputs.get("image_grid_thw", np.zeros((0, 3), int)).astype(np.int32),
        media_positions=np.flatnonzero(media).astype(np.int64),
    )


def _pack(rows: list[RowInputs]) -> RowInputs:
    starts = np.cumsum([0] + [len(row.input_ids) for row in rows])
    return RowInputs(
        input_ids=np.concatenate([row.input_ids for row in rows]),
        position_ids=np.concatenate([row.position_ids for row in rows], 1),
        modality=np.concatenate([row.modality for row in rows]),
        cu_seqlens=starts.astype(np.int32),
        patches=np.concatenate([row.patches for row in rows]),
        grid_thw=np.concatenate([row.grid_thw for row in rows]),
        media_positions=np.concatenate(
            [row.media_positions + s for row, s in zip(rows, starts, strict=False)]
        ),
    )


@pytest.mark.parametrize("family", ["dense", "moe", "vl"])
def test_packed_documents_are_as_alone(family: str, tmp_path: Path) -> None:
    hf.save_hub(hf.make_model(family), tmp_path)
    model = load_model(tmp_path)
    model.eval()
    # Lengths that share a batch, that do not, and one longer than a chunk of queries.
    documents = [_row(hf.text_inputs(length, seed=length)) for length in (24, 22, 5, 1, 600, 23)]
    if family == "vl":
        grids = [(1, 4, 6), (1, 2, 2), (1, 4, 6)]
        documents[2:2] = [_row(hf.vision_inputs("image", grid, seed)) for seed, grid in enumerate(grids)]
    with paddle.no_grad():
        packed_row = _pack(documents)
        packed = model.logits(model(packed_row).hidden).numpy()
        for number, document in enumerate(documents):
            alone = model.logits(model(document).hidden).numpy()
            start, stop = packed_row.cu_seqlens[number : number + 2]
            assert_close(packed[start:stop], alone, MODEL)


def test_recompute_changes_nothing(tmp_path: Path) -> None:
    hf.save_hub(hf.make_model("vl"), tmp_path)
    model = load_model(tmp_path)
    row = _pack([_row(hf.text_inputs(9)), _row(hf.vision_inputs("image", seed=1))])
    gradients = []
    for recompute in (False, True):
        model.model.layer_runner = CheckpointedLayers(recompute=range(9)) if recompute else DirectLayers()
        model.clear_gradients()
        model(row).hidden.square().sum().backward()
        gradients.append(
            {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert_all_close(gradients[1], gradients[0])
