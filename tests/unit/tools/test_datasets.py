"""The scripts in `tools/datasets` make what is in `data/`, and the data is what its documents say."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erniekit.config.choices import FORMATS
from erniekit.data.chat.conversation import Conversation, ImagePart, TextPart, ToolCallPart
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import detect, parse_record
from erniekit.data.media.images import open_image
from erniekit.evaluation.metrics.calls import is_valid
from erniekit.generation.answer import ToolCall

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
DIGITS, SAMPLES = ROOT / "data" / "digits", ROOT / "data" / "samples"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_FILES = ("train.jsonl", "train_erniekit.jsonl", "heldout.jsonl")
# The same images with other questions, by the file of the images.
ASKED_AGAIN = {
    "styles.jsonl": "train.jsonl",
    "preferences.jsonl": "train_erniekit.jsonl",
    "calls.jsonl": "train_erniekit.jsonl",
    "preferences_heldout.jsonl": "heldout.jsonl",
    "calls_heldout.jsonl": "heldout.jsonl",
}


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "datasets" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def chats(file: Path) -> list[Conversation]:
    found = []
    for record in read_records(file):
        assert isinstance(record, Record)
        parsed = parse_record(record.value, format="auto", base_dir=file.parent, sample_id=record.sample_id)
        found.append(parsed)
    return found


def images_of(chat: Conversation) -> list[str | bytes]:
    return [part.source for message in chat.messages for part in message.parts if isinstance(part, ImagePart)]


def text(chat: Conversation, message: int) -> str:
    return "".join(part.text for part in chat.messages[message].parts if isinstance(part, TextPart))


@pytest.fixture(scope="module")
def digits() -> dict[str, list[Conversation]]:
    return {name: chats(DIGITS / name) for name in DIGIT_FILES}


def test_every_digit_is_in_one_chat_only(digits: dict[str, list[Conversation]]) -> None:
    assert [len(digits[name]) for name in DIGIT_FILES] == [749, 748, 300]
    sources = [source for file in digits.values() for chat in file for source in images_of(chat)]
    assert len(sources) == len(set(sources)) == 1797
    pixels = {np.asarray(open_image(source, "")).tobytes() for source in sources}
    assert len(pixels) == 1797


def test_a_question_and_a_digit_fix_the_answer(digits: dict[str, list[Conversation]]) -> None:
    answers: dict[str, set[str]] = {}
    for file in digits.values():
        for chat in file:
            answers.setdefault(text(chat, 0), set()).add(text(chat, 1))
    assert len(answers) == 8
    for question, found in answers.items():
        digit_of = [re.search("|".join([r"\d", *WORDS]), answer) for answer in found]
        assert len(found) == 10, question
        assert len({match.group() for match in digit_of if match}) == 10, question


def test_heldout_is_balanced(digits: dict[str, list[Conversation]]) -> None:
    words = {word: str(digit) for digit, word in enumerate(WORDS)}
    held: Counter[str] = Counter()
    for chat in digits["heldout.jsonl"]:
        match = re.search("|".join([r"\d", *words]), text(chat, 1))
        assert match is not None
        held[words.get(match.group(), match.group())] += 1
    assert held == dict.fromkeys("0123456789", 30)
    questions = Counter(text(chat, 0) for chat in digits["heldout.jsonl"])
    assert min(questions.values()) >= 35


def test_digits_are_made_again_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    script = load_script("make_digits", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["make_digits.py", "--output", str(tmp_path)])
    script.main()
    assert sorted(path.name for path in DIGITS.iterdir()) == sorted([*DIGIT_FILES, *ASKED_AGAIN])
    for path in DIGITS.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def digits_of(file: list[Conversation]) -> list[tuple[str | bytes, int]]:
    """Each chat's image, and the digit of its answer: a figure, a word, or the argument of a call."""
    found = []
    for chat in file:
        (answer,) = chat.messages[-1].parts
        said = answer.arguments if isinstance(answer, ToolCallPart) else text(chat, 1)
        match = re.search("|".join([r"\d", *WORDS]), said)
        assert match is not None
        digit = WORDS.index(match.group()) if match.group() in WORDS else int(match.group())
        found.append((images_of(chat)[0], digit))
    return found


