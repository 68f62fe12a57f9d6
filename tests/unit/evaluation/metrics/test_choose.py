from __future__ import annotations

import pytest

from erniekit.config.choices import METRICS
from erniekit.errors import ConfigError
from erniekit.evaluation.metrics.choose import (
    FUNCTIONS,
    Pair,
    References,
    choose,
    judge,
    parse_names,
    score,
)
from erniekit.generation.answer import Answer, ToolCall

CALL = ToolCall("f", {}, "", None)
TOOL = {"type": "function", "function": {"name": "f"}}
CALLS = {"call_name", "call_arguments", "call_valid", "call_match"}
SENTENCE = "The garden has ninety-six square metres."


def references(*texts: str, calls: int = 0, has_tools: bool = False) -> References:
    found = References()
    for text in texts:
        found.add(Answer("", text, ()), has_tools)
    for _ in range(calls):
        found.add(Answer("", "", (CALL,)), True)
    return found


def test_the_metrics_of_the_configuration_are_computed() -> None:
    assert tuple(FUNCTIONS) == METRICS


@pytest.mark.parametrize(
    ("source", "metrics"),
    [
        (references("Red.", "The number is 7."), set()),
        (references("7", "1,000 km", "50%"), {"numeric_match"}),
        (references("7", "seven"), set()),
        (references("{}", '[{"a": 1}]'), {"json_valid", "json_equal"}),
        (references('[{"bbox_2d": [1, 2, 3, 4]}]', "<|LOC_1|><|LOC_2|><|LOC_3|><|LOC_4|>"), {"box_iou", "box_iou_50"}),
        (references(SENTENCE, SENTENCE, "Red."), {"token_f1", "rouge_l"}),
        (references("花园有九十六平方米。"), {"token_f1", "rouge_l"}),
        (references(calls=2), CALLS),
        (references("Red.", calls=1, has_tools=True), CALLS | {"call_none"}),
        (references("Red.", has_tools=True), {"call_none"}),
        (references(), set()),
    ],
)  # fmt: skip
def test_auto_takes_what_fits_the_references(source: References, metrics: set[str]) -> None:
    chosen = choose(["auto"], [source])
    assert set(chosen) == {"exact_match"} | metrics
    assert list(chosen) == [name for name in METRICS if name in chosen]


def test_a_metric_that_fits_one_source_is_taken_and_named_ones_are_added() -> None:
    sources = [references("7"), references("Red.")]
    assert choose(["auto"], sources) == ("exact_match", "numeric_match")
    assert choose(["anls"], sources) == ("exact_match", "anls")
    assert choose(["anls", "auto"], sources) == ("exact_match", "anls", "numeric_match")


def test_names_are_parsed_and_unknown_ones_refused() -> None:
    assert parse_names(["auto, anls", "anls,rouge_l"]) == ("auto", "anls", "rouge_l")
    with pytest.raises(
        ConfigError, match=r'unknown metric "rouge": choose from exact_match, .*did you mean "rouge_l"'
    ):
        parse_names(["rouge"])
    with pytest.raises(ConfigError, match='unknown metric ""'):
        parse_names(["anls,"])


def test_metrics_see_the_text_the_calls_and_the_tools() -> None:
    reference = Answer("long thoughts", "seven", ())
    pair = Pair(Answer("other thoughts", "Seven!", ()), reference, False, (TOOL,))
    scores = score(pair, list(METRICS))
    assert {
        name: scores[name] for name in ("exact_match", "normalized_match", "call_none", "json_valid")
    } == {
        "exact_match": 0,
        "normalized_match": 1,
        "call_none": 1,
        "json_valid": 0,
    }
    assert not {"numeric_match", "json_equal", "box_iou", "call_name"} & scores.keys()
    calls = Pair(Answer("", "", (CALL,)), Answer("", "", (CALL,)), True, (TOOL,))
    assert score(calls, list(METRICS)) == dict.fromkeys(
        ("exact_match", "call_name", "call_arguments", "call_valid", "call_match"), 1.0
    )


LONG = Answer("", "The picture shows a red circle on white.", ())


@pytest.mark.parametrize(
    ("scores", "reference", "verdict"),
    [
        ({"exact_match": 0, "numeric_match": 1}, Answer("", "7", ()), "right"),
        ({"exact_match": 0, "numeric_match": 0}, Answer("", "7", ()), "wrong"),
        ({"exact_match": 0}, Answer("", "seven", ()), "wrong"),
        ({"exact_match": 0, "token_f1": 0.1, "rouge_l": 0.1}, LONG, "differs"),
        ({"exact_match": 1, "token_f1": 1}, LONG, "right"),
        ({"exact_match": 0, "box_iou_50": 0.5}, LONG, "wrong"),
        ({"exact_match": 0, "call_none": 1}, LONG, "differs"),
        ({"exact_match": 0, "call_none": 0}, LONG, "wrong"),
        # The order of arguments makes no difference, which only call_match knows.
        ({"exact_match": 0}, Answer("", "", (CALL,)), "differs"),
        ({"exact_match": 0, "call_match": 0}, Answer("", "", (CALL,)), "wrong"),
        ({}, LONG, "differs"),
    ],
)
def test_only_a_metric_that_can_say_so_calls_an_answer_wrong(
    scores: dict[str, float], reference: Answer, verdict: str
) -> None:
    assert judge(scores, reference) == verdict
