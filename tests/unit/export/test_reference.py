"""References: how their inputs become a packed row, and that a difference of any part is seen."""

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from erniekit.checkpoint.hub import read_array, read_header, write_safetensors
from erniekit.checkpoint.names import hub_tensors
from erniekit.checkpoint.weights import load_model
from erniekit.errors import VerifyError
from erniekit.export.reference import (
    GRADIENT_TOLERANCE,
    LOGITS_TOLERANCE,
    LOSS_TOLERANCE,
    ReferenceReport,
    compare_with_reference,
    reference_row,
)
from erniekit.export.verify import VerifyOptions, verify_model
from erniekit.models.config import VisionConfig
from erniekit.models.row import RowInputs
from erniekit.models.specs import TensorSpec
from tests.models import hub_values

VISION = VisionConfig(1, 32, 64, 2, 14, 3, 2, 2)


def make_reference(directory: Path, file: Path, **changes: Any) -> None:
    """Two sequences, the first padded on the right, with outputs computed here one by one."""
    model = load_model(directory)
    ids = np.random.default_rng(0).integers(10, 300, (2, 9))
    mask = np.ones_like(ids)
    mask[0, 6:] = 0
    labels = np.where(mask.astype(bool), ids, -100)
    labels[:, :2] = -100
    logits = np.full((2, 9, model.config.vocab_size), np.nan, np.float32)
    losses = []
    for row, length in enumerate((6, 9)):
        none = np.zeros((0, 3), np.int32)
        positions = np.tile(np.arange(length), (3, 1))
        ends = np.array([0, length], np.int32)
        patches, media, text = np.zeros((0, 588), np.uint8), np.zeros(0, int), np.zeros(length, np.int8)
        found = model.logits(
            model(RowInputs(ids[row, :length], positions, text, ends, patches, none, media)).hidden
        )
        logits[row, :length] = found.numpy()
        targets = paddle.to_tensor(labels[row, 1:length])
        losses.append(
            F.cross_entropy(found[: length - 1], targets, reduction="none", ignore_index=-100).sum()
        )
    loss = (losses[0] + losses[1]) / int((labels[:, 1:] != -100).sum())
    loss.backward()
    gradients = hub_values(model, lambda p: paddle.zeros_like(p) if p.grad is None else p.grad)
    stored: dict[str, Any] = {
        "in_input_ids": ids,
        "in_attention_mask": mask,
        "labels": labels,
        "logits": logits,
    }
    stored |= {"loss": float(loss), "grad_names": np.array(list(gradients))}
    stored["grad_norms"] = np.array([np.linalg.norm(array) for array in gradients.values()])
    stored |= changes
    np.savez(file, **{name: value for name, value in stored.items() if value is not None})
    specs = [TensorSpec(name, "F32", array.shape) for name, array in gradients.items()]
    write_safetensors(file.with_suffix(".safetensors"), specs, lambda name: gradients[name])


def passed(report: ReferenceReport) -> bool:
    """Whether everything that was compared is within its tolerance (NaN is not)."""
    return (
        report.logits_relative <= LOGITS_TOLERANCE
        and (report.loss_relative is None or report.loss_relative <= LOSS_TOLERANCE)
        and (report.gradient_worst is None or report.gradient_worst[1] <= GRADIENT_TOLERANCE)
    )


def test_a_padded_batch_agrees_with_its_sequences_alone(models: dict[str, Path], tmp_path: Path) -> None:
    for family in ("dense", "moe", "vl"):
        file = tmp_path / f"{family}.npz"
        make_reference(models[family], file)
        report = compare_with_reference(models[family], file, file.with_suffix(".safetensors"))
        assert passed(report), report
        assert len(report.names_checked) == len(hub_tensors(load_model(models[family])))


