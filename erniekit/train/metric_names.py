"""The glossary of metrics: name, unit and meaning of everything that a run logs.

docs/metrics.md is made from it (tools/docs/metrics.py), and TensorBoard shows the meanings beside its charts. A test
compares it with the metrics of runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from erniekit.config.choices import METRICS

_PLACES = {"{modality}": "(text|vision)", "{summary}": "(min|mean|max)", "{layer}": r"layer_\d+"}


@dataclass(frozen=True)
class Metric:
    """A metric, or all metrics of a pattern with {modality}, {summary} or {layer}. unit: "" for a plain number."""

    name: str
    unit: str
    meaning: str

    def matches(self, name: str) -> bool:
        """Whether the pattern covers a logged name."""
        pattern = re.escape(self.name).replace(r"\{", "{").replace(r"\}", "}")
        for place, expression in _PLACES.items():
            pattern = pattern.replace(place, expression)
        return re.fullmatch(pattern, name) is not None


@dataclass(frozen=True)
class MetricGroup:
    """Metrics of one subject. note: when they are logged."""

    title: str
    note: str
    metrics: tuple[Metric, ...]


_STEPS = (
    Metric(
        "train/loss",
        "nats",
        "Mean loss over all trained tokens of the steps since the last line, without router losses. With task dpo: "
        "mean over the preference pairs.",
    ),
    Metric(
        "train/learning_rate", "", "Learning rate of the last step, before the factors of parameter groups."
    ),
    Metric("train/gradient_norm", "", "Global norm of the gradients before clipping, mean over the steps."),
    Metric("train/loss_tokens", "tokens", "Trained tokens of a step, mean over the steps."),
    Metric("train/tokens_seen", "tokens", "All tokens since the start of the run, trained or not."),
    Metric(
        "train/skipped_steps",
        "steps",
        "Steps since the start of the run that were skipped because a loss or gradient was not finite "
        "(train.on_nonfinite: skip). Logged from the first one on.",
    ),
    Metric(
        "train/tokens_per_second",
        "tokens/s",
        "Tokens of all devices per second of step time, without padding. Evaluations and checkpoints do not count as "
        "step time.",
    ),
    Metric("train/step_seconds", "s", "Time of a step, mean over the steps."),
    Metric(
        "train/data_seconds", "s", "Part of the step in which training waits for data, mean over the steps."
    ),
    Metric(
        "train/mfu",
        "share",
        "Model FLOPs utilization: FLOPs per second of the active parameters and of attention, as a share of the peak "
        "of all devices. Logged if the peak is known (train.peak_tflops).",
    ),
    Metric("data/unused_positions", "share", "Positions of packed sequences that hold no token."),
)
_MEMORY = (
    Metric("memory/device_peak_gib", "GiB", "Peak of the memory that Paddle allocated on the GPU."),
    Metric("memory/peak_gib", "GiB", "Peak of the host memory of the main process."),
    Metric("memory/resident_gib", "GiB", "Host memory of the main process now (Linux only)."),
)
_PAIRS = (
    Metric("loss/preference", "nats", "Preference loss (dpo.loss), mean over the pairs."),
    Metric(
        "loss/sft", "nats per token", "Negative log-likelihood of the chosen answers, mean over their tokens."
    ),
    Metric(
        "rewards/accuracy",
        "share",
        "Pairs in which the chosen answer has the larger reward.",
    ),
    Metric(
        "rewards/margin",
        "nats",
        "Reward of the chosen answer minus the reward of the rejected one, mean over the pairs.",
    ),
    Metric(
        "rewards/chosen",
        "nats",
        "Reward of the chosen answer: beta times the log-ratio of the policy to the reference model. Without a "
        "reference model, beta times the log-probability (per token if the loss is).",
    ),
    Metric("rewards/rejected", "nats", "Reward of the rejected answer."),
    Metric(
        "logps/chosen",
        "nats",
        "Log-probability of the chosen answer, summed over its tokens, mean over the pairs.",
    ),
    Metric("logps/rejected", "nats", "Log-probability of the rejected answer."),
    Metric(
        "logps/kl",
        "nats per token",
        "Mean log-ratio to the reference model per token of both answers. It estimates the KL divergence, without bias "
        "only if the answers are sampled from the policy.",
    ),
)
_LAYER_FIGURES = (
    Metric(
        "expert_load",
        "ratio",
        "Tokens of the busiest expert over the mean of all experts; 1 is perfect balance.",
    ),
    Metric("router/dead_experts", "experts", "Experts to which no token was routed since the last line."),
    Metric(
        "router/entropy",
        "nats",
        "Entropy of the router's probabilities, mean over the tokens of the modality.",
    ),
    Metric(
        "router/mean_cosine",
        "",
        "Mean cosine between the expert vectors of a router; 0 for orthogonal vectors.",
    ),
)
_ROUTERS = (
    *(
        Metric(f"{metric.name}/{{modality}}/{{summary}}", metric.unit, f"{metric.meaning} Over layers.")
        for metric in _LAYER_FIGURES
    ),
    Metric(
        "router/balance_loss/{modality}",
        "",
        "Load-balancing loss before its weight, mean over the tokens of the modality, summed over the layers; top_k "
        "per layer when all experts are used equally. Logged with loss.balance_weight.",
    ),
    Metric(
        "router/z_loss/{modality}",
        "",
        "z-loss before its weight, mean over the tokens, summed over the layers. Logged with loss.z_weight.",
    ),
    Metric(
        "router/orthogonal_loss/{modality}",
        "",
        "Orthogonal loss before its weight, mean over the steps, summed over the layers. Logged with "
        "loss.orthogonal_weight.",
    ),
)
_LAYERS = (
    *(
        Metric(f"{metric.name}/{{layer}}/{{modality}}", metric.unit, metric.meaning)
        for metric in _LAYER_FIGURES
    ),
    Metric(
        "expert_share/{layer}/{modality}",
        "share",
        "Share of the routed tokens that each expert received: a histogram in TensorBoard with one bar per expert.",
    ),
)
_ANSWERS = {
    "exact_match": "Answers that equal the reference exactly and end with the stop token.",
    "normalized_match": "Answers that equal the reference without case, punctuation and articles.",
    "token_f1": "Overlap of the words of answer and reference (F1).",
    "rouge_l": "ROUGE-L: longest common subsequence of words (F1).",
    "anls": "Normalized Levenshtein similarity; below 0.5 it counts as 0.",
    "numeric_match": "Answers with the same number as the reference.",
    "json_valid": "Answers that are valid JSON.",
    "json_equal": "Answers that equal the reference as JSON.",
    "box_iou": "Intersection over union of the boxes in answer and reference.",
    "box_iou_50": "Boxes with an intersection over union of at least 0.5.",
    "call_name": "Function calls with the right names.",
    "call_arguments": "Function calls with the right arguments.",
    "call_valid": "Function calls that are valid against the JSON schema of their tool.",
    "call_match": "Answers with the same function calls as the reference, in name and arguments.",
    "call_none": "Answers without a call where the reference has none.",
}
_EVALUATION = (
    Metric("eval/loss", "nats", "Loss on data.eval, as train/loss is defined."),
    Metric("eval/seconds", "s", "Time of the evaluation."),
    *(
        Metric(
            f"eval/{metric.name}",
            metric.unit,
            f"On data.eval: {metric.meaning[0].lower()}{metric.meaning[1:]}",
        )
        for metric in _PAIRS
    ),
    *(Metric(f"eval/{name}", "share", _ANSWERS[name]) for name in METRICS),
)

GROUPS = (
    MetricGroup("Training", "Logged every `log.every` steps.", _STEPS),
    MetricGroup("Memory", "Logged with the training metrics.", _MEMORY),
    MetricGroup(
        "Preference pairs",
        "Logged with `task: dpo`; `logps/kl` only with a reference model. `erniekit eval` reports accuracy, margin and "
        "log-probabilities too ([Evaluate](evaluation.md#preference-pairs)).",
        _PAIRS,
    ),
    MetricGroup(
        "Routers",
        "Logged for models with experts, by modality. Summaries are the minimum, mean and maximum over the layers.",
        _ROUTERS,
    ),
    MetricGroup("Routers, by layer", "Logged only with `log.router_detail: true`.", _LAYERS),
    MetricGroup(
        "Evaluation",
        "Logged every `train.eval_every` steps and at the end if `data.eval` is set. Metrics of generated answers need "
        "`eval.samples`; each is a mean over the answers that it applies to.",
        _EVALUATION,
    ),
)


def find_metric(name: str) -> Metric | None:
    """The glossary's entry of a logged metric."""
    return next((metric for group in GROUPS for metric in group.metrics if metric.matches(name)), None)


def describe_metric(name: str) -> str:
    """Unit and meaning of a logged metric; empty if the glossary lacks it."""
    metric = find_metric(name)
    if metric is None:
        return ""
    return f"{metric.meaning} Unit: {metric.unit}." if metric.unit else metric.meaning
