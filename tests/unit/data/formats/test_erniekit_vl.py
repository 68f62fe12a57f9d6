import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    SampleError,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.formats import parse_record
from tests.unit.data.helpers import data_uri, encoded, noise


def parse(**record: Any) -> Conversation:
    return parse_record(record, format="auto", base_dir=Path("/data"), sample_id="f.jsonl:7")


def texts(*items: str) -> list[dict[str, Any]]:
    """The user's and the assistant's by turns."""
    return [{"text": text, "tag": ("mask", "no_mask")[n % 2]} for n, text in enumerate(items)]


def test_images_stand_before_the_text_of_their_index() -> None:
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


def test_videos_and_frames_that_were_taken_out_of_them() -> None:
    videos = [
        {"image_url": "1.mp4", "matched_text_index": 0},
        {"image_url": "2.mp4", "matched_text_index": 2},
    ]
    found = parse(text_info=texts("q", "a", "r", "b"), video_info=videos)
    assert found.messages[0].parts == (VideoPart("/data/1.mp4"), TextPart("q"))
    assert found.messages[2].parts == (VideoPart("/data/2.mp4"), TextPart("r"))
    frames = [
        {"image_url": f"{name}.png", "image_type": "video", "video_uid": uid}
        for name, uid in (("a", "v"), ("b", "v"), ("c", "w"), ("d", "v"))
    ]
    found = parse(
        text_info=texts("q", "a"), image_info=[*frames, {"image_url": "e.png", "image_type": "image"}]
    )
    assert found.messages[0].parts == (
        VideoPart(("/data/a.png", "/data/b.png", "/data/d.png")),
        VideoPart(("/data/c.png",)),
        ImagePart("/data/e.png"),
        TextPart("q"),
    )


def test_order_says_where_media_stand() -> None:
    order = {
        "type": ["video", "image", "text", "text", "image", "text", "text"],
        "index": [0, 1, 0, 1, 0, 2, 3],
    }
    found = parse(
        text_info=texts("q", "a", "r", "b"),
        image_info=[{"image_url": "1.png"}, {"image_url": "2.png"}],
        video_info=[{"image_url": "1.mp4"}],
        order=order,
    )
    assert found.messages[0].parts == (VideoPart("/data/1.mp4"), ImagePart("/data/2.png"), TextPart("q"))
    assert found.messages[2].parts == (ImagePart("/data/1.png"), TextPart("r"))


CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "猫"}}}


