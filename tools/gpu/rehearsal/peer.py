"""One case through transformers and PEFT, as their users run them; fair where a default is slow for no reason.

Experts by `grouped_mm`, attention by SDPA, gradient checkpointing, fused AdamW over bfloat16 parameters, or with
--peer-masters over float32 copies of them. Adapters are bfloat16 as the base, not float32 as PEFT makes them by
default. Logits are computed where they have a label in pairs. Each answer of a pair is a sequence of its own, with its
prompt; all have one length, so there is no padding.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from .cases import (
    ALPHA,
    BETA,
    IGNORE,
    IMAGE_END,
    IMAGE_START,
    PLACEHOLDER,
    RANK,
    VIDEO_END,
    VIDEO_START,
    Case,
    Sizes,
    architecture,
    make_row,
)
from .measure import Figures, measure
from .runner import parser, run_cases
from .weights import fill_peer

warnings.filterwarnings("ignore")
_RATE = 1e-6
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def run(case: Case, layers: int, sizes: Sizes, *, steps: int, masters: bool = False) -> tuple[Figures, float]:
    """Figures of a step; no FLOPs. masters: AdamW updates float32 copies of the trained parameters."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = _model(case, layers, sizes, device)
    row = make_row(case, sizes)
    inputs = _inputs(model, case, row, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def compute() -> torch.Tensor:
        loss = _pair_loss(model, inputs, row) if case.row == "pairs" else model(**inputs).loss
        loss.backward()
        return loss.detach()

    update = _update(trained, masters)
    return measure(compute, lambda loss: loss.item(), update, steps=steps), 0.0


def _update(trained: list[torch.Tensor], masters: bool) -> Callable[[], None]:
    values = [p.detach().float().requires_grad_() for p in trained] if masters else trained
    optimizer = torch.optim.AdamW(values, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    @torch.no_grad()
    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if masters:
            for value, parameter in zip(values, trained, strict=True):
                value.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if masters:
            torch._foreach_copy_(trained, values)

    return update


def _model(case: Case, layers: int, sizes: Sizes, device: torch.device) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = _build(architecture(case, layers, sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight") or "e_score_correction_bias" in name:
            parameter.data = parameter.data.float()
    fill_peer(model)
    model.set_attn_implementation("sdpa")
    model.set_experts_implementation("grouped_mm" if device.type == "cuda" else "eager")
    if case.method != "full":
        model = _adapted(model, case.method)
    model.train()
    model.config.use_cache = False
    if case.recompute:
        if case.method != "full":
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _build(raw: dict[str, Any]) -> Any:
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
        *("moe_k", "moe_num_shared_experts"),
    )
    text = {name: raw[name] for name in names}
    layers, rope = raw["num_hidden_layers"], {"rope_type": "default", "rope_theta": raw["rope_theta"]}
    if raw["model_type"] == "ernie4_5_moe":
        experts = ("moe_num_experts", "moe_intermediate_size", "moe_layer_start_index", "moe_layer_end_index")
        text |= {name: raw[name] for name in experts} | dict(rope_parameters=rope)
        return transformers.Ernie4_5_MoeForCausalLM(transformers.Ernie4_5_MoeConfig(**text))
    text |= dict(
        moe_num_experts=raw["moe_num_experts"][0], moe_intermediate_size=raw["moe_intermediate_size"]
    )
    text |= dict(mlp_layer_types=["dense"] + ["sparse"] * (layers - 1))
    text |= dict(rope_parameters=rope | {"mrope_section": raw["rope_scaling"]["mrope_section"]})
    vision = {
        name: raw["vision_config"][name] for name in ("depth", "hidden_size", "num_heads", "patch_size")
    }
    vision |= dict(intermediate_size=raw["vision_config"]["mlp_ratio"] * vision["hidden_size"], in_channels=3)
    config = transformers.Ernie4_5_VLMoeConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=raw["tie_word_embeddings"],
        image_token_id=PLACEHOLDER,
        image_start_token_id=IMAGE_START,
        image_end_token_id=IMAGE_END,
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
    )
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(config)


def _adapted(model: Any, method: str) -> Any:
    from peft import LoraConfig, get_peft_model

    parameters = None
    if method == "experts":
        parameters = [name for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3]
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=parameters,
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def _inputs(model: Any, case: Case, row: dict[str, np.ndarray], device: torch.device) -> dict[str, Any]:
    ids = row["input_ids"][None]
    if case.row == "pairs":
        ids = _answers(row)
    inputs: dict[str, Any] = dict(input_ids=torch.tensor(ids, device=device))
    if case.row != "pairs":
        # transformers shifts them itself.
        labels = np.concatenate([[IGNORE], row["labels"][:-1]])[None]
        inputs["labels"] = torch.tensor(labels, device=device)
    if case.model == "text":
        return inputs
    known = inspect.signature(getattr(model, "base_model", model).forward).parameters
    if hasattr(model, "get_base_model"):
        known = inspect.signature(model.get_base_model().forward).parameters
    media = np.zeros(ids.shape, np.int32)
    if case.row == "mixed":
        media[0, row["media_positions"]] = 1
        pixels = row["patches"].astype(np.float32) / 255
        pixels = (pixels - np.repeat(_MEAN, 196)) / np.repeat(_STD, 196)
        inputs["pixel_values"] = torch.tensor(pixels, device=device, dtype=torch.bfloat16)
        inputs["image_grid_thw"] = torch.tensor(row["grid_thw"], device=device, dtype=torch.int64)
    if "mm_token_type_ids" in known:
        inputs["mm_token_type_ids"] = torch.tensor(media, device=device)
    if "moe_mm_token_type_ids" in known:
        vision = row["modality"][None] if case.row == "mixed" else media
        inputs["moe_mm_token_type_ids"] = torch.tensor(vision.astype(np.int32), device=device)
    return inputs


def _answers(row: dict[str, np.ndarray]) -> np.ndarray:
    """Each answer with its prompt, chosen and rejected in turn."""
    ids, bounds = row["input_ids"], row["cu_seqlens"]
    found = []
    for (first, second), start, end in zip(row["branches"], bounds, bounds[1:], strict=False):
        found += [ids[start:second], np.concatenate([ids[start:first], ids[second:end]])]
    return np.stack(found)


def _pair_loss(model: Any, inputs: dict[str, Any], row: dict[str, np.ndarray]) -> torch.Tensor:
    """DPO with log-probabilities of zero under the reference model."""
    (first, second), ids = row["branches"][0], inputs["input_ids"]
    answer = int(second - first)
    logits = model(**inputs, logits_to_keep=answer).logits[:, :-1]
    logps = -F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1 - answer :].flatten(), reduction="none")
    chosen, rejected = logps.reshape(len(ids), -1).sum(1).reshape(-1, 2).unbind(1)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


if __name__ == "__main__":
    options = parser("Cases through transformers and PEFT.").parse_args()
    run_cases("transformers + PEFT", partial(run, masters=options.peer_masters), options)
