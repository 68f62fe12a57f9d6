"""Mutated adapters, and training states of checkpoints."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from erniekit.lora.adapters import PREFIX, WEIGHTS_FILE, read_adapter
from erniekit.lora.peft import CONFIG_FILE
from tests.fuzz.driver import mutated_bytes, mutated_value, put

_LAYER = f"{PREFIX}model.layers.0"
_WEIGHTS = {
    f"{_LAYER}.self_attn.q_proj.lora_A.weight": np.zeros((4, 8), np.float32),
    f"{_LAYER}.self_attn.q_proj.lora_B.weight": np.zeros((8, 4), np.float32),
    f"{_LAYER}.mlp.experts.base_layer.lora_A.weight": np.zeros((8, 8), np.float32),
    f"{_LAYER}.mlp.experts.base_layer.lora_B.weight": np.zeros((12, 8), np.float32),
    f"{_LAYER}.mlp.experts.lora_A.weight": np.zeros((8, 6), np.float32),
    f"{_LAYER}.mlp.experts.lora_B.weight": np.zeros((8, 8), np.float32),
}
# Of one parameter of the experts: the configuration says which.
_FILES = (save(_WEIGHTS), save({name: array for name, array in _WEIGHTS.items() if "base_layer" not in name}))
_ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "revision": None,
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "modules_to_save": None,
    "rank_pattern": {r"experts\.(gate_up|down)_proj": 4, "layers.0.self_attn.q_proj": 4},
    "alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 16},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "init_lora_weights": True,
}
_HOSTILE = ("(a+)+$", "(.*)*x", "(a|a)*b", "a?" * 40 + "a" * 40, ".*.*.*.*x", "(", "\\", "[" * 50, "x{99999}")


def adapter_files(rng: random.Random, directory: Path) -> None:
    """adapter_config.json, also with patterns that take for ever."""
    value: object = _ADAPTER
    if rng.random() < 0.2:
        key = rng.choice(["rank_pattern", "alpha_pattern"])
        value = {**_ADAPTER, key: {rng.choice(_HOSTILE): 4, **_ADAPTER[key]}}
    for _ in range(rng.randint(1, 3)):
        value = mutated_value(rng, value)
    text = json.dumps(value).encode()
    put(directory / CONFIG_FILE, mutated_bytes(rng, text) if rng.random() < 0.2 else text)
    put(directory / WEIGHTS_FILE, rng.choice(_FILES))
    config, tensors = read_adapter(directory)
    for name, info in tensors.items():
        config.scaling(name.partition(".lora_")[0], max(1, info.shape[0]))
