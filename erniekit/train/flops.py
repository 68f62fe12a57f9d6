"""Counts the floating-point operations of training, for MFU: their rate as a share of the peak of the device.

Model FLOPs utilization follows PaLM (Chowdhery et al. 2022, appendix B): 6 FLOPs per active parameter and token, 2 in
the forward and 4 in the backward pass, and the products of attention. Here:

- only the top k routed experts of a token are active;
- the head runs over loss tokens, the vision tower over patches, the resampler over their merges;
- attention counts the pairs of a query and a key that the mask permits: half of PaLM's square, within documents;
- a frozen weight has no gradient: 4 FLOPs, and 2 in layers below the lowest trained parameter, which have no backward
  pass (`erniekit.train.recompute.backward_plan`);
- activations that are recomputed, the reference model of preference training, norms, softmax and the optimizer are not
  counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import paddle

from erniekit.data.load.batch import PackedBatch
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_router_tensor, is_vocab_tensor
from erniekit.train.planner.gpus import known_gpu
from erniekit.train.recompute import backward_plan

_VISION, _RESAMPLER, _DECODER, _HEAD = range(4)


class RowCounts(NamedTuple):
    """The sizes of a row, or FLOPs per unit of each.

    text, vision: tokens of each modality; loss: loss tokens; pairs: (query, key) pairs of attention in the decoder;
    patches: patches of images and frames; patch_pairs: (query, key) pairs in the vision tower; media: tokens of images
    and videos.
    """

    text: float = 0
    vision: float = 0
    loss: float = 0
    pairs: float = 0
    patches: float = 0
    patch_pairs: float = 0
    media: float = 0


def count_row(batch: PackedBatch) -> RowCounts:
    """The sizes of one row."""
    vision = int(np.count_nonzero(batch.modality))
    frames, height, width = batch.grid_thw.astype(np.int64).T
    return RowCounts(
        text=len(batch.modality) - vision,
        vision=vision,
        loss=batch.num_loss_tokens,
        pairs=_attention_pairs(batch),
        patches=int((frames * height * width).sum()),
        patch_pairs=int((frames * (height * width) ** 2).sum()),
        media=len(batch.media_positions),
    )


def make_flop_counter(
    architecture: ErnieConfig, specs: Sequence[TensorSpec], trained: Collection[str]
) -> Callable[[PackedBatch], float]:
    """A function that returns the FLOPs of the forward and backward pass of a row.

    specs: all parameters of the model, adapters too; trained: the names of those that are trained.
    """
    rates = flop_rates(architecture, specs, trained)
    return lambda batch: float(sum(rate * count for rate, count in zip(rates, count_row(batch), strict=True)))


def flop_rates(architecture: ErnieConfig, specs: Sequence[TensorSpec], trained: Collection[str]) -> RowCounts:
    """FLOPs of the forward and backward pass per unit of each size of a row."""
    trained = set(trained)
    backward = backward_plan(architecture, trained)
    moe, vision = architecture.moe, architecture.vision
    rates = dict.fromkeys(RowCounts._fields, 0.0)
    for spec in specs:
        if len(spec.shape) != 2 or spec.name.endswith("e_score_correction_bias"):
            continue
        stage = _HEAD if is_vocab_tensor(spec.name) else _stage(spec.name)
        has_backward = bool(trained) if stage == _HEAD else backward.includes(spec.name)
        passes = 3 if spec.name in trained else 2 if has_backward else 1
        flops = 2.0 * passes * spec.size
        if stage == _VISION:
            rates["patches"] += flops
        elif vision is not None and stage == _RESAMPLER:
            is_spatial = ".spatial_linear." in spec.name
            rates["patches" if is_spatial else "media"] += flops / (
                vision.spatial_merge_size**2 if is_spatial else 1
            )
        elif stage == _HEAD:
            is_lookup = spec.name == "model.embed_tokens.weight" and not architecture.tie_word_embeddings
            rates["loss"] += 0.0 if is_lookup else flops
        elif moe is not None and is_expert_tensor(spec.name):
            rates[_expert_modality(spec.name, moe.num_experts)] += flops * moe.top_k / moe.num_experts
        elif is_router_tensor(spec.name):
            rates["vision" if spec.name.endswith("_1") else "text"] += flops
        else:
            rates["text"] += flops
            rates["vision"] += flops
    # Two products in the forward pass, and two for each in the backward pass.
    width = architecture.num_attention_heads * architecture.head_dim
    rates["pairs"] = 4.0 * width * (architecture.num_hidden_layers + 2 * len(backward.layers))
    if vision is not None:
        blocks = len(backward.vision_blocks)
        rates["patch_pairs"] = 4.0 * vision.hidden_size * (vision.depth + 2 * blocks)
    return RowCounts(**rates)


def device_peak_flops(dtype: str, peak_tflops: float | None, device: str) -> tuple[float | None, str]:
    """The peak of one device in FLOP/s (None if unknown), and the name of the device.

    peak_tflops: of the configuration, which takes precedence; device: "cpu" or "gpu".
    """
    name = paddle.device.cuda.get_device_name() if device == "gpu" else "CPU"
    if peak_tflops is None and dtype == "bfloat16":
        gpu = known_gpu(name)
        peak_tflops = None if gpu is None else gpu.tflops
    return None if peak_tflops is None else peak_tflops * 1e12, name


def _attention_pairs(batch: PackedBatch) -> int:
    """The (query, key) pairs of all documents: causal, or as in `BranchAttention` for answers with a shared prompt."""
    bounds = batch.cu_seqlens.astype(np.int64)
    starts, ends = bounds[:-1], bounds[1:]
    if not len(batch.branches):
        return int(_triangle(ends - starts).sum())
    firsts, seconds = batch.branches.astype(np.int64).T
    rejected = (ends - seconds) * (firsts - starts) + _triangle(ends - seconds)
    return int((_triangle(seconds - starts) + rejected).sum())


def _triangle(length: np.ndarray) -> np.ndarray:
    return length * (length + 1) // 2


def _stage(name: str) -> int:
    """The part of the model that a parameter belongs to, in the order of the forward pass."""
    if name.startswith("vision_model."):
        return _VISION
    if name.startswith("model.resampler_model."):
        return _RESAMPLER
    return _HEAD if name.startswith("lm_head.") else _DECODER


def _expert_modality(name: str, num_experts: int) -> str:
    number = int(name.split(".mlp.experts.")[1].split(".")[0])
    return "text" if number < num_experts else "vision"
