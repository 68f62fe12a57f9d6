"""Paths in tags, media inside messages, and the keys that say how one of them is read."""

from __future__ import annotations

from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, Part, SampleError, TextPart, VideoPart
from tests.unit.data.formats.parsing import parse

ANSWER = {"role": "assistant", "content": "a"}


def asked(content: Any, **keys: Any) -> tuple[Part, ...]:
    """The parts of a question."""
    return parse({"messages": [{"role": "user", "content": content}, ANSWER], **keys}).messages[0].parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<img>red.png</img>Colour?", (ImagePart("/data/red.png"), TextPart("Colour?"))),
        ("see <img>a b.JPG</img>\n?", (TextPart("see "), ImagePart("/data/a b.JPG"), TextPart("\n?"))),
        ("<img>dir/0001</img>", (ImagePart("/data/dir/0001"),)),
        ("<img>file:///x/%20.png</img>", (ImagePart("/x/ .png"),)),
        ("<img>data:image/png;base64,AAAA</img>", (ImagePart(b"\0\0\0"),)),
        (
            "Picture 1: <img>1.png</img>\nPicture 2: <img>2.png</img>\nWhich?",
            (ImagePart("/data/1.png"), ImagePart("/data/2.png"), TextPart("Which?")),
        ),
        ("<image>a.png</image>", (ImagePart("/data/a.png"),)),
        ("<video>a.mp4</video>?", (VideoPart("/data/a.mp4"), TextPart("?"))),
        ("an <img>element</img> of HTML", (TextPart("an <img>element</img> of HTML"),)),
        ("<img></img>", (TextPart("<img></img>"),)),
        ('<img src="a.png">', (TextPart('<img src="a.png">'),)),
    ],
)
def test_a_path_in_a_tag_is_the_image(text: str, parts: tuple[Part, ...]) -> None:
    assert asked(text) == parts
    assert parse({"query": text, "response": "a"}).messages[0].parts == parts


def test_tags_beside_marks() -> None:
    parts = asked("<img>a.png</img><image>and <image>some</image>", images=["1.png", "2.png"])
    sources = [part.source for part in parts if isinstance(part, ImagePart)]
    assert sources == ["/data/a.png", "/data/1.png", "/data/2.png"]
    assert parts[-1] == TextPart("some</image>")


def test_tags_that_stay_text_are_reported() -> None:
    notice = "a text has <img>...</img>, which is an image only around a path in a user's string"
    for record in (
        {"query": "an <img>element</img>", "response": "a"},
        {"query": "q", "response": "<img>a.png</img>"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "<img>a.png</img>"}]}, ANSWER]},
    ):
        assert parse(record).notices == (notice,)
    assert not parse({"query": "<img>a.png</img>", "response": "a"}).notices


def test_addresses_in_tags_need_leave() -> None:
    with pytest.raises(SampleError, match=r"'<img>https://x/y</img>': URLs are not fetched"):
        asked("<img>https://x/y</img>")


def test_media_inside_a_message() -> None:
    def message(content: Any, **keys: Any) -> tuple[Part, ...]:
        return parse({"messages": [{"role": "user", "content": content, **keys}, ANSWER]}).messages[0].parts

    one, two = ImagePart("/data/1.png"), ImagePart("/data/2.png")
    assert message("q", images=["1.png", "2.png"]) == (one, two, TextPart("q"))
    assert message("a<image>b<image>", images=["1.png", "2.png"]) == (TextPart("a"), one, TextPart("b"), two)
    assert message([{"type": "text", "text": "q"}, {"type": "image"}], images=["1.png"]) == (
        TextPart("q"),
        one,
    )
    assert message("q", image="1.png", videos=["v.mp4"]) == (one, VideoPart("/data/v.mp4"), TextPart("q"))
    assert message("q", images=[]) == (TextPart("q"),)
    with pytest.raises(SampleError, match=r"message 1: 1 <image> mark.*2 image"):
        message("<image>", images=["1.png", "2.png"])
    with pytest.raises(
        SampleError, match="message 2: only a user's message or the result of a tool has images"
    ):
        parse({"messages": [{"role": "user", "content": "q"}, {**ANSWER, "images": ["1.png"]}]})
    # Those of the record are for the other messages.
    chat = [
        {"role": "user", "content": "q", "images": ["1.png"]},
        ANSWER,
        {"role": "user", "content": "<image>"},
        ANSWER,
    ]
    found = parse({"messages": chat, "images": ["2.png"]}).messages
    assert (found[0].parts[0], found[2].parts[0]) == (one, two)
    turn = {"from": "human", "value": "q", "images": ["1.png"]}
    found = parse({"conversations": [turn, {"from": "gpt", "value": "a"}]}).messages
    assert found[0].parts == (one, TextPart("q"))


