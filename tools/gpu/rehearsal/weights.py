"""Random weights that depend on the names of parameters alone, so that both sides of a comparison have the same."""

from __future__ import annotations

import re
import zlib

import torch

_STD = 0.02


def values(name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """name: of erniekit's parameter in memory. Ones for norms, zeros for biases, else normal numbers."""
    if len(shape) == 1 or name.endswith("e_score_correction_bias"):
        return torch.full(shape, float(name.endswith("weight")), device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, device=device).mul_(_STD).to(dtype)


# transformers' names -> erniekit's.
_NAMES = (
    (r"^model\.language_model\.", "model."),
    (r"^model\.vision_tower\.", "vision_model."),
    (r"\.mlp\.text_moe\.experts\.", ".mlp.experts.text."),
    (r"\.mlp\.vision_moe\.experts\.", ".mlp.experts.vision."),
    (r"\.mlp\.experts\.(?=gate_up_proj|down_proj)", ".mlp.experts.text."),
    (r"(experts\.\w+\.)(gate_up|down)_proj$", r"\1\2.weight"),
    (r"\.mlp\.text_moe\.gate\.weight$", ".mlp.gate.weight"),
    (r"\.mlp\.vision_moe\.gate\.weight$", ".mlp.gate.weight_1"),
    (r"_linear\.fc1\.", "_linear.0."),
    (r"_linear\.fc2\.", "_linear.2."),
    (r"_linear\.ln\.", "_linear.3."),
)


def name_of(theirs: str) -> str:
    """erniekit's name of a parameter of transformers' model."""
    for pattern, name in _NAMES:
        theirs = re.sub(pattern, name, theirs)
    return theirs


@torch.no_grad()
def fill_peer(model: torch.nn.Module) -> None:
    """Give a model of transformers the weights that erniekit's has. Its routers are always [experts, hidden]."""
    for theirs, parameter in model.named_parameters():
        name = name_of(theirs)
        transposed = "_moe.gate.weight" in theirs
        shape = tuple(parameter.shape[::-1] if transposed else parameter.shape)
        found = values(name, shape, parameter.device, parameter.dtype)
        parameter.copy_(found.t() if transposed else found)
