"""Grounding data: names and boxes in the places of their marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import Conversation, ReasoningPart, SampleError, TextPart, ToolCallPart
from erniekit.data.formats import parse_record
from tests.unit.data.helpers import encoded, noise


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    (tmp_path / "wide.png").write_bytes(encoded(noise(50, 200)))  # height, width
    (tmp_path / "tall.png").write_bytes(encoded(noise(400, 100)))
    return tmp_path


def read(record: Any, directory: Path) -> Conversation:
    return parse_record(record, format="auto", base_dir=directory, sample_id="f:1")


def texts(conversation: Conversation) -> list[str]:
    return [
        part.text for message in conversation.messages for part in message.parts if isinstance(part, TextPart)
    ]


def grounded(question: str, answer: str, objects: Any, **keys: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["wide.png"], "objects": objects, **keys}


def test_names_and_boxes_are_written_into_questions_and_answers(image_dir: Path) -> None:
    boxes = [[20, 5, 100, 45], [0, 0, 200, 50]]
    record = grounded(
        "<image>Find <ref-object>", "<ref-object>: <bbox><bbox>", {"ref": ["cat", "猫"], "bbox": boxes}
    )
    assert texts(read(record, image_dir)) == [
        "Find cat",
        "猫: [100, 100, 500, 900][0, 0, 1000, 1000]",
    ]


def test_boxes_of_a_form_in_json(image_dir: Path) -> None:
    answer = '[{"bbox_2d": <bbox>, "label": "<ref-object>"}]'
    record = grounded("<image>?", answer, {"ref": ["sheep"], "bbox": [[50, 12.5, 150, 25]]})
    assert json.loads(texts(read(record, image_dir))[1]) == [
        {"bbox_2d": [250, 250, 750, 500], "label": "sheep"}
    ]


@pytest.mark.parametrize(
    ("kind", "box"),
    [
        (None, [50, 25, 100, 50]),
        ("real", [50.0, 25.0, 100.0, 50.0]),
        ("norm1", [0.25, 0.5, 0.5, 1.0]),
        ("norm1000", [250, 500, 500, 1000]),
    ],
)
def test_types_of_boxes(image_dir: Path, kind: str | None, box: list[float]) -> None:
    record = grounded("<image>?", "<bbox>", {"ref": None, "bbox": [box], "bbox_type": kind, "image_id": None})
    assert texts(read(record, image_dir))[1] == "[250, 500, 500, 1000]"


def test_points_and_corners_in_any_order(image_dir: Path) -> None:
    objects = {"ref": [], "bbox": [[50, 25], [100, 50, 50, 25]]}
    found = texts(read(grounded("<image>?", "at <bbox>, in <bbox>", objects), image_dir))
    assert found[1] == "at [250, 500], in [250, 500, 500, 1000]"


def test_each_box_belongs_to_its_image(image_dir: Path) -> None:
    objects = {"bbox": [[100, 25, 200, 50], [50, 200, 100, 400]], "image_id": [0, 1]}
    record = grounded("<image><image>?", "<bbox> <bbox>", objects, images=["wide.png", "tall.png"])
    assert texts(read(record, image_dir))[1] == "[500, 500, 1000, 1000] [500, 500, 1000, 1000]"


def test_images_may_stand_in_parts_and_in_tags(image_dir: Path) -> None:
    objects = {"bbox": [[50, 200]], "image_id": [1]}
    parts = [{"type": "image", "image": "wide.png"}, {"type": "image", "image": "tall.png"}]
    question = [*parts, {"type": "text", "text": "at <bbox>?"}]
    record = grounded("", "yes", objects, images=None)
    record["messages"][0]["content"] = question
    assert texts(read(record, image_dir))[0] == "at [500, 500]?"
    record["messages"][0]["content"] = "<img>wide.png</img><img>tall.png</img>at <bbox>?"
    assert texts(read(record, image_dir))[0] == "at [500, 500]?"


def test_marks_in_system_reasoning_calls_and_results(image_dir: Path) -> None:
    call = {"name": "zoom", "arguments": {"box": "<bbox>", "of": "<ref-object>"}}
    messages = [
        {"role": "system", "content": "You know <ref-object>."},
        {"role": "user", "content": "<image>?"},
        {"role": "assistant", "content": "", "reasoning": "see <bbox>", "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "zoomed to <bbox>"},
        {"role": "assistant", "content": "done"},
    ]
    objects = {"ref": ["cats", 'the "cat"'], "bbox": [[0, 0], [200, 50], [100, 25]]}
    found = read({"messages": messages, "images": "wide.png", "objects": objects}, image_dir)
    assert texts(found)[:1] == ["You know cats."]
    answer = found.messages[2].parts
    assert answer[0] == ReasoningPart("see [0, 0]")
    assert isinstance(answer[-1], ToolCallPart)
    assert json.loads(answer[-1].arguments) == {"box": "[1000, 1000]", "of": 'the "cat"'}
    assert "zoomed to [500, 500]" in texts(found)


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "<bbox>"}]},
        {"query": "<image>?", "response": "<bbox>"},
        {"instruction": "<image>?", "output": "<bbox>"},
        {
            "prompt": [{"role": "user", "content": "<image>?"}],
            "completion": [{"role": "assistant", "content": "<bbox>"}],
        },
        {"query": "and", "history": [["<image>?", "<bbox>"]], "response": "x"},
    ],
)
def test_every_chat_format(image_dir: Path, record: dict[str, Any]) -> None:
    box = {"bbox": [[20, 5, 100, 45]]}
    for objects in (box, json.dumps(box), [{"caption": None, "bbox": [20, 5, 100, 45], "image": 0}]):
        found = read({**record, "images": ["wide.png"], "objects": objects}, image_dir)
        assert "[100, 100, 500, 900]" in texts(found)


def test_pairs_share_the_objects_or_have_their_own(image_dir: Path) -> None:
    objects = {"ref": ["cat"], "bbox": [[20, 5, 100, 45]]}
    record = grounded("<image><ref-object>?", "<bbox>", objects, rejected_response="nowhere")
    found = read(record, image_dir)
    assert texts(found) == ["cat?", "[100, 100, 500, 900]"]
    assert found.rejected[0].parts == (TextPart("nowhere"),)
    assert not found.rejected_prompt
    other = {"ref": ["cat"], "bbox": [[0, 0, 200, 50]]}
    for more in ({"rejected_response": "<bbox>"}, {}):
        found = read(
            grounded("<image><ref-object>?", "<bbox>", objects, rejected_objects=other, **more), image_dir
        )
        assert found.rejected[0].parts == (TextPart("[0, 0, 1000, 1000]"),)
        assert not found.rejected_prompt
    other["ref"] = ["dog"]
    found = read(grounded("<image><ref-object>?", "<bbox>", objects, rejected_objects=other), image_dir)
    assert found.rejected_prompt[0].parts[1] == TextPart("dog?")
    record = {**grounded("<image>?", "", None), "chosen": "<bbox>", "rejected": "<bbox> <bbox>"}
    record["messages"] = record["messages"][:1]
    record["objects"] = {"bbox": [[0, 0], [200, 50]]}
    found = read(record, image_dir)
    assert (texts(found)[-1], found.rejected[0].parts[0]) == ("[0, 0]", TextPart("[0, 0] [1000, 1000]"))


def test_boxes_of_the_rejected_answer_are_in_its_own_images(image_dir: Path) -> None:
    objects = {"bbox": [[50, 25, 100, 50]]}
    record = grounded(
        "<image>?", "<bbox>", objects, rejected_images=["tall.png"], rejected_response="no: <bbox>"
    )
    found = read(record, image_dir)
    assert found.rejected[0].parts[0] == TextPart("no: [500, 62, 1000, 125]")


@pytest.mark.parametrize(
    ("answer", "objects", "message"),
    [
        ("<bbox>", {"bbox": [[1, 1], [2, 2]]}, '1 <bbox> mark.*, 2 in "bbox"'),
        ("<bbox><bbox>", {"bbox": [[1, 1]]}, '2 <bbox> mark.*, 1 in "bbox"'),
        ("x", {"ref": ["cat"]}, '0 <ref-object> mark.*, 1 in "ref"'),
        ("<ref-object>", {"ref": [], "bbox": []}, '1 <ref-object> mark.*, 0 in "ref"'),
        ("<bbox>", {"bbox": [[0, 0, 210, 50]]}, r"box 1 \(\[0, 0, 210, 50\]\) is outside .* 200 x 50"),
        ("<bbox>", {"bbox": [[-9, 0, 1, 1]]}, "is outside"),
        ("<bbox>", {"bbox": [[20, 5, 100, 45]], "bbox_type": "norm1"}, "is outside"),
        ("<bbox>", {"bbox": [[1, 1]], "bbox_type": "pixels"}, '"bbox_type" must be'),
        ("<bbox>", {"bbox": [[1, 1]], "image_id": [1]}, "image 1 .*1 image"),
        ("<bbox>", {"bbox": [[1, 1]], "image_id": [-1]}, '"image_id" must be'),
        ("<bbox><bbox>", {"bbox": [[1, 1], [2, 2]], "image_id": [0]}, '"image_id" has 1 value, "bbox" has 2'),
        ("<bbox>", {"bbox": [[1, 1, 2]]}, r"box 1 must be \[x, y\]"),
        ("<bbox>", {"bbox": [[1, 1, 2, 2, 3, 3]]}, "box 1 must be"),
        ("<bbox>", {"bbox": [[1, "2"]]}, "box 1 must be"),
        ("<bbox>", {"bbox": [[1, float("nan")]]}, "box 1 must be"),
        ("<bbox>", {"bbox": [1, 2]}, "box 1 must be"),
        ("<bbox>", {"bbox": 5}, '"bbox" must be a list'),
        ("<ref-object>", {"ref": [5]}, '"ref" must be a list of strings'),
        ("<bbox>", ["cat"], r'"objects" must be \{"ref"'),
        ("<bbox>", '{"bbox":', "not valid JSON"),
    ],
)
def test_what_does_not_fit_is_an_error(image_dir: Path, answer: str, objects: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        read(grounded("<image>?", answer, objects), image_dir)


def test_an_image_that_is_missing_or_a_video_is_an_error(image_dir: Path) -> None:
    with pytest.raises(SampleError, match="no such image"):
        read(grounded("<image>?", "<bbox>", {"bbox": [[1, 1]]}, images=["none.png"]), image_dir)
    record = grounded("<video>?", "<bbox>", {"bbox": [[1, 1]]}, images=None, videos=["a.mp4"])
    with pytest.raises(SampleError, match=r"the texts have 0 image"):
        read(record, image_dir)
    record["objects"] = {"bbox": [[0.5, 1]], "bbox_type": "norm1"}
    assert texts(read(record, image_dir))[1] == "[500, 1000]"


def test_marks_without_objects_stay_text_and_are_reported(image_dir: Path) -> None:
    for objects in (None, {}, ""):
        found = read(grounded("<image>Where is <ref-object>?", "<bbox>", objects), image_dir)
        assert texts(found) == ["Where is <ref-object>?", "<bbox>"]
        assert found.notices == ('a text has <bbox> or <ref-object>, which remain text without "objects"',)


def test_objects_of_another_kind_are_reported(image_dir: Path) -> None:
    found = read(grounded("<image>?", "a cat", ["cat", "dog"]), image_dir)
    assert found.notices == ("key 'objects' of a record is not read",)
