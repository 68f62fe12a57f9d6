import base64
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    ReasoningPart,
    SampleError,
    TextPart,
    VideoPart,
)
from erniekit.data.formats import parse_record
from erniekit.data.media.access import PUBLIC_URLS
from tests.unit.data.helpers import data_uri, encoded, noise, qa

BASE = Path("/data")


def parse(record: Any, format: str = "auto") -> Conversation:
    return parse_record(record, format=format, base_dir=BASE, sample_id="f.jsonl:7")


def assistant(**keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **keys}]}


def test_text_chat_is_kept_as_it_stands() -> None:
    turns = [
        ("system", "be brief"),
        ("user", "  q \n"),
        ("assistant", "a"),
        ("user", ""),
        ("assistant", " b "),
    ]
    found = parse({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert found.sample_id == "f.jsonl:7"
    assert [(m.role, m.parts) for m in found.messages] == [(role, (TextPart(text),)) for role, text in turns]
    assert [m.trained for m in found.messages] == [False, False, True, False, True]


def test_parts_of_every_kind() -> None:
    png = encoded(noise(8, 8))
    plain = base64.b64encode(png).decode()
    content = [
        {"type": "text", "text": "<image>"},
        {"type": "image_url", "image_url": {"url": "a/b.png"}},
        {"type": "image_url", "image_url": "/abs/c.png"},
        {"type": "image_url", "image_url": {"url": "file:///abs/d.png"}},
        {"type": "image", "image": "data:image/png;base64," + plain},
        {"type": "image", "image": plain},
        {"type": "image", "image": {"bytes": plain}},
        {"type": "image", "image": {"path": "e.png", "bytes": None}},
    ]
    sources: list[str | bytes] = ["/data/a/b.png", "/abs/c.png", "/abs/d.png", png, png, png, "/data/e.png"]
    images = tuple(ImagePart(source) for source in sources)
    assert parse(qa(content)).messages[0].parts == (TextPart("<image>"), *images)


def test_marks_take_the_images_of_the_record_in_order() -> None:
    turns = [
        {"role": "user", "content": "<image>who?<image>"},
        {"role": "assistant", "content": "<image> is my answer"},
        {"role": "user", "content": "and\n<image>\n?"},
        {"role": "assistant", "content": "b"},
    ]
    found = parse({"messages": turns, "images": ["1.jpg", "2.jpg", "3.jpg"]})
    one, two, three = (ImagePart(f"/data/{n}.jpg") for n in (1, 2, 3))
    assert found.messages[0].parts == (one, TextPart("who?"), two)
    assert found.messages[1].parts == (TextPart("<image> is my answer"),)
    assert found.messages[2].parts == (TextPart("and\n"), three, TextPart("\n?"))


@pytest.mark.parametrize(
    ("record", "marks", "given"),
    [
        (qa("<image><image>", images=["1.jpg"]), 2, 1),
        (qa("<image>", images=["1.jpg", "2.jpg"]), 1, 2),
        (qa("<image>?"), 1, 0),
        (qa("no mark", images=["1.jpg"]), 0, 1),
    ],
)
def test_marks_and_images_must_be_equal_in_number(record: Any, marks: int, given: int) -> None:
    with pytest.raises(SampleError, match=rf"f\.jsonl:7: {marks} <image> mark.* {given} image"):
        parse(record)


def test_videos_take_their_marks_and_may_be_lists_of_frames() -> None:
    videos = ["1.mp4", ["a.png", "b.png"]]
    found = parse(qa("<video>x<image><video>", videos=videos, images="1.jpg"))
    assert found.messages[0].parts == (
        VideoPart("/data/1.mp4"),
        TextPart("x"),
        ImagePart("/data/1.jpg"),
        VideoPart(("/data/a.png", "/data/b.png")),
    )
    with pytest.raises(SampleError, match=r'1 <video> mark.* 0 video.*"videos"') as caught:
        parse(qa("<video>"))
    assert caught.value.reason == "videos do not match"


def test_video_parts_and_parts_without_a_source() -> None:
    content = [
        {"type": "video_url", "video_url": {"url": "1.mp4"}},
        {"type": "image", "image": None},
        {"type": "video", "video": ["a.png"]},
        {"type": "image", "url": "u.png"},
    ]
    found = parse(qa(content, images=["1.jpg"]))
    assert found.messages[0].parts == (
        VideoPart("/data/1.mp4"),
        ImagePart("/data/1.jpg"),
        VideoPart(("/data/a.png",)),
        ImagePart("/data/u.png"),
    )


def test_urls_are_kept_where_they_are_allowed() -> None:
    record = qa([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}])
    found = parse_record(record, format="auto", base_dir=BASE, sample_id="f:1", access=PUBLIC_URLS)
    assert found.messages[0].parts == (ImagePart("https://x/y.png"),)


def test_columns_of_one_image_and_of_none() -> None:
    assert parse(qa("<image>", image="1.jpg")).messages[0].parts == (ImagePart("/data/1.jpg"),)
    assert parse(qa("q", images=[], videos=None, tools="")).messages[0].parts == (TextPart("q"),)


def test_the_column_system_and_the_role_developer() -> None:
    column = parse(qa("q", system="be brief"))
    assert column.messages[0] == Message("system", (TextPart("be brief"),), False)
    assert [m.role for m in column.messages] == ["system", "user", "assistant"]
    developer = {"messages": [{"role": "developer", "content": "be brief"}, *qa("q")["messages"]]}
    assert parse(developer) == column
    assert parse({**developer, "system": "be brief"}) == column
    assert parse(qa("q", system="")) == parse(qa("q"))


def test_label_switches_the_loss_of_answers_by_number() -> None:
    turns = [*qa("q")["messages"], *qa("r")["messages"], *qa("s")["messages"]]
    turns[5]["loss"] = False
    found = parse({"messages": turns, "label": [0, 1, 1]})
    assert [m.trained for m in found.messages] == [False, False, False, True, False, False]
    assert parse(qa("q", label=3)) == parse(qa("q", label="good")) == parse(qa("q"))


def test_reasoning_comes_first() -> None:
    assert parse(assistant(reasoning_content="hm")).messages[1].parts == (ReasoningPart("hm"), TextPart("a"))
    assert parse(assistant(reasoning_content=None)).messages[1].parts == (TextPart("a"),)
    assert parse(assistant(reasoning="hm")) == parse(assistant(reasoning_content="hm"))


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({}, True),
        ({"loss": True}, True),
        ({"loss": False}, False),
        ({"weight": 0}, False),
        ({"weight": 1}, True),
    ],
)
def test_loss_of_one_message_can_be_switched_off(keys: dict[str, Any], trained: bool) -> None:
    assert parse(assistant(**keys)).messages[1].trained is trained