@pytest.mark.parametrize("name", ASKED_AGAIN)
def test_an_image_that_is_asked_about_again_shows_the_same_digit(
    name: str, digits: dict[str, list[Conversation]]
) -> None:
    first = digits_of(digits[ASKED_AGAIN[name]])
    again = digits_of(chats(DIGITS / name))
    assert len(again) == (500 if name in ("preferences.jsonl", "calls.jsonl") else len(first))
    assert again == first[: len(again)]


def test_styles_and_preferences_are_what_they_say() -> None:
    shares = Counter(len(text(chat, 1)) == 1 for chat in chats(DIGITS / "styles.jsonl"))
    assert shares[True] == pytest.approx(749 / 4, abs=1)
    for name in ("preferences.jsonl", "preferences_heldout.jsonl"):
        for chat in chats(DIGITS / name):
            chosen = text(chat, 1)
            ((rejected,),) = (message.parts for message in chat.rejected)
            assert isinstance(rejected, TextPart)
            assert len(chosen) == 1 < len(rejected.text) and re.findall(r"\d", rejected.text) == [chosen]


def test_every_call_is_what_its_tool_accepts() -> None:
    for name in ("calls.jsonl", "calls_heldout.jsonl"):
        for chat in chats(DIGITS / name):
            (call,) = chat.messages[-1].parts
            assert isinstance(call, ToolCallPart)
            assert is_valid(ToolCall(call.name, json.loads(call.arguments), "", None), chat.tools)


