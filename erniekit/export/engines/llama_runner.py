"""Answers prompts in llama.cpp. A script for the Python of its environment; it imports nothing of erniekit.

    python llama_runner.py REQUEST.json RESPONSE.json

See `erniekit.export.engines.process` for both files. `model` is a GGUF file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import llama_cpp
import numpy as np


def main(request_file: str, response_file: str) -> None:
    """Answer the prompts of a request."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    prompts, new = request["prompts"], request["max_new_tokens"]
    model = llama_cpp.Llama(
        model_path=request["model"],
        n_ctx=max(len(prompt["input_ids"]) for prompt in prompts) + new,
        logits_all=True,
        n_gpu_layers=0,
        verbose=False,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    answers = {prompt["name"]: _answer(model, prompt["input_ids"], new) for prompt in prompts}
    response = {"engine": f"llama.cpp ({llama_cpp.__version__})", "faults": [], "answers": answers}
    with open(response_file, "w", encoding="utf-8") as file:
        json.dump(response, file)


def _answer(model: Any, ids: list[int], new: int) -> dict[str, Any]:
    model.reset()
    model.eval(ids)
    scores = [_log_softmax(model.scores[i]) for i in range(len(ids))]
    last = scores[-1]
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < new:
        tokens.append(int(last.argmax()))
        logprobs.append(float(last[tokens[-1]]))
        model.eval(tokens[-1:])
        last = _log_softmax(model.scores[len(ids) + len(tokens) - 1])
    return {
        "input_ids": ids,
        "prompt_logprobs": [float(scores[i - 1][ids[i]]) for i in range(1, len(ids))],
        "tokens": tokens,
        "logprobs": logprobs,
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max()
    result: np.ndarray = wide - np.log(np.exp(wide).sum())
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
