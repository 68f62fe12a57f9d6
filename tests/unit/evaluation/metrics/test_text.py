from __future__ import annotations

import random
from itertools import pairwise

import pytest

from erniekit.evaluation.metrics.text import (
    accepted_answers,
    anls,
    edit_distance,
    longest_common_subsequence,
    normalized_match,
    rouge_l,
    token_f1,
)
from erniekit.evaluation.metrics.words import normalize, tokens, words


def wide(text: str) -> str:
    """ASCII in its full-width forms."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's hat, and AN apple!", "cats hat and apple"),
        (wide("Hello,") + "世界" + wide("!"), "hello世界"),
        ("  \n", ""),
        ("$1,234.50", "1234.50"),
        ("\u22123.5 at 12:30, 3/4.", "-3.5 at 12:30 3/4"),
        ("well-known a-b", "wellknown ab"),
        ("+", "+"),
        ("...", "..."),
        ("Straße", "strasse"),
        ("theatre another", "theatre another"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_words_and_tokens_take_chinese_by_character() -> None:
    assert words("A cat: 两只猫 and 3.5kg, can't") == [
        "a",
        "cat",
        "两",
        "只",
        "猫",
        "and",
        "3",
        "5kg",
        "can",
        "t",
    ]
    assert tokens("A cat: 两只猫, 3.5") == ["cat", "两", "只", "猫", "3.5"]
    assert tokens("안녕하세요 세계") == ["안녕하세요", "세계"]
    assert words("") == tokens("") == words("!?") == []


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the Number is SEVEN", "Number is seven.", 1),
        ("七。", "七", 1),
        (wide("3.5"), "3.5", 1),
        ("35", "3.5", 0),
        ("-5", "5", 0),
        ("+", "-", 0),
        ("", "", 1),
        ("", "seven", 0),
    ],
)
def test_normalized_match(answer: str, reference: str, expected: float) -> None:
    assert normalized_match(answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("a red circle", "the circle is red", 2 * 2 / 5),
        ("cat cat cat", "cat", 2 * 1 / 4),
        ("北京市", "北京", 2 * 2 / 5),
        ("Paris", "Rome", 0),
        ("", "", 1),
        ("", "Rome", 0),
        ("the", "", 0),
    ],
)
def test_token_f1(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        # The example of section 3.1 of the paper: 3 of 4 words in order, then only 2.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("今天天气好", "今天的天气很好", 2 * 5 / 12),
        ("", "", 1),
        ("one", "", 0),
        ("!", "one", 0),
    ],
)
def test_rouge_l(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Hello World", "hello  wrld", 1 - 1 / 11),
        ("abcd", "abxy", 0),  # half of it is wrong: 0 from there on
        ("abcde", "abxyz", 0),
        ("abcde", "abcxy", 1 - 2 / 5),
        (wide("No.") + "5", "no.5", 1),
        ("北京", "北京市", 1 - 1 / 3),
        ("", "", 1),
        ("", "a", 0),
        ("dollars 5", '["five", "$5", "Dollars 5"]', 1),
        ("five", '["six"', 0),
    ],
)
def test_anls(answer: str, reference: str, expected: float) -> None:
    assert anls(answer, reference) == pytest.approx(expected)


def test_accepted_answers_are_lists_of_texts_only() -> None:
    assert accepted_answers(' ["a", "b"]') == ["a", "b"]
    for text in ("[]", "[1, 2]", '["a", 1]', "[", "a", "[" * 100_000):
        assert accepted_answers(text) == [text]


def _edit_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for number, item in enumerate(first, 1):
        below = [number]
        for place, (corner, above) in enumerate(pairwise(row)):
            below.append(min(above + 1, below[-1] + 1, corner + (item != second[place])))
        row = below
    return row[-1]


def _common(first: str, second: str) -> int:
    row = [0] * (len(second) + 1)
    for item in first:
        below = [0]
        for place, (corner, above) in enumerate(pairwise(row)):
            below.append(corner + 1 if item == second[place] else max(above, below[-1]))
        row = below
    return row[-1]


def test_bits_give_what_the_tables_give() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        first, second = ("".join(rng.choices("abc数", k=rng.randrange(14))) for _ in range(2))
        assert edit_distance(first, second) == _edit_distance(first, second), (first, second)
        assert longest_common_subsequence(first, second) == _common(first, second), (first, second)
    long = "".join(rng.choices("abcdefgh ", k=200))
    other = "".join(rng.choices("abcdefgh ", k=170))
    assert edit_distance(long, other) == edit_distance(other, long) == _edit_distance(long, other)
    assert longest_common_subsequence(long, other) == _common(long, other)