def test_both_columns_of_a_kind_are_reported() -> None:
    question = [{"role": "user", "content": "<image>"}, ANSWER]
    found = parse({"messages": question, "images": ["1.png"], "image": "2.png"})
    assert found.notices == ('key "image" is not read if "images" is present',)
    assert parse({"messages": question, "images": [], "image": "2.png"}).messages[0].parts == (
        ImagePart("/data/2.png"),
    )


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"fps": 1.5}, {"fps": 1.5}),
        ({"fps": "1.0"}, {"fps": 1.0}),
        ({"sample_fps": 4, "raw_fps": 24}, {"fps": 4}),
        ({"nframes": 8}, {"min_frames": 8, "max_frames": 8}),
        ({"num_frames": 8.0}, {"min_frames": 8, "max_frames": 8}),
        ({"target_frames": 8}, {"min_frames": 8, "max_frames": 8}),
        ({"min_frames": 2, "max_frames": 6}, {"min_frames": 2, "max_frames": 6}),
        ({"video_start": 0, "video_end": 2.5}, {"start": 0, "end": 2.5}),
        ({"min_pixels": 3136, "max_pixels": 50176}, {"min_pixels": 3136, "max_pixels": 50176}),
        ({"timestamps": [0, 1.5]}, {"times": (0.0, 1.5)}),
        ({"fps": None, "nframes": ""}, {}),
    ],
)
def test_keys_of_videos(keys: dict[str, Any], options: dict[str, Any]) -> None:
    expected = VideoPart("/data/v.mp4", **options)
    assert asked([{"type": "video", "video": "v.mp4", **keys}]) == (expected,)
    assert asked([{"type": "video_url", "video_url": {"url": "v.mp4", **keys}}]) == (expected,)
    assert asked("<video>", videos=[{"video": "v.mp4", **keys}]) == (expected,)
    assert asked([{"type": "video", **keys}], videos=["v.mp4"]) == (expected,)
    entry = {"image_url": "v.mp4", **keys}
    texts = [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}]
    found = parse({"text_info": texts, "video_info": [entry]})
    assert (found.messages[0].parts[0], found.notices) == (expected, ())


def test_keys_of_images() -> None:
    expected = ImagePart("/data/a.png", min_pixels=3136, max_pixels=50176)
    keys = {"min_pixels": 3136, "max_pixels": 50176}
    assert asked([{"type": "image", "image": "a.png", **keys}]) == (expected,)
    assert asked([{"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}, **keys}]) == (
        expected,
    )
    assert asked("<image>", images=[{"path": "a.png", "bytes": None, **keys}]) == (expected,)
    texts = [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}]
    entry = {"image_url": "a.png", "image_width": 8, "image_height": 8, **keys}
    found = parse({"text_info": texts, "image_info": [entry]})
    assert (found.messages[0].parts[0], found.notices) == (expected, ())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fps": 0}, '"fps" must be a number, more than 0'),
        ({"fps": "fast"}, '"fps" must be a number'),
        ({"fps": True}, '"fps" must be a number'),
        ({"fps": 10**400}, '"fps" must be a number'),
        ({"fps": 1, "sample_fps": 2}, "fps and sample_fps contradict"),
        ({"raw_fps": 24}, '"raw_fps" alone'),
        ({"nframes": 2.5}, '"nframes" must be a whole number'),
        ({"nframes": 4, "max_frames": 8}, "give either the number of frames or min_frames and max_frames"),
        ({"min_frames": 9, "max_frames": 8}, "min_frames .9. is more than max_frames"),
        ({"min_pixels": 9999, "max_pixels": 999}, "min_pixels .9999. is more than"),
        ({"video_start": 3, "video_end": 2}, "must be after video_start"),
        ({"video_start": -1}, '"video_start" must be a number of seconds, 0 or more'),
        ({"timestamps": [2, 1]}, "must be in ascending order"),
        ({"timestamps": "1"}, "must be a list"),
        ({"resized_height": 280}, '"resized_height" is not read: use min_pixels'),
        ({"total_pixels": 9999}, '"total_pixels" is not read'),
        ({"frames_sample": "rand"}, '"frames_sample" is not read'),
    ],
)
def test_wrong_keys_of_videos(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=f"message 1, part 1: .*{message}"):
        asked([{"type": "video", "video": "v.mp4", **keys}])


def test_unknown_keys_of_media_are_reported() -> None:
    question = [{"type": "image", "image": {"path": "a.png", "mood": 1}}]
    found = parse({"messages": [{"role": "user", "content": question}, ANSWER]})
    assert found.notices == ("key 'mood' of a part is not read",)
    texts = [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}]
    found = parse({"text_info": texts, "image_info": [{"image_url": "a.png", "mood": 1}]})
    assert found.notices == ("key 'mood' of a part is not read",)


def test_times_of_the_frames_of_erniekit() -> None:
    texts = [{"text": "q", "tag": "mask"}, {"text": "a", "tag": "no_mask"}]
    frames = [
        {"image_url": f"{n}.png", "image_type": "video", "video_uid": 1, "time_stamp": n * 2.5}
        for n in range(2)
    ]
    found = parse({"text_info": texts, "image_info": frames})
    assert found.messages[0].parts[0] == VideoPart(("/data/0.png", "/data/1.png"), times=(0.0, 2.5))
    del frames[1]["time_stamp"]
    with pytest.raises(SampleError, match=r"1 of the 2 frames .* all or none"):
        parse({"text_info": texts, "image_info": frames})