BAD = [
    (
        {"messages": [{"role": "bot", "content": "x"}]},
        "unknown role",
        "message 1: unknown role 'bot'; allowed",
    ),
    ({"messages": [{"content": "x"}]}, "unknown role", "message 1: no role"),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
        "bad record",
        "the first",
    ),
    ({"messages": []}, "bad record", "at least one message, not an empty array"),
    ({"messages": None}, "bad record", "at least one message, not null"),
    ({"messages": "hello"}, "bad record", "must be a list"),
    ({"messages": ["hello"]}, "bad record", "message 1 must be an object"),
    ({"messages": [{"role": "user"}]}, "bad record", 'has no "content"'),
    (qa(None), "bad record", r"message 1 \(user\): content must be a string or a list of parts, not null"),
    (qa(3), "bad record", "not a number"),
    (qa("q", ""), "bad record", "message 2: the assistant's answer is empty"),
    (qa(["x"]), "bad record", "message 1, part 1: type must be .* the part is a string"),
    (qa([{"type": "text"}]), "bad record", '"text" must be a string'),
    (qa([{"type": "picture"}]), "bad record", "type must be one of text, image.*'picture'"),
    (qa([{"type": "image"}]), "bad record", 'message 1, part 1: .* needs the key "image"'),
    (qa([{"type": "image", "image": 3}]), "bad record", "message 1, part 1: an image must be a path"),
    (qa([{"type": "image", "image": {}}]), "bad record", 'needs "url", "path" or "bytes"'),
    (qa([{"type": "image", "image": {"path": 3}}]), "bad record", 'the "path" of an image must be a string'),
    (qa([{"type": "image", "image": "data:image/png,abc"}]), "bad image", "must be base64"),
    (qa([{"type": "image", "image": "data:image/png;base64,a?c"}]), "bad image", "base64 text .*damaged"),
    (qa([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]), "not supported", "allow_urls"),
    (qa([{"type": "video", "video": []}]), "bad record", "list of frames needs at least one"),
    (qa([{"type": "video", "video": ["1.png", 2]}]), "bad record", "frame 2: an image must be"),
    (qa([{"type": "video_url", "video_url": "http://x/y.mp4"}]), "not supported", "allow_urls"),
    (qa([{"type": "input_audio", "input_audio": {}}]), "not supported", '"input_audio" are not supported'),
    (qa("q", audios=["a.wav"]), "not supported", '"audios"'),
    (qa("q", images=3), "bad record", '"images" must be a list of images'),
    (qa("<image>", images=[""]), "bad record", '"images", image 1: an image must be'),
    (assistant(loss="yes"), "bad record", "\"loss\" must be true or false .* not 'yes'"),
    (assistant(weight=0.5), "bad record", '"weight" must be true or false .* not 0.5'),
    (assistant(reasoning_content=3), "bad record", '"reasoning_content" must be a string'),
    (assistant(content=None, reasoning="hm"), "bad record", "content must be a string"),
    (qa("q", label=[1, 0]), "bad record", "each of the 1 assistant messages"),
    (qa("q", label=False), "not supported", "KTO"),
    (
        {"messages": [{"role": "user", "content": "q", "loss": True}]},
        "bad record",
        "only the assistant's messages",
    ),
    (
        {"messages": [{"role": "system", "content": [{"type": "image", "image": data_uri(noise(8, 8))}]}]},
        "bad record",
        "an image can only be in a user message",
    ),
    (
        {"messages": [{"role": "system", "content": [{"type": "video", "video": "a.mp4"}]}]},
        "bad record",
        "a video can only be in a user message",
    ),
    (qa("half \ud83d"), "bad record", "half a surrogate pair .character 6"),
    (qa("q", system=3), "bad record", '"system" must be a string, not a number'),
    (
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "q"}], "system": "y"},
        "bad record",
        "two different system messages",
    ),
    ([1], "bad record", "must be a JSON object, this is an array"),
    (
        {"input": "q", "output": "a"},
        "unknown format",
        'found: "input", "output"; expected .*"messages".*"text_info"',
    ),
]


@pytest.mark.parametrize(("record", "reason", "message"), BAD)
def test_bad_records_say_what_is_wrong_and_where(record: Any, reason: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(record)
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert caught.value.reason == reason


def test_a_named_format_does_not_take_the_other() -> None:
    with pytest.raises(
        SampleError, match=r'\(format erniekit\); found: "messages"; .* "text_info" or "src" or "tgt"'
    ):
        parse(qa("q"), format="erniekit")
