"""Mutated adapters, and training states of checkpoints."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import save

from erniekit.checkpoint.manifest import checksum_problems
from erniekit.checkpoint.state import (
    STATE_FILE,
    _checksum,
    check_identity,
    file_records,
    find_checkpoints,
    read_state,
)
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.generation.load import run_data, run_max_positions, run_quantize
from erniekit.lora.adapters import PREFIX, WEIGHTS_FILE, read_adapter
from erniekit.lora.peft import CONFIG_FILE
from erniekit.train.identity import changed_settings, saved_identity, with_defaults
from erniekit.train.metrics import MetricsAccumulator, StepMetrics
from erniekit.train.progress import BestTracker, restored, restored_losses
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


class _Rows:
    """Stands in for the rows of a run: 7 in each epoch."""

    ranks = 1

    def __init__(self) -> None:
        lengths = np.full(14, 5, np.int64)
        dataset = SimpleNamespace(
            sizes=[14], lengths=lengths, patches=lengths * 0, fingerprint="f", files={"a.jsonl": "0"}
        )
        mixture = Mixture("concat", "first_exhausted", (1.0,), True, 42)
        self.rows = StoredRows(dataset, mixture, 10)  # type: ignore[arg-type]


def trainer_state(rng: random.Random, directory: Path) -> None:
    """trainer_state.json, read as by a command that uses the checkpoint, and by one that resumes its run."""
    checkpoint = directory / "checkpoint-000008"
    checkpoint.mkdir(exist_ok=True)
    put(checkpoint / "model.safetensors", b"weights!")
    loader = RowLoader(_Rows().rows, ErrorBudget("raise", 0), Workers(0, None))
    state = {
        **dict.fromkeys(("step", "rows", "tokens", "loss_tokens", "seed"), 8),
        "format": 2,
        "loader": loader.state_dict(),
        "window": MetricsAccumulator(steps=1, expert_counts={"layer_1/text": [1, 2]}).as_dict(),
        "schedule": {"type": "cosine", "peak": 1e-4},
        "identity": {"lora.rank": 8, "data.train": {"digest": "f"}},
        "config": {
            "model": {"path": "base", "quantize": "none"},
            "data": {"max_length": 10},
            "train": {"recompute": False},
        },
        "base_model": "base",
        "erniekit_version": "0",
        "best": BestTracker(metric="loss", step=4, value=1.5).as_dict(),
        "skipped_steps": 0,
        "skipped_in_row": 0,
        "losses": [2.5, 2.25],
        "files": {"model.safetensors": [8, xxhash.xxh3_128(b"weights!").hexdigest()]},
    }
    value: Any = json.loads(json.dumps(state))
    for _ in range(rng.randint(0, 3)):
        value = mutated_value(rng, value)
    if isinstance(value, dict) and rng.random() < 0.2:
        value["checksum"] = rng.choice([_checksum(value), "0", None])
    text = json.dumps(value).encode()
    put(checkpoint / STATE_FILE, mutated_bytes(rng, text) if rng.random() < 0.2 else text)
    find_checkpoints(directory)
    found = read_state(checkpoint)
    checksum_problems(checkpoint, file_records(checkpoint).items())
    run_data(found), run_max_positions(found, checkpoint), run_quantize(found, checkpoint)
    changed_settings(with_defaults(found.config), {"train": {"seed": 1}, "data": {}})
    check_identity(
        saved_identity(found, ["lora.rank"]), {"lora.rank": 8, "data.train": {"digest": "f"}}, checkpoint
    )
    loader.describe_change(found.loader)
    loader.load_state_dict(found.loader)
    restored(MetricsAccumulator, found.window, checkpoint).add(StepMetrics(1.0, 1, 1, 1, 1.0, 1.0, 0.0))
    restored(BestTracker, found.best, checkpoint)
    restored_losses(found.losses, checkpoint)
