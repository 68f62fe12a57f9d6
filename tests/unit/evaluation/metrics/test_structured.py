from __future__ import annotations

import pytest

from erniekit.evaluation.metrics.structured import is_json, json_equal, json_valid


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": 1}', 1),
        (" [1, 2]\n", 1),
        ("7", 1),
        ('"数"', 1),
        ('```json\n{"a": 1}\n```', 1),
        ("```\n[]\n```\n", 1),
        ("", 0),
        ("{'a': 1}", 0),
        ('{"a": NaN}', 0),
        ('{"a": 1} or so', 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_valid(answer: str, valid: float) -> None:
    assert json_valid(answer) == valid


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ('{"b": [1, "x"], "a": null}', '{"a": null, "b": [1.0, "x"]}', 1),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": 1}', '{"a": "1"}', 0),
        ("[1, 2]", "[2, 1]", 0),
        ("[1]", "[1, 1]", 0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 0),
        ('{"数": "\\u6570"}', '{"数": "数"}', 1),
        ("no", "[]", 0),
        ("[]", "[]", 1),
        ("7", "7", None),
        ('"x"', '"x"', None),
        ("{}", "a text", None),
        ("{}", "", None),
    ],
)
def test_json_equal(answer: str, reference: str, expected: float | None) -> None:
    assert json_equal(answer, reference) == expected


def test_only_objects_and_arrays_make_a_text_json() -> None:
    assert is_json("{}") and is_json("[3]")
    assert not any(map(is_json, ("3", "true", '"a"', "", "{")))