def test_digit_images_are_pngs_of_the_sets_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("make_digits", monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    image = Image.open(io.BytesIO(script.encode_png(pixels)))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_digit_answers_are_right(digits: dict[str, list[Conversation]]) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    source = datasets.load_digits()
    grey = np.rint(source.images * (255 / 16)).astype(np.uint8)
    digit_of = {image.tobytes(): int(digit) for image, digit in zip(grey, source.target, strict=True)}
    for chat in (chat for file in digits.values() for chat in file):
        image = np.asarray(open_image(images_of(chat)[0], ""))[..., 0]
        digit = digit_of[image.tobytes()]
        answer = text(chat, 1)
        assert str(digit) in answer or answer == WORDS[digit]


def test_a_repeated_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("make_digits", monkeypatch)
    with pytest.raises(SystemExit, match="twice"):
        script.split_chats([(b"a", 1), (b"b", 2), (b"a", 1)])


def test_samples_are_made_again_with_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("make_samples", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["make_samples.py", "--output", str(tmp_path)])
    script.main()
    for name in ("shapes.jsonl", "shapes_erniekit.json"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name
    made, kept = (sorted((root / "images").iterdir()) for root in (tmp_path, SAMPLES))
    assert [file.name for file in made] == [file.name for file in kept]
    for one, other in zip(made, kept, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


@pytest.mark.parametrize(
    ("name", "samples", "images"),
    [("text.jsonl", 48, 0), ("shapes.jsonl", 13, 19), ("shapes_erniekit.json", 12, 18)],
)
def test_samples_can_be_read(name: str, samples: int, images: int) -> None:
    found = chats(SAMPLES / name)
    assert len(found) == samples
    sources = [source for chat in found for source in images_of(chat)]
    assert len(sources) == images
    for source in sources:
        assert open_image(source, "").mode == "RGB"
    assert all(chat.messages[-1].role == "assistant" and chat.messages[-1].trained for chat in found)
    assert any(len(chat.messages) > 3 for chat in found)
    assert any(chat.messages[0].role == "system" for chat in found)


# Of each file its format and, by kind, how many messages and parts it has.
SMALL: dict[str, tuple[str, dict[str, int]]] = {
    "tools.jsonl": ("messages", {"samples": 4, "ToolCallPart": 4, "tool": 4, "tools": 5}),
    "reasoning.jsonl": ("messages", {"samples": 5, "ReasoningPart": 6, "ImagePart": 1}),
    "preference.jsonl": ("messages", {"samples": 4, "rejected": 4, "ImagePart": 1}),
    "video.jsonl": ("messages", {"samples": 3, "VideoPart": 4}),
    "sharegpt.json": ("sharegpt", {"samples": 6, "ToolCallPart": 2, "tool": 2, "tools": 3, "ImagePart": 1}),
    "alpaca.json": ("alpaca", {"samples": 6}),
    "alpaca.csv": ("alpaca", {"samples": 4}),
    "query_response.jsonl": ("query_response", {"samples": 6, "ImagePart": 1}),
    "erniekit_text.jsonl": ("erniekit", {"samples": 5}),
    "erniekit_dpo.jsonl": ("erniekit", {"samples": 4, "rejected": 6}),
    "pretrain.jsonl": ("text", {"samples": 4, "text": 4}),
}
LARGER = {"text.jsonl": "messages", "shapes.jsonl": "messages", "shapes_erniekit.json": "erniekit"}


@pytest.mark.parametrize("name", SMALL)
def test_small_samples_are_of_the_format_that_they_show(name: str) -> None:
    format, expected = SMALL[name]
    for record in read_records(SAMPLES / name):
        assert isinstance(record, Record)
        assert detect(record.value) == format
    found = chats(SAMPLES / name)
    counts: Counter[str] = Counter(samples=len(found))
    for chat in found:
        counts.update(type(part).__name__ for message in chat.messages for part in message.parts)
        counts.update(message.role for message in chat.messages if message.role in ("tool", "text"))
        counts.update(tools=len(chat.tools), rejected=len(chat.rejected))
        assert chat.messages[-1].role in ("assistant", "text")
        assert chat.messages[-1].trained
        for source in images_of(chat):
            assert open_image(source, "").mode == "RGB"
    del counts["TextPart"]
    assert {key: count for key, count in counts.items() if count} == expected


def test_the_readme_lists_every_sample_file_with_its_format_and_number() -> None:
    listed: dict[str, tuple[list[str], str]] = {}
    for line in (ROOT / "data" / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `samples/"):
            names, what, format = (cell.strip() for cell in line.strip("|").split("|"))
            files = re.findall(r"`samples/(.*?)`", names)
            for number, file in enumerate(files):
                listed[file] = (re.findall(r"\d+", what)[number : number + 1], format.strip("`"))
    there = {path.name for path in SAMPLES.iterdir() if path.is_file()}
    assert set(listed) == there == SMALL.keys() | LARGER.keys()
    for file, (samples, format) in listed.items():
        assert samples == [str(len(chats(SAMPLES / file)))], file
        assert format == (LARGER[file] if file in LARGER else SMALL[file][0]), file


def json_blocks() -> list[dict[str, Any]]:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]


def test_the_examples_of_the_formats_are_read_as_they_say() -> None:
    formats: Counter[str | None] = Counter()
    for record in json_blocks():
        formats[detect(record)] += 1
        chat = parse_record(record, format="auto", base_dir=SAMPLES, sample_id="data.md")
        assert chat.messages[-1].trained
        assert chat.messages[-1].role in ("assistant", "text")
        for source in images_of(chat):
            assert open_image(source, "").mode == "RGB"
    assert formats == {
        "messages": 8,
        "sharegpt": 1,
        "alpaca": 1,
        "query_response": 1,
        "xlam": 1,
        "erniekit": 3,
        "text": 1,
    }


def test_the_page_names_formats_and_keys_in_the_order_in_which_they_are_tried() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Format `(\w+)`", page, re.MULTILINE) == list(FORMATS)
    order = page.split("first match in this list decides:")[1].split(".")[0]
    signs = ["messages", "conversations", "text_info", "src", "instruction", "query", "chosen", "tgt", "text"]
    assert [key for key in dict.fromkeys(re.findall(r"`(\w+)`", order)) if key in signs] == signs
    answers = {"query": "response", "chosen": "rejected"}
    records = [{key: "x", answers.get(key, key): "x"} for key in signs]
    for before, after in pairwise(records):
        assert detect({**after, **before}) == detect(before)


def test_erniekit_images_are_plain_base64() -> None:
    record = json.loads((DIGITS / "train_erniekit.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert base64.b64decode(record["image_info"][0]["image_url"], validate=True).startswith(b"\x89PNG")
