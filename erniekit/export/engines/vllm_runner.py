"""Answers prompts in vLLM. A script for the Python of vLLM's environment; it imports nothing of erniekit.

    python vllm_runner.py REQUEST.json RESPONSE.json

See `erniekit.export.engines.process` for both files.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import numpy as np
import torch
import vllm
from PIL import Image

_ROUTER = "router"
_ROTARY = "rotary"


def main(request_file: str, response_file: str) -> None:
    """Answer the prompts of a request."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    faults = _find_faults(request["family"])
    if request["workarounds"]:
        for fault in faults:
            _WORKAROUNDS[fault]()
    prompts, new = request["prompts"], request["max_new_tokens"]
    longest = max(len(prompt["input_ids"]) for prompt in prompts) + new + 16
    media = {}
    if request["family"] == "vl":
        media = {"limit_mm_per_prompt": {"image": 1, "video": 1}}
    model = vllm.LLM(
        model=request["model"],
        dtype=request["dtype"],
        enforce_eager=True,
        max_model_len=longest,
        max_num_batched_tokens=max(longest, 512),
        max_num_seqs=2,
        seed=0,
        trust_remote_code=request["trust_remote_code"],
        disable_log_stats=True,
        enable_prefix_caching=False,
        **media,
    )
    answers = {prompt["name"]: _answer(model, prompt, new) for prompt in prompts}
    response = {"engine": f"vLLM {vllm.__version__}", "faults": faults, "answers": answers}
    with open(response_file, "w", encoding="utf-8") as file:
        json.dump(response, file)


def _answer(model: Any, prompt: dict[str, Any], new: int) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt_token_ids": prompt["short_ids"]}
    if prompt["images"]:
        given["multi_modal_data"] = {"image": [Image.open(file).convert("RGB") for file in prompt["images"]]}
    if prompt["videos"]:
        given["multi_modal_data"] = {"video": [_video(files) for files in prompt["videos"]]}
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=new, ignore_eos=True, logprobs=0, prompt_logprobs=0, detokenize=False
    )
    try:
        (output,) = model.generate([given], sampling, use_tqdm=False)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    ids, tokens = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
    return {
        "input_ids": ids,
        "prompt_logprobs": [output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))],
        "tokens": tokens,
        "logprobs": [
            found[token].logprob for token, found in zip(tokens, output.outputs[0].logprobs, strict=True)
        ],
    }


def _video(files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [n, height, width, 3], and what vLLM wants to know about them."""
    frames = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    number = len(frames)
    about = {"fps": 2.0, "duration": number / 2, "total_num_frames": number, "video_backend": "opencv"}
    return frames, about | {"frames_indices": list(range(number)), "do_sample_frames": False}


def _find_faults(family: str) -> list[str]:
    """Known faults that this installation has, tried out on a few numbers."""
    if torch.cuda.is_available() or family == "dense":
        return []
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    router = CPURouter(top_k=1, global_num_experts=2, e_score_correction_bias=torch.tensor([0.0, 2.0]))
    _, chosen = router._compute_routing(torch.zeros(1, 4), torch.tensor([[1.0, 0.0]]), torch.int32)
    faults = [] if chosen.item() == 1 else [_ROUTER]
    if family == "vl":
        from vllm.model_executor.layers.rotary_embedding.ernie45_vl_rope import Ernie4_5_VLRotaryEmbedding

        if "offsets" not in inspect.signature(Ernie4_5_VLRotaryEmbedding.forward_native).parameters:
            faults.append(_ROTARY)
    return faults


def _correct_router() -> None:
    """Choose experts by probability plus correction bias, as vLLM does on GPUs."""
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    original = CPURouter._compute_routing

    def compute_routing(self: Any, hidden_states: Any, router_logits: Any, *args: Any, **kwargs: Any) -> Any:
        bias = self.e_score_correction_bias
        if bias is None or self.use_grouped_topk or self.scoring_func != "softmax":
            return original(self, hidden_states, router_logits, *args, **kwargs)
        probabilities = router_logits.float().softmax(-1)
        chosen = (probabilities + bias.float().view(1, -1)).topk(self.top_k, -1).indices
        weights = probabilities.gather(1, chosen)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        return weights, chosen.to(torch.int32)

    CPURouter._compute_routing = compute_routing


def _correct_rotary() -> None:
    """Accept the argument that the base class passes on CPUs."""
    from vllm.model_executor.layers.rotary_embedding.ernie45_vl_rope import Ernie4_5_VLRotaryEmbedding

    def forward_cpu(self: Any, positions: Any, query: Any, key: Any = None, offsets: Any = None) -> Any:
        return self.forward_native(positions, query, key)

    Ernie4_5_VLRotaryEmbedding.forward_cpu = forward_cpu


_WORKAROUNDS = {_ROUTER: _correct_router, _ROTARY: _correct_rotary}

if __name__ == "__main__":
    main(*sys.argv[1:])
