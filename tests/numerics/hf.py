"""Small seeded ERNIE 4.5 models made with transformers, with their logits, losses and gradients.

Written in the Hub's layout and in the form that `erniekit verify --reference` reads, so that tests
in a clone without any reference files have something to compare with.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Ernie4_5_MoeConfig,
    Ernie4_5_MoeForCausalLM,
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
)

IMAGE, VIDEO = 9, 20
IMAGE_START, IMAGE_END, VIDEO_START, VIDEO_END = 14, 15, 16, 17
VOCAB = 512


@dataclass(frozen=True)
class Reference:
    """A checkpoint directory, stored outputs (npz) and stored gradients (safetensors, Hub names)."""

    directory: Path
    npz: Path
    gradients: Path


def make_model(family: str, **overrides: Any) -> torch.nn.Module:
    """A seeded model; `overrides` go into the (text) configuration."""
    common = dict(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4
    )
    common |= dict(num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True)
    if family == "dense":
        model = Ernie4_5ForCausalLM(Ernie4_5Config(**common | dict(head_dim=32) | overrides))
    elif family == "moe":
        moe = dict(moe_num_experts=6, moe_k=2, moe_intermediate_size=32, moe_num_shared_experts=2)
        model = Ernie4_5_MoeForCausalLM(
            Ernie4_5_MoeConfig(**common | moe | dict(moe_layer_start_index=1) | overrides)
        )
    else:
        model = Ernie4_5_VLMoeForConditionalGeneration(_vl_config(common, overrides))
    return seed_weights(model.float())


def _vl_config(common: dict[str, Any], overrides: dict[str, Any]) -> Ernie4_5_VLMoeConfig:
    text = common | dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=[32, 16], moe_num_shared_experts=2)
    text |= dict(hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    text |= dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0, mrope_section=[11, 11, 10]))
    text |= dict(mlp_layer_types=["dense", "sparse", "sparse"])
    text |= {key: value for key, value in overrides.items() if key != "vision"}
    vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=14, in_channels=3)
    vision |= overrides.get("vision", {})
    tokens = dict(image_token_id=IMAGE, image_start_token_id=IMAGE_START, image_end_token_id=IMAGE_END)
    tokens |= dict(video_token_id=VIDEO, video_start_token_id=VIDEO_START, video_end_token_id=VIDEO_END)
    tied = text["tie_word_embeddings"]
    return Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **tokens)


def seed_weights(model: torch.nn.Module, seed: int = 7) -> torch.nn.Module:
    """Weights large enough that routing is decided clearly and every path carries gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("e_score_correction_bias"):
                parameter.copy_(0.15 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(0.1 * noise)
    return model.eval()


def save_hub(model: torch.nn.Module, directory: Path) -> None:
    """Write a model in the Hub's layout: transformers' own names but for the vision tower's prefix."""
    model.save_pretrained(directory)
    file = directory / "model.safetensors"
    tensors = {name.replace("model.vision_model.", "vision_model."): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def text_inputs(length: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """A row of random text tokens."""
    ids = np.random.default_rng(seed).integers(30, VOCAB, (1, length))
    return dict(input_ids=ids, attention_mask=np.ones_like(ids))


def vision_inputs(kind: str, grid: tuple[int, int, int] = (1, 4, 6), seed: int = 0) -> dict[str, np.ndarray]:
    """Text around one image or video of random, already normalised patches; `grid` counts patches."""
    rng = np.random.default_rng(seed)
    frames, height, width = grid
    tokens = frames * height * width // (4 if kind == "image" else 8)
    placeholder, start, end = (
        (IMAGE, IMAGE_START, IMAGE_END) if kind == "image" else (VIDEO, VIDEO_START, VIDEO_END)
    )
    before, after = rng.integers(30, VOCAB, 7), rng.integers(30, VOCAB, 9)
    ids = np.concatenate([before, [start], [placeholder] * tokens, [end], after])[None]
    code = 1 if kind == "image" else 2
    media = (ids == placeholder) * code
    vision = media + code * ((ids == start) | (ids == end))
    pixels = rng.standard_normal((frames * height * width, 588)).astype(np.float32)
    suffix = "" if kind == "image" else "_videos"
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "mm_token_type_ids": media.astype(np.int32),
        "moe_mm_token_type_ids": vision.astype(np.int32),
        f"pixel_values{suffix}": pixels,
        f"{kind}_grid_thw": np.array([grid]),
    }


def make_reference(directory: Path, model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> Reference:
    """Run transformers forward and backward and store everything beside the checkpoint."""
    checkpoint = directory / "checkpoint"
    save_hub(model, checkpoint)
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    labels = tensors["input_ids"].clone()
    labels[:, :5] = -100
    labels[torch.isin(labels, torch.tensor([IMAGE, VIDEO, IMAGE_START, VIDEO_START]))] = -100
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    output = model(**tensors, labels=labels)
    output.loss.backward()
    logits, loss = output.logits.detach().numpy(), output.loss.item()
    # Gradients take the place of the weights for a moment: saving them gives their Hub names.
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        save_hub(model, directory / "gradients")
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    gradients = load_file(directory / "gradients" / "model.safetensors")
    names = sorted(gradients)
    stored = {f"in_{key}": value for key, value in inputs.items()}
    stored |= dict(labels=labels.numpy(), logits=logits, loss=np.float64(loss), grad_names=np.array(names))
    stored["grad_norms"] = np.array([gradients[name].norm().item() for name in names])
    np.savez(directory / "reference.npz", **stored)
    return Reference(checkpoint, directory / "reference.npz", directory / "gradients" / "model.safetensors")


def flat_config(directory: Path) -> dict[str, Any]:
    """The nested VL `config.json` of a directory, rewritten in the flat form that the Hub ships."""
    nested = json.loads((directory / "config.json").read_text())
    text, vision = nested["text_config"], nested["vision_config"]
    sparse = [i for i, kind in enumerate(text["mlp_layer_types"]) if kind == "sparse"]
    experts, rope = text["moe_num_experts"], text["rope_parameters"]
    keep = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    )
    keep += "max_position_embeddings rms_norm_eps moe_intermediate_size moe_k moe_num_shared_experts"
    flat = {key: text[key] for key in keep.split()}
    flat |= dict(
        model_type="ernie4_5_moe_vl", tie_word_embeddings=nested["tie_word_embeddings"], use_bias=False
    )
    flat |= dict(
        rope_theta=rope["rope_theta"],
        rope_scaling={"type": "default", "mrope_section": rope["mrope_section"]},
    )
    flat |= dict(moe_num_experts=[experts, experts], moe_layer_start_index=[sparse[0]] * 2)
    flat |= dict(
        moe_layer_end_index=[sparse[-1]] * 2, moe_layer_interval=1, im_patch_id=nested["image_token_id"]
    )
    flat |= {key: nested[key] for key in nested if key.endswith(("_start_token_id", "_end_token_id"))}
    flat |= dict(spatial_conv_size=2, temporal_conv_size=2, use_temporal_conv=True)
    flat["vision_config"] = {key: vision[key] for key in ("depth", "hidden_size", "num_heads", "in_channels")}
    flat["vision_config"] |= dict(patch_size=14, spatial_merge_size=2, hidden_act="quick_gelu")
    flat["vision_config"]["mlp_ratio"] = vision["intermediate_size"] / vision["hidden_size"]
    return flat
