"""Which format a record is taken for."""

from typing import Any

import pytest

from erniekit.config.choices import FORMATS
from erniekit.data.chat.conversation import SampleError
from erniekit.data.formats import detect, parse_record
from erniekit.errors import DataError
from tests.unit.data.formats.parsing import outline, parse


@pytest.mark.parametrize(
    ("keys", "format"),
    [
        ("messages", "messages"),
        ("messages prompt prompt_id", "messages"),
        ("chosen rejected", "messages"),
        ("conversations id image", "sharegpt"),
        ("conversations chosen rejected", "sharegpt"),
        ("text_info image_info", "erniekit"),
        ("src tgt", "erniekit"),
        ("src tgt response sort", "erniekit"),
        ("tgt", "erniekit"),
        ("instruction input output", "alpaca"),
        ("instruction input output text", "alpaca"),
        ("question chosen rejected", "alpaca"),
        ("query response", "query_response"),
        ("prompt completion", "query_response"),
        ("question answer", "query_response"),
        ("prompt response", "query_response"),
        ("prompt chosen rejected", "query_response"),
        ("text", "text"),
        ("text title url", "text"),
        ("input output", None),
        ("prompt", None),
        ("", None),
    ],
)
def test_the_format_by_keys(keys: str, format: str | None) -> None:
    assert detect(dict.fromkeys(keys.split(), "x")) == format


def test_keys_without_a_value_count_last() -> None:
    assert detect({"messages": None, "conversations": [], "instruction": "x"}) == "sharegpt"
    assert detect({"messages": None, "text": "x"}) == "text"
    assert detect({"messages": None, "other": 1}) == "messages"
    for record in (None, 3, "x", []):
        assert detect(record) is None


def test_a_named_format_takes_its_own_keys_of_several() -> None:
    record = {"text": "t", "instruction": "q", "output": "a"}
    assert outline(parse(record).messages)[0] == ("user", "q", False)
    assert outline(parse(record, "text").messages) == [("text", "t", True)]


def test_an_unknown_format_is_not_about_the_sample() -> None:
    with pytest.raises(
        DataError, match=r'unknown data format "chatml": it must be auto, messages, '
    ) as caught:
        parse({"messages": []}, "chatml")
    assert not isinstance(caught.value, SampleError)


@pytest.mark.parametrize("format", ["auto", *FORMATS])
@pytest.mark.parametrize("record", [None, True, 3, 0.5, "x", []])
def test_a_record_must_be_an_object(record: Any, format: str) -> None:
    with pytest.raises(SampleError, match=r"f\.jsonl:7: a sample must be a JSON object, this is ") as caught:
        parse(record, format)
    assert caught.value.reason == "bad record"


def test_plain_text() -> None:
    assert outline(parse({"text": " as it\n stands "}).messages) == [("text", " as it\n stands ", True)]
    for wrong in ("", None, 3):
        with pytest.raises(SampleError):
            parse({"text": wrong})


def test_the_keys_in_an_error_are_cut(tmp_path: Any) -> None:
    record = {f"{number}{'x' * 1000}": 1 for number in range(1000)}
    with pytest.raises(SampleError, match='found: "0xx') as caught:
        parse_record(record, format="auto", base_dir=tmp_path, sample_id="f:1")
    assert len(str(caught.value)) < 2000
