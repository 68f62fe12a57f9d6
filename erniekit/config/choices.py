"""Every list of choices, shared by the schema, command-line options and checks.

The schema and the command-line options document each choice.
"""

from typing import Literal, get_args

Task = Literal["sft", "dpo"]
Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "gpu"]
Quantize = Literal["none", "int8", "int4"]
QuantizeMethod = Literal["rtn", "gptq", "awq"]

# Data.
DataFormat = Literal["auto", "messages", "sharegpt", "alpaca", "query_response", "xlam", "erniekit", "text"]
FORMATS: tuple[str, ...] = tuple(name for name in get_args(DataFormat) if name != "auto")
TemplateName = Literal["auto", "ernie", "ernie_thinking", "ernie_vl", "ernie_vl_thinking"]
Mix = Literal["concat", "interleave", "weighted"]
Stop = Literal["first_exhausted", "all_exhausted"]
LossOn = Literal["all", "last_turn", "each_turn"]
Reasoning = Literal["train", "mask", "drop"]
OnLong = Literal["error", "trim_history", "drop"]
OnError = Literal["raise", "skip"]
VideoSampling = Literal["leading", "middle", "random"]

# Losses.
Normalization = Literal["tokens", "token_balanced"]
OrthogonalMode = Literal["loss", "decoupled"]
DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "robust", "simpo", "orpo", "dpop", "kto_pair", "apo_zero", "apo_down"
]
REFERENCE_FREE: tuple[DpoLoss, ...] = ("simpo", "orpo")
"""Losses of the policy alone."""
PER_TOKEN: tuple[DpoLoss, ...] = ("ipo", "simpo", "orpo")
"""Losses that are defined over means per token."""
LABEL_SMOOTHING: tuple[DpoLoss, ...] = ("sigmoid", "robust", "simpo")
"""Losses that use dpo.label_smoothing."""
DpoReference = Literal["auto", "copy", "cached", "none"]

# Training.
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer of every model family."""
ScheduleType = Literal["cosine", "linear", "constant", "wsd"]
KernelBackend = Literal["auto", "triton", "paddle", "plain"]
AttentionKernel = Literal["auto", "flashmask", "flash"]
Recompute = Literal["none", "layers", "auto"]
OnNonFinite = Literal["stop", "skip"]
TrackerMode = Literal["online", "offline"]
Shard = Literal["none", "optimizer", "gradients", "parameters"]
SHARDS: tuple[Shard, ...] = get_args(Shard)
"""ZeRO levels 0 to 3: each one shards what those before it do, and more."""

# Evaluation.
Metric = Literal[
    "auto",
    "exact_match",
    "normalized_match",
    "token_f1",
    "rouge_l",
    "anls",
    "numeric_match",
    "json_valid",
    "json_equal",
    "box_iou",
    "box_iou_50",
    "call_name",
    "call_arguments",
    "call_valid",
    "call_match",
    "call_none",
]
METRICS: tuple[str, ...] = tuple(name for name in get_args(Metric) if name != "auto")
"""Metrics of generated answers; `erniekit.evaluation.metrics.choose` computes them."""
EVAL_LOSS = "eval/loss"
PAIR_METRICS = ("eval/rewards/accuracy", "eval/rewards/margin")
ANSWER_METRICS = tuple(f"eval/{name}" for name in METRICS)
BEST_METRICS = (EVAL_LOSS, *PAIR_METRICS, *ANSWER_METRICS)
"""What eval.best_metric may name."""

# Export.
CheckpointLayout = Literal["hub", "transformers", "paddle"]
ExportLayout = Literal["hub", "transformers", "paddle", "adapter", "paddle-adapter", "gguf"]
ConvertLayout = Literal["hub", "transformers", "paddle", "gguf"]
GgufType = Literal["f16", "q8_0", "f32"]
Engine = Literal["transformers", "vllm", "llama.cpp", "sglang", "fastdeploy", "paddleformers"]
DoctorSection = Literal["system", "kernels", "attention", "step", "processes", "timings"]
ChatTemplateSource = Literal["auto", "base", "trained"]
