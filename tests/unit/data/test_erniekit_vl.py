from pathlib import Path
from typing import Any

import pytest

from erniekit.data.conversation import Conversation, ImagePart, SampleError, TextPart
from erniekit.data.formats import parse_record
from tests.unit.data.helpers import data_uri, encoded, noise


def parse(**record: Any) -> Conversation:
    return parse_record(record, format="auto", base_dir=Path("/data"), sample_id="f.jsonl:7")


def texts(*items: str) -> list[dict[str, Any]]:
    """The user's and the assistant's by turns."""
    return [{"text": text, "tag": ("mask", "no_mask")[n % 2]} for n, text in enumerate(items)]


def test_pictures_stand_before_the_text_of_their_index() -> None:
    images = [
        {"image_url": "1.jpg", "matched_text_index": 2, "image_width": 3, "image_height": 3},
        {"image_url": "2.jpg"},
        {"image_url": data_uri(noise(8, 8)), "matched_text_index": 2},
    ]
    found = parse(text_info=texts("q", "a", "r", "b"), image_info=images)
    assert [m.role for m in found.messages] == ["user", "assistant"] * 2
    assert [m.trained for m in found.messages] == [False, True] * 2
    assert found.messages[0].parts == (ImagePart("/data/2.jpg"), TextPart("q"))
    assert found.messages[2].parts == (
        ImagePart("/data/1.jpg"),
        ImagePart(encoded(noise(8, 8))),
        TextPart("r"),
    )


def test_label_0_takes_the_loss_away() -> None:
    items = texts("q", "a", "r", "b")
    items[1]["label"] = 0
    assert [m.trained for m in parse(text_info=items).messages] == [False, False, False, True]


def test_system_prompt_with_and_without_the_filler_after_it() -> None:
    system = {"text": "be brief", "tag": "mask"}
    with_filler = parse(text_info=texts("be brief", "", "q", "a"), is_system=1, image_info=[
        {"image_url": "1.jpg", "matched_text_index": 2}
    ])  # fmt: skip
    without = parse(text_info=[system, *texts("q", "a")], is_system=1, image_info=[
        {"image_url": "1.jpg", "matched_text_index": 1}
    ])  # fmt: skip
    assert with_filler == without
    assert [m.role for m in without.messages] == ["system", "user", "assistant"]
    assert without.messages[1].parts == (ImagePart("/data/1.jpg"), TextPart("q"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"text_info": []}, "at least one text"),
    (
        {"text_info": [{"text": None, "tag": "mask"}]},
        r'text_info\[0\] must be an object whose "text" is a string',
    ),
    ({"text_info": [{"text": "q", "tag": "user"}]}, '"tag" must be'),
    ({"text_info": [{"text": "q", "tag": "no_mask"}]}, "tags must alternate"),
    ({"text_info": texts("q") * 2}, r"text_info\[1\]: tags must alternate"),
    ({"text_info": texts("q", "")}, "answer is empty"),
    ({"text_info": texts("q", "a"), "image_info": "x"}, '"image_info" must be a list'),
    (
        {"text_info": texts("q", "a"), "image_info": [{}]},
        r'image_info\[0\] must be an object with "image_url"',
    ),
    (
        {"text_info": texts("q", "a"), "image_info": [{"image_url": "1", "matched_text_index": 2}]},
        "must be 0 to 1",
    ),
    (
        {"text_info": texts("q", "a"), "image_info": [{"image_url": "1", "matched_text_index": 1}]},
        "not a user's text",
    ),
    (
        {"text_info": texts("s", "", "q", "a"), "is_system": 1, "image_info": [{"image_url": "1"}]},
        r"text_info\[0\] is not a user's text",
    ),
    ({"text_info": texts("q", "a"), "image_info": [{"image_url": "http://x/1.png"}]}, "not fetched"),
    (
        {"text_info": texts("q", "a"), "image_info": [{"image_url": "1", "image_type": "video"}]},
        "not supported yet",
    ),
    (
        {"text_info": texts("q", "a"), "video_info": [{"image_url": "1.mp4"}]},
        '"video_info" is not supported yet',
    ),
    ({"text_info": texts("q", "a"), "tools": [{}]}, '"tools" is not supported yet'),
    (
        {"text_info": [{"text": "q", "tag": "mask", "tool_response": 1}]},
        '"tool_response" is not supported yet',
    ),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_say_what_is_wrong_and_where(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(**record)
    assert str(caught.value).startswith("f.jsonl:7: ")
