"""What the bench compares: models, data, settings and the sides of each comparison. Standard library only: the peers
import this too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

# The settings of every side.
THREADS = 2
LEARNING_RATE, WEIGHT_DECAY, BETAS, EPSILON, CLIP_NORM = 1e-4, 0.1, (0.9, 0.95), 1e-8, 1.0
LORA_RANK, LORA_ALPHA = 16, 32
DPO_BETA = 0.1
# Loss tokens per chunk of the output layer, in erniekit and in the loops written by hand.
CHUNK_TOKENS = 1024

OURS = "erniekit"
# Relative differences of losses that count as agreement: the same sums in another order; adapters with other random
# values, or other batches, for losses that fall from the same start; bfloat16 instead of float32.
SAME, ALIKE, ROUNDED = 1e-3, 3e-2, 1e-2


@dataclass(frozen=True)
class Peer:
    """One side: `script` of this directory, run with `options`.

    tolerance: how much its mean loss may differ from erniekit's. keep_memory: glibc keeps large freed blocks, as
    erniekit has it; a user has to know of this setting. needs_bf16: runs only on processors with bfloat16 arithmetic.
    """

    name: str
    script: str
    options: tuple[str, ...]
    tolerance: float = SAME
    keep_memory: bool = True
    needs_bf16: bool = False


@dataclass(frozen=True)
class Workload:
    """One comparison: a model of `shape` with these `config.json` settings, trained on seeded data.

    data: the function of `data.py` that makes `samples` records. config: sections of `erniekit train` beyond the
    common ones. steps: steps per turn. rows: packed sequences that are encoded, the most steps a side can take.
    """

    name: str
    title: str
    shape: str
    model: tuple[str, ...]
    vocab_size: int
    data: str
    samples: int
    max_length: int
    config: tuple[tuple[str, Any], ...]
    peers: tuple[Peer, ...]
    steps: int = 1
    rows: int = 48


LORA = ("lora", {"enabled": True, "rank": LORA_RANK, "alpha": LORA_ALPHA})
SFT_PEERS = (
    Peer("TRL, defaults", "peer_sft", ("padded", "--checkpointing"), keep_memory=False),
    Peer("TRL, packing", "peer_sft", ("packed",)),
    Peer("packed loop by hand", "peer_sft", ("by-hand",)),
    Peer("packed loop by hand, bf16", "peer_sft", ("by-hand", "--bf16"), ROUNDED, needs_bf16=True),
)
WORKLOADS = (
    Workload(
        name="vl-lora",
        title="LoRA on text and images: vision-language MoE, 16 experts, top-4",
        shape="tiny-vl",
        model=(
            *("hidden_size=384", "num_attention_heads=3", "num_key_value_heads=1", "intermediate_size=1536"),
            *("num_hidden_layers=5", "moe_num_experts=[16,16]", "moe_k=4", "moe_intermediate_size=[192,128]"),
            *("vision_config.depth=4", "vision_config.hidden_size=256", "vision_config.num_heads=4"),
        ),
        vocab_size=32768,
        data="image_chats",
        samples=240,
        max_length=2048,
        config=(LORA,),
        peers=(
            Peer("Trainer, defaults", "peer_vl", ("padded",), keep_memory=False),
            Peer("Trainer, sorted by length", "peer_vl", ("sorted",), ALIKE),
            Peer("packed loop by hand", "peer_vl", ("by-hand",)),
            Peer("packed loop by hand, bf16", "peer_vl", ("by-hand", "--bf16"), ROUNDED, needs_bf16=True),
        ),
    ),
    Workload(
        name="text-full",
        title="full fine-tuning on instructions: dense",
        shape="tiny-dense",
        model=(
            *("hidden_size=384", "intermediate_size=1024", "num_hidden_layers=8"),
            *("num_attention_heads=6", "num_key_value_heads=2"),
        ),
        vocab_size=32768,
        data="instructions",
        samples=700,
        max_length=2048,
        config=(),
        peers=SFT_PEERS,
    ),
    Workload(
        name="calls-moe",
        title="full fine-tuning on function calls: MoE, 64 experts, top-6",
        shape="tiny-moe",
        model=(
            *("hidden_size=512", "num_hidden_layers=4", "num_attention_heads=8", "num_key_value_heads=2"),
            *("intermediate_size=1536", "moe_num_experts=64", "moe_k=6", "moe_intermediate_size=256"),
        ),
        vocab_size=16384,
        data="function_calls",
        samples=300,
        max_length=2048,
        config=(),
        peers=SFT_PEERS,
    ),
    Workload(
        name="dpo-lora",
        title="DPO with LoRA on long prompts: dense",
        shape="tiny-dense",
        model=(
            *("hidden_size=384", "intermediate_size=1024", "num_hidden_layers=8"),
            *("num_attention_heads=6", "num_key_value_heads=2"),
        ),
        vocab_size=32768,
        data="preferences",
        samples=180,
        max_length=2048,
        config=(("task", "dpo"), ("dpo", {"beta": DPO_BETA}), LORA),
        peers=(
            Peer("TRL, defaults", "peer_dpo", ("padded", "--checkpointing"), keep_memory=False),
            Peer("TRL, no checkpointing", "peer_dpo", ("padded",)),
            Peer("packed loop by hand", "peer_dpo", ("by-hand",)),
            Peer("packed loop by hand, bf16", "peer_dpo", ("by-hand", "--bf16"), ROUNDED, needs_bf16=True),
        ),
    ),
)


def quick(workload: Workload) -> Workload:
    """The workload with a tiny model and few samples: to try the scripts."""
    heads = ("num_attention_heads=4", "num_key_value_heads=2") if workload.shape == "tiny-dense" else ()
    return replace(workload, model=heads, vocab_size=1024, samples=24, max_length=1024, rows=4)
