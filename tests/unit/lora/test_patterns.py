"""Patterns over module names: matched as PEFT does, and refused where matching may take for ever."""

import re
from pathlib import Path

import pytest

from erniekit.errors import CheckpointError
from erniekit.lora import patterns
from erniekit.lora.patterns import ModulePatterns, read_patterns

FILE = Path("adapter_config.json")
NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.q_proj",
    "model.layers.1.mlp.experts.3.gate_proj",
    "model.layers.1.mlp.shared_experts.gate_proj",
    "q_proj",
    "xq_proj",
    "",
]


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj"],
        ["layers.1.mlp.experts.3.gate_proj", "gate_proj"],
        ["gate_proj", "layers.1.mlp.experts.3.gate_proj"],
        [r"layers\.\d+\.self_attn\.q_proj", "q_proj"],
        ["q_proj", r"layers\.\d+\.self_attn\.q_proj"],
        [r".*experts\.[0-9]+\.(gate|up)_proj", ".*proj"],
        [r"layers\.1\.mlp\.shared_experts\.gate_proj(\.weight)?"],
        ["^model.layers.0.self_attn.q_proj$"],
        [r"layers\.(?:0|1|10)\..*"],
        [],
    ],
    ids=str,
)
def test_the_first_match_counts_as_in_peft(keys: list[str]) -> None:
    values = {key: float(number) for number, key in enumerate(keys, 1)}
    found = ModulePatterns(FILE, "alpha_pattern", values)
    for name in NAMES:
        peft = next((values[key] for key in keys if re.match(rf"(.*\.)?({key})$", name)), 0.5)
        assert found.value(name, 0.5) == peft


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(.*)*",
        "a?" * 12 + "a" * 12,
        "(a|a)" * 12,
        ".*.*.*x",
        r"(a)\1",
        "(?=a+)b",
        "(ab){2,}",
        "(?P<x>a)(?(x)b|c)",
        "a" * 2000 + "?",
    ],
)
def test_patterns_that_may_take_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match=r"alpha_pattern: .* may take very long to match"):
        read_patterns(FILE, {"alpha_pattern": {pattern: 1}}, "alpha_pattern")


@pytest.mark.parametrize(
    "found", [[1], "a", {"a": "1"}, {"a": True}, {"a": 0}, {"a": float("nan")}, {"a": -1}]
)
def test_values_that_are_no_numbers(found: object) -> None:
    with pytest.raises(CheckpointError, match="rank_pattern must be an object of numbers above 0"):
        read_patterns(FILE, {"rank_pattern": found}, "rank_pattern")


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?<n>a)", "a)|(b"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(CheckpointError, match="is not a valid pattern"):
        read_patterns(FILE, {"rank_pattern": {pattern: 1}}, "rank_pattern")


def test_steps_over_all_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_MOST_STEPS", 10_000)
    found = ModulePatterns(FILE, "alpha_pattern", {f".*.*{number}x": 1.0 for number in range(3)})
    with pytest.raises(CheckpointError, match="alpha_pattern: matching takes too long; write names"):
        for name in NAMES * 10:
            found.value(name, 1.0)
