from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from erniekit.create.corpus import read_texts
from erniekit.errors import DataError

IMAGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()


def test_texts_of_data_files_without_roles_tags_and_images(tmp_path: Path) -> None:
    messages = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
                    {"type": "image", "image": "a.png"},
                    {"type": "text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": "A cat.", "reasoning_content": "Ears."},
        ]
    }
    erniekit = {
        "text_info": [{"text": "Which?", "tag": "mask"}, {"text": "Seven.", "tag": "no_mask"}],
        "image_info": [{"image_url": IMAGE, "matched_text_index": 0}],
    }
    lines, array, plain = tmp_path / "a.jsonl", tmp_path / "b.json", tmp_path / "c.txt"
    lines.write_text(json.dumps(messages) + "\n\n" + json.dumps(erniekit) + "\n")
    array.write_text(json.dumps([erniekit]))
    plain.write_text("Line one.\r\nLine two.\n", newline="")
    first = ["Be brief.", "What?", "A cat.", "Ears.", "Which?", "Seven."]
    assert read_texts([lines, array, plain]) == [*first, "Which?", "Seven.", "Line one.\r\nLine two.\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.txt", b"abc\xff", "a.txt: not UTF-8 text (byte 4)"),
        ("a.txt", None, "a.txt: cannot read"),
        ("a.jsonl", None, "a.jsonl: cannot read"),
    ],
)
def test_wrong_files_are_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_texts([tmp_path / name])
    assert message in str(caught.value)


def test_a_text_without_end(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(DataError, match=r"a\.txt: has more than 1024 MiB, the limit for one text"):
        read_texts([tmp_path / "a.txt"])
