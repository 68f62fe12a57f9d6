from typing import Any

import pytest

from erniekit.data.chat.conversation import SampleError
from tests.unit.data.formats.parsing import outline, parse


def test_turns_labels_and_system() -> None:
    found = parse({"src": ["q", " r"], "tgt": ["a", "b "], "label": [0, 1], "system": "s", "tools": "[]"})
    assert outline(found.messages) == [
        ("system", "s", False),
        ("user", "q", False),
        ("assistant", "a", False),
        ("user", " r", False),
        ("assistant", "b ", True),
    ]
    assert outline(parse({"src": "<image>?", "tgt": "a"}).messages) == [
        ("user", "<image>?", False),
        ("assistant", "a", True),
    ]


def test_is_system_makes_the_first_text_the_system_message() -> None:
    for filler in ("", "ok"):
        found = parse({"src": ["s", "q"], "tgt": [filler, "a"], "is_system": 1})
        assert outline(found.messages) == [
            ("system", "s", False),
            ("user", "q", False),
            ("assistant", "a", True),
        ]
    assert len(parse({"src": ["s", "q"], "tgt": ["x", "a"], "is_system": 0}).messages) == 4


@pytest.mark.parametrize(
    "record", [{"tgt": ["one. "]}, {"tgt": "one. "}, {"src": None, "tgt": ["one", ". "]}]
)
def test_text_for_pretraining(record: Any) -> None:
    assert outline(parse(record).messages) == [("text", "one. ", True)]
    assert parse({"text": "one. "}, "erniekit") == parse({"text": "one. "}) == parse(record)


def pair(**keys: Any) -> dict[str, Any]:
    return {"src": ["q"], "tgt": [], "response": [["good"], ["bad"]], "sort": [1, 0], **keys}


@pytest.mark.parametrize(
    ("sort", "chosen"), [([1, 0], "good"), ([0, 1], "bad"), ([-2, -1], "bad"), ([5, 3], "good")]
)
def test_the_larger_rank_is_chosen(sort: list[int], chosen: str) -> None:
    found = parse(pair(sort=sort))
    assert outline(found.messages) == [("user", "q", False), ("assistant", chosen, True)]
    assert outline(found.rejected) == [("assistant", {"good": "bad", "bad": "good"}[chosen], True)]


def test_pairs_of_several_turns() -> None:
    found = parse(
        pair(
            src=["s", "q", "r"],
            tgt=["", "a"],
            is_system=1,
            response=[["one", "more?", "two"], "bad"],
        )
    )
    assert outline(found.messages) == [
        ("system", "s", False),
        ("user", "q", False),
        ("assistant", "a", False),
        ("user", "r", False),
        ("assistant", "one", True),
        ("user", "more?", False),
        ("assistant", "two", True),
    ]
    assert outline(found.rejected) == [("assistant", "bad", True)]
    without = pair()
    del without["tgt"]
    assert parse({**without, "system": "s"}).messages[0].role == "system"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"src": ["q", "r"], "tgt": ["a"]}, '"src" has 2 texts and "tgt" 1'),
    ({"src": ["q"]}, '"tgt" must be a string or a list of strings, not null'),
    ({"src": {"q": 1}, "tgt": ["a"]}, '"src" must be a string or a list of strings, not an object'),
    ({"src": ["q", None], "tgt": ["a", "b"]}, '"src" must be .* not an array with other values'),
    ({"src": ["q", "r"], "tgt": ["a", ""]}, r"tgt\[1\] is empty"),
    ({"src": [""], "tgt": ["a"]}, r"src\[0\] is empty"),
    ({"src": ["q"], "tgt": ["a"], "label": [1, 1]}, '"label" must be a list of 1 numbers.* not a list of 2'),
    ({"src": ["q"], "tgt": ["a"], "label": 1}, '"label" must be a list of 1 numbers.* not a number'),
    ({"src": ["q"], "tgt": ["a"], "label": ["1"]}, r"label\[0\] must be 0 or 1, not '1'"),
    ({"src": ["q"], "tgt": ["a"], "is_system": 2}, '"is_system" must be 0 or 1, not 2'),
    ({"src": ["s", "q"], "tgt": ["", "a"], "is_system": 1, "system": "t"}, "two different system messages"),
    ({"src": ["q"], "tgt": ["a"], "images": ["1.png"]}, '"images" together with "src"'),
    ({"tgt": None}, '"text" must be a string'),
    ({"tgt": [""]}, "the text is empty"),
    ({"tgt": 3}, '"tgt" must be a string or a list of strings, not a number'),
    (pair(tgt=["a"]), '"tgt" has one text less than "src"; here 1 and 1'),
    (pair(response=[["a"]]), "list of two candidates, here is 1"),
    (pair(response="ab"), "list of two candidates, here is a string"),
    (pair(response=None), "list of two candidates, here is null"),
    (pair(response=[["a"], ["b", "q"]]), r"response\[1\] must be a string or an odd number .* 2 of them"),
    (pair(response=[["a"], []]), r"response\[1\] must be a string or an odd number"),
    (pair(response=[["a"], [""]]), r"response\[1\]\[0\] must be a string that is not empty"),
    (pair(response=[["a"], [3]]), r"response\[1\]\[0\] must be a string that is not empty, not a number"),
    (pair(response=["a", "a"]), "the same"),
    (pair(sort=[1, 1]), r"must differ.* \[1, 1\]"),
    (pair(sort=[1]), '"sort" must be two numbers'),
    (pair(sort=["a", "b"]), '"sort" must be two numbers'),
    (pair(sort=None), '"sort" must be two numbers'),
    (pair(src=["s"], is_system=1), "must be a user's or a tool's; the last is the system's"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_say_what_is_wrong_and_where(record: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(record)
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert caught.value.reason == "bad record"
