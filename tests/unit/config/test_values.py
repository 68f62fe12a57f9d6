"""Errors about single settings: invalid values, unknown and missing keys, malformed overrides."""

import re
from pathlib import Path

import pytest

from erniekit.config import load_config
from tests.unit.config.conftest import MINIMAL, Write, problems

MAX_LENGTH = "Maximum number of tokens in a packed sequence, which is one micro-batch."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: {epochs: abc}", 'train.epochs: must be a number above 0 and of at most 10000, got "abc"'),
        ("train: {epochs: '3'}", 'train.epochs: must be a number above 0 and of at most 10000, got "3"'),
        ("train: {epochs: true}", "train.epochs: must be a number above 0 and of at most 10000, got true"),
        ("train: {epochs: 0}", "train.epochs: must be a number above 0 and of at most 10000, got 0"),
        ("train: {epochs: null}", "train.epochs: must be a number above 0 and of at most 10000, got null"),
        ("train: {epochs: [1]}", "train.epochs: must be a number above 0 and of at most 10000, got a list"),
        ("train: {max_steps: 1.5}", "train.max_steps: must be a whole number above 0 or null, got 1.5"),
        ("train: {max_steps: 0.0}", "train.max_steps: must be a whole number above 0 or null, got 0"),
        (
            "train: {seed: .inf}",
            "train.seed: must be a whole number of at least 0 and below 4294967296, got Infinity",
        ),
        ("train: {max_steps: -1}", "train.max_steps: must be a whole number above 0 or null, got -1"),
        ("train: {recompute: maybe}", 'train.recompute: must be one of none, layers, auto, got "maybe"'),
        ("train: {recompute: 1}", "train.recompute: must be one of none, layers, auto, got 1"),
        (
            "train: {seed: -1}",
            "train.seed: must be a whole number of at least 0 and below 4294967296, got -1",
        ),
        ("optimizer: {learning_rate: fast}", 'optimizer.learning_rate: must be a number above 0, got "fast"'),
        ("optimizer: {learning_rate: 0}", "optimizer.learning_rate: must be a number above 0, got 0"),
        ("optimizer: {learning_rate: true}", "optimizer.learning_rate: must be a number above 0, got true"),
        (
            "optimizer: {weight_decay: .inf}",
            "optimizer.weight_decay: must be a number of at least 0, got Infinity",
        ),
        ("optimizer: {beta1: 1}", "optimizer.beta1: must be a number of at least 0 and below 1, got 1"),
        ("lora: {dropout: 1.0}", "lora.dropout: must be a number of at least 0 and below 1, got 1.0"),
        ("lora: {rank: 0}", "lora.rank: must be a whole number above 0, got 0"),
        ("lora: {alpha: 0}", "lora.alpha: must be a number above 0 or null, got 0"),
        (
            "lora: {targets: []}",
            "lora.targets: must be a non-empty list of strings, got an empty list",
        ),
        (
            "lora: true",
            "lora: must be a section with keys, got true; did you mean `lora.enabled`?",
        ),
        ("log: [1]", "log: must be a section with keys, got a list"),
        (
            "schedule: {type: cosin}",
            "schedule.type: must be one of cosine, linear, constant, wsd, "
            'got "cosin"; did you mean `cosine`?',
        ),
        ("train: {epochs: 1e300}", "train.epochs: must be a number above 0 and of at most 10000, got 1e+300"),
        ("schedule: {type: 3}", "schedule.type: must be one of cosine, linear, constant, wsd, got 3"),
        (
            "schedule: {warmup_ratio: 2}",
            "schedule.warmup_ratio: must be a number of at least 0 and of at most 1, got 2",
        ),
        ("data: {eval: 1}", "data.eval: must be a list of paths, got 1"),
        (
            "data: {eval: {path: a, weigth: 1}}",
            "data.eval[0].weigth: unknown key; did you mean `data.eval[0].weight`?",
        ),
        ("data: {eval: [a, 3]}", "data.eval[1]: must be a path, or a section with `path`, got 3"),
        ("data: {eval: ''}", 'data.eval[0].path: must be a non-empty string, got ""'),
        ("data: {eval: {path: a, weight: 0}}", "data.eval[0].weight: must be a number above 0, got 0"),
        (
            "optimizer: {groups: [{learning_rate_ratio: 1}]}",
            "optimizer.groups[0].match: is required: a non-empty string. "
            "fnmatch pattern over parameter names. The first matching group applies.",
        ),
        (
            "optimizer: {groups: [{match: a}, {match: b, weight_decay: x}]}",
            'optimizer.groups[1].weight_decay: must be a number of at least 0 or null, got "x"',
        ),
    ],
)
def test_invalid_values(write: Write, line: str, message: str) -> None:
    section, _, value = line.partition(": ")
    write("base.yaml", MINIMAL)
    assert problems(write("run.yaml", f"extends: base.yaml\n\n{line}\n")) == [f"run.yaml:3: {message}"]
    assert problems(Path("base.yaml"), f"{section}={value}") == [f"command line: {message}"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimizer.learnin_rate", "did you mean `optimizer.learning_rate`?"),
        ("learning_rate", "did you mean `optimizer.learning_rate`?"),
        ("train.learning_rate", "did you mean `optimizer.learning_rate`?"),
        ("learning_rte", "did you mean `optimizer.learning_rate`?"),
        ("optimiser", "did you mean `optimizer`?"),
        ("train.checkpoint", "did you mean `checkpoint`?"),
        ("rank", "did you mean `lora.rank`?"),
        ("lora_rnk", "did you mean `lora.rank`?"),
        ("train.save_every", "did you mean `checkpoint.save_every`?"),
        (
            "max_seq_len",
            f"did you mean `data.max_length`? {MAX_LENGTH}",
        ),
        (
            "data.cutoff_len",
            f"did you mean `data.max_length`? {MAX_LENGTH}",
        ),
        ("lora_rank", "did you mean `lora.rank`? Rank of each adapter."),
        (
            "optimizer.zzz",
            "allowed here: learning_rate, weight_decay, beta1, beta2, epsilon, max_grad_norm, "
            "router_learning_rate_ratio, groups",
        ),
        (
            "zzz",
            "allowed here: task, model, lora, data, loss, dpo, optimizer, schedule, train, eval, parallel, "
            "kernels, checkpoint, log",
        ),
    ],
)
def test_unknown_keys(write: Write, key: str, hint: str) -> None:
    assert problems(write("run.yaml", MINIMAL), f"{key}=1") == [f"command line: {key}: unknown key; {hint}"]


