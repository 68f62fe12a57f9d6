from __future__ import annotations

import pytest

from erniekit.evaluation.metrics.numeric import last_number, numeric_match, parse_number


def wide(text: str) -> str:
    """ASCII in its full-width forms."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        (" 1,234.5 ", 1234.5),
        ("12,345,678", 12345678),
        ("-3", -3),
        ("\u22123", -3),
        ("+.5", 0.5),
        ("1.5e-3", 0.0015),
        ("50%", 0.5),
        (wide("50%"), 0.5),
        ("5 percent", 0.05),
        ("3‰", 0.003),
        ("3/4", 0.75),
        ("1 1/2", 1.5),
        ("1½", 1.5),
        ("½", 0.5),
        ("-3/4", -0.75),
        ("3 million", 3e6),
        ("1.2亿", 1.2e8),
        ("3万元", 3e4),
        ("$5", 5),
        ("-€ 1,000", -1000),
        ("12 km", 12),
        ("12 US dollars.", 12),
        ("5 m/s²", 5),
        ("20°C", 20),
        ("5元", 5),
        ("9 kg.", 9),
        ("7.", 7),
    ],
)
def test_a_number_and_its_unit(text: str, value: float) -> None:
    assert parse_number(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "seven", "The number is 7.", "5-3", "2024-05-01", "3 4", "1,2", "7 is the answer", "1/0", "A4", "1:2", "七"],
)  # fmt: skip
def test_what_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 = 7.", 7),
        ("It is GPT4, v1.2.3: 10-20", 20),
        ("共有5个苹果", 5),
        ("the temperature fell to -4.5 degrees", -4.5),
        ("\\boxed{1,234}", 1234),
        ("about 25%, I think", 0.25),
        ("none", None),
        ("", None),
        ("7/0", None),
    ],
)
def test_the_last_number_of_a_text(text: str, value: float | None) -> None:
    assert last_number(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("7", "7.0", 1),
        ("The answer is 42.", "42", 1),
        ("42, not 43", "42", 0),
        ("0.5", "50%", 1),
        ("50", "50%", 0),
        ("0.3333333", "1/3", 1),
        ("0.33333", "1/3", 0),
        ("1,000 km", "1000 km", 1),
        ("0", "0", 1),
        ("1e-9", "0", 0),
        ("9" * 500, "9" * 500, 1),
        ("", "3", 0),
        ("three", "3", 0),
        ("7", "seven", None),
        ("7", "", None),
    ],
)
def test_numeric_match(answer: str, reference: str, expected: float | None) -> None:
    assert numeric_match(answer, reference) == expected


def test_the_tolerance_is_relative() -> None:
    assert numeric_match("1000001", "1000000") == 1
    assert numeric_match("1000002", "1000000") == 0
    assert numeric_match("104", "100", tolerance=0.05) == 1