def test_each_difference_is_seen(models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    make_reference(models["moe"], file)
    good = dict(np.load(file))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    index = good["grad_names"].tolist().index(name)

    def report(**changes: Any) -> Any:
        np.savez(tmp_path / "changed.npz", **(good | changes))
        return compare_with_reference(models["moe"], tmp_path / "changed.npz")

    assert passed(report())
    logits = good["logits"].copy()
    # One token's logits, and a tenth of the tolerance in all of them, which is rounding.
    logits[1, 3] *= 1.002
    assert not passed(report(logits=logits))
    assert passed(report(logits=good["logits"] * (1 + 1e-5)))
    logits[1, 3, 5] = np.nan
    assert not passed(report(logits=logits))
    assert not passed(report(loss=good["loss"] * (1 + 2e-5)))
    norms = good["grad_norms"].copy()
    norms[index] *= 1.002
    changed = report(grad_norms=norms)
    assert not passed(changed) and changed.gradient_worst[0] == name
    norms[index] = 0.0
    assert not passed(report(grad_norms=norms))


def test_gradients_of_the_right_norm_and_another_direction(models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    make_reference(models["dense"], file)
    stored = {name: read_array(info) for name, info in read_header(file.with_suffix(".safetensors")).items()}
    stored["model.norm.weight"] = stored["model.norm.weight"][::-1].copy()
    specs = [TensorSpec(name, "F32", array.shape) for name, array in stored.items()]
    write_safetensors(tmp_path / "turned.safetensors", specs, lambda name: stored[name])
    report = compare_with_reference(models["dense"], file, tmp_path / "turned.safetensors")
    assert report.gradient_worst is not None and report.gradient_worst[0] == "model.norm.weight"
    assert not passed(report)
    texts = [
        str(check)
        for check in verify_model(
            models["dense"],
            VerifyOptions(transformers=False, reference=file, gradients=tmp_path / "turned.safetensors"),
        )
    ]
    assert any(text.startswith("FAIL") and "model.norm.weight" in text for text in texts)


def test_references_that_do_not_belong(models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    make_reference(models["dense"], file)
    with pytest.raises(VerifyError, match="do not belong to this model"):
        compare_with_reference(models["moe"], file)
    make_reference(models["dense"], tmp_path / "none.npz", in_input_ids=None)
    with pytest.raises(VerifyError, match="no array 'in_input_ids'"):
        compare_with_reference(models["dense"], tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(VerifyError, match=r"is not an \.npz file of plain arrays"):
        compare_with_reference(models["dense"], tmp_path / "text.npz")
    make_reference(models["dense"], tmp_path / "pictures.npz", in_image_grid_thw=np.array([[1, 4, 4]]))
    with pytest.raises(VerifyError, match="not a vision-language model"):
        compare_with_reference(models["dense"], tmp_path / "pictures.npz")


def vision_batch() -> dict[str, Any]:
    """Two sequences; the first has an image and, after it, a video; the second an image, padded on the left."""
    first = [0, 1, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0]
    second = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    kinds = np.array([first, second])
    mask = np.ones_like(kinds)
    mask[1, :4] = 0
    images, videos = np.array([[1, 4, 6], [1, 2, 4]]), np.array([[4, 2, 4]])
    return {
        "in_input_ids": np.arange(26).reshape(2, 13),
        "in_attention_mask": mask,
        "in_mm_token_type_ids": kinds,
        "in_moe_mm_token_type_ids": kinds,
        "in_image_grid_thw": images,
        "in_video_grid_thw": videos,
        "in_pixel_values": np.arange(32, dtype=np.float32)[:, None].repeat(588, 1),
        "in_pixel_values_videos": 100 + np.arange(32, dtype=np.float32)[:, None].repeat(588, 1),
    }


def test_images_and_videos_in_one_row() -> None:
    row, kept = reference_row(vision_batch(), VISION, "here")
    assert kept.sum() == 22
    assert row.cu_seqlens.tolist() == [0, 13, 22]
    assert row.grid_thw.tolist() == [[1, 4, 6], [4, 2, 4], [1, 2, 4]]
    # The first image's 24 patches, the video's 32, the second image's 8.
    assert row.patches[:, 0].tolist() == [*range(24), *range(100, 132), *range(24, 32)]
    assert row.media_positions.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 16, 17]
    time, height, width = row.position_ids.tolist()
    # Text 0; a box of 1 x 2 x 3 from 1; text 4; a box of 2 x 1 x 2 from 5; text 7.
    assert time[:13] == [0, *[1] * 6, 4, 5, 5, 6, 6, 7]
    assert height[:13] == [0, 1, 1, 1, 2, 2, 2, 4, 5, 5, 5, 5, 7]
    assert width[:13] == [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 5, 6, 7]
    assert time[13:] == [0, 1, 2, 3, 3, 5, 6, 7, 8]


def test_stored_positions_win() -> None:
    stored = vision_batch()
    stored["position_ids_thw"] = np.arange(78).reshape(3, 2, 13)
    row, kept = reference_row(stored, VISION, "here")
    np.testing.assert_array_equal(row.position_ids, stored["position_ids_thw"][:, kept])


def test_tokens_and_grids_must_agree() -> None:
    stored = vision_batch()
    stored["in_image_grid_thw"] = stored["in_image_grid_thw"][:1]
    with pytest.raises(VerifyError, match="more runs"):
        reference_row(stored, VISION, "here")
    stored = vision_batch()
    stored["in_image_grid_thw"][0] = [1, 2, 2]
    with pytest.raises(VerifyError, match="6 image tokens"):
        reference_row(stored, VISION, "here")