def test_unknown_key_of_a_list_item(write: Write) -> None:
    text = MINIMAL + "optimizer:\n  groups:\n  - match: a\n    learning_rate_rtio: 2\n    lr: 3\n"
    assert problems(write("run.yaml", text)) == [
        "run.yaml:7: optimizer.groups[0].learning_rate_rtio: unknown key; "
        "did you mean `optimizer.groups[0].learning_rate_ratio`?",
        "run.yaml:8: optimizer.groups[0].lr: unknown key; "
        "allowed here: match, learning_rate_ratio, weight_decay",
    ]


def test_missing_keys(write: Write) -> None:
    model, output = problems(write("run.yaml", "\nlog:\n  every: 1\ntrain:\n  epochs: 1\ndata: {train: a}\n"))
    assert model.startswith("run.yaml:1: model.path: is required: a non-empty string. Directory of the")
    assert output.startswith("run.yaml:4: train.output_dir: is required: a non-empty string. Directory")


def test_malformed_overrides(write: Write) -> None:
    path = write("run.yaml", MINIMAL)
    example = "is not KEY=VALUE, such as optimizer.learning_rate=1e-4"
    assert problems(path, "log.every") == [f"command line: 'log.every' {example}"]
    assert problems(path, "=3") == [f"command line: '=3' {example}"]
    assert problems(path, "log..every=3") == [f"command line: 'log..every=3' {example}"]
    assert problems(path, "log.every=[1") == ["command line: log.every: its value is not valid YAML: [1"]
    assert problems(path, "model.path.x=3") == [
        "command line: model.path: must be a non-empty string, got a mapping"
    ]


EVALUATED = """\
model: {path: m}
data: {train: a.jsonl, eval: b.jsonl}
train: {output_dir: out, eval_every: 5}
eval:
  best_metric: METRIC
"""


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("exact_match", "must be one of eval/loss, eval/rewards/accuracy, .*got exact_match; "
         "did you mean `eval/exact_match`[?]"),
        ("eval/rouge", "must be one of .*eval/call_none, got eval/rouge; did you mean `eval/rouge_l`[?]"),
        ("accuracy of the model", "must be one of .*, eval/call_none, got accuracy of the model$"),
        ("eval/rouge_l", "eval/rouge_l needs generated answers; set eval.samples, for example to 50"),
        ("eval/rewards/margin", "eval/rewards/margin is only available with task dpo; use eval/loss"),
    ],
)  # fmt: skip
def test_invalid_best_metric(write: Write, metric: str, message: str) -> None:
    (problem,) = problems(write("run.yaml", EVALUATED.replace("METRIC", metric)))
    assert re.search(f"^run.yaml:5: eval.best_metric: {message}", problem), problem


def test_names_of_metrics_are_checked(write: Write) -> None:
    text = EVALUATED.replace("METRIC", "eval/loss") + "  samples: 4\n  metrics: [auto, rouge]\n"
    (problem,) = problems(write("run.yaml", text))
    assert problem.startswith("run.yaml:7: eval.metrics[1]: must be one of auto, exact_match, ")
    assert problem.endswith('got "rouge"; did you mean `rouge_l`?')
    (problem,) = problems(write("run.yaml", text.replace("[auto, rouge]", "3")))
    assert problem == "run.yaml:7: eval.metrics: must be a non-empty list of strings, got 3"
    config = load_config(write("run.yaml", text.replace("[auto, rouge]", "anls")))
    assert config.eval.metrics == ["anls"]