def test_tools_calls_and_results() -> None:
    tool = {"name": "look_up", "parameters": {}}
    items = [
        {"text": "What is 猫?", "tag": "mask"},
        {"text": "", "tag": "no_mask", "tool_calls": [CALL, {"name": "look_up", "arguments": "{ }"}]},
        {"text": {"猫": "cat"}, "tag": "mask", "tool_response": 1},
        {"text": "", "tag": "mask", "tool_response": {"none": True}},
        {"text": "A cat.", "tag": "no_mask"},
    ]
    found = parse(text_info=items, tools=json.dumps([tool]))
    assert found.tools == ({"type": "function", "function": tool},)
    assert [m.role for m in found.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert found.messages[1].parts == (
        ToolCallPart("look_up", '{"word": "猫"}'),
        ToolCallPart("look_up", "{ }"),
    )
    assert found.messages[2].parts == (TextPart('{"猫": "cat"}'),)
    assert found.messages[3].parts == (TextPart('{"none": true}'),)
    assert [m.trained for m in found.messages] == [False, True, False, False, True]
    text = {"text": "Let me see.", "tag": "no_mask", "tool_calls": json.dumps(CALL)}
    both = parse(text_info=[items[0], text, items[2], items[4]]).messages[1]
    assert both.parts == (TextPart("Let me see."), ToolCallPart("look_up", '{"word": "猫"}'))


def test_a_literal_mark_stays_text() -> None:
    assert parse(text_info=texts("<image>?", "a")).messages[0].parts == (TextPart("<image>?"),)


def order(types: str, *indices: Any) -> dict[str, Any]:
    names = {"t": "text", "i": "image", "v": "video"}
    return {
        "text_info": texts("q", "a"),
        "image_info": [{"image_url": "1"}],
        "order": {"type": [names.get(letter, letter) for letter in types], "index": list(indices)},
    }


FRAME = {"image_url": "1", "image_type": "video"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"text_info": []}, "at least one text, not an empty array"),
    ({"text_info": [3]}, r'text_info\[0\] must be an object with "text" and "tag"'),
    ({"text_info": [{"text": None, "tag": "mask"}]}, r'text_info\[0\]: "text" must be a string, not null'),
    ({"text_info": [{"text": "q", "tag": "user"}]}, '"tag" must be'),
    ({"text_info": [{"text": "q", "tag": "no_mask"}]}, "tags must alternate"),
    ({"text_info": texts("q") * 2}, r"text_info\[1\]: tags must alternate"),
    ({"text_info": texts("q", "")}, "answer is empty"),
    ({"text_info": texts("q", "a"), "is_system": "yes"}, "\"is_system\" must be 0 or 1, not 'yes'"),
    ({"text_info": [*texts("q"), {"text": "a", "tag": "no_mask", "label": 2}]}, '"label" must be 0 or 1'),
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
        {"text_info": texts("q", "a"), "image_info": [{"image_url": "1", "matched_text_index": "0"}]},
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
    (
        {"text_info": texts("q", "a"), "image_info": [{"image_url": "http://x/1.png"}]},
        r"image_info\[0\]: .*allow_urls",
    ),
    (
        {"text_info": texts("q", "a"), "image_info": [{"image_url": "1", "image_type": "x"}]},
        "image_type must be",
    ),
    ({"text_info": texts("q", "a"), "image_info": [FRAME]}, 'a frame of a video needs "video_uid"'),
    (
        {
            "text_info": texts("q", "a", "r", "b"),
            "image_info": [{**FRAME, "video_uid": 1}, {**FRAME, "video_uid": 1, "matched_text_index": 2}],
        },
        "frames of video 1 are before different texts",
    ),
    (
        {"text_info": texts("q", "a"), "video_info": [{"image_url": "1", "asr": ["x", 0, 1]}]},
        '"asr" of a video',
    ),
    (
        {
            "text_info": texts("q", "a"),
            "image_info": [{"image_url": "1"}],
            "video_info": [{"image_url": "1"}],
        },
        'needs "order"',
    ),
    (order("itt", 0, 0), '"order" must have two lists of the same length'),
    ({**order(""), "order": [1]}, '"order" must have two lists'),
    (order("itt", 1, 0, 1), "entry 0: there is no image 1, only 1 of them"),
    (order("vtt", 0, 0, 1), "entry 0: there is no video 0, only 0 of them"),
    (order("itt", 0, 1, 0), "entry 1: text 1 is out of turn"),
    (order("iitt", 0, 0, 0, 1), "entry 1: image 0 is out of turn"),
    (order("tti", 0, 1, 0), "image 0 comes after the last text"),
    (order("tit", 0, 0, 1), r"text_info\[1\] is not a user's text"),
    (order("tt", 0, 1), "names 2 texts and media, the sample has 3"),
    (order("xtt", 0, 0, 1), 'type must be "text", "image" or "video"'),
    ({"text_info": texts("q", "a"), "tools": 3}, "tools must be a list"),
    ({"text_info": [{"text": "", "tag": "mask", "tool_response": 1}]}, "result of a tool must be a string"),
    (
        {"text_info": [{"text": "q", "tag": "mask", "tool_calls": [CALL]}]},
        "only the assistant .* calls tools",
    ),
    (
        {"text_info": [*texts("q"), {"text": "a", "tag": "no_mask", "tool_response": 1}]},
        'must have the tag "mask"',
    ),
    ({"text_info": [*texts("q"), {"tag": "no_mask", "tool_calls": "[{}]"}]}, "tool call 1 has no name"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_say_what_is_wrong_and_where(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(**record)
    assert str(caught.value).startswith("f.jsonl:7: ")
