"""Write `data/digits`: 1,797 real handwritten digits as image chats, for training and evaluation.

The same images, with the same split, are also written as preference pairs and as function calls.

    python tools/datasets/make_digits.py [--output data/digits]

Needs scikit-learn (`pip install scikit-learn`), whose `load_digits` is a copy of the test set of "Optical Recognition
of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, CC BY 4.0). Nothing is downloaded. The files are the same on every machine, byte for
byte: images are written by the encoder below, and the order is seeded.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20240601
HELDOUT_PER_CLASS = 30
EXAMPLES = 500  # training samples of preferences, and of calls
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# (question, answer): the question determines the wording of the answer, so exact match is a fair metric.
PHRASINGS: tuple[tuple[str, str], ...] = (
    ("Which digit is this?", "{digit}"),
    ("Read the digit in the picture.", "{digit}"),
    ("Give the digit and nothing else.", "{digit}"),
    ("What number is written here?", "The number is {digit}."),
    ("What does the picture show?", "The picture shows a handwritten {digit}."),
    ("Name this digit in one word.", "{word}"),
    ("Write the digit as a word.", "{word}"),
    ("图片里是哪个数字？", "图片里的数字是{digit}。"),  # noqa: RUF001
)
# Questions answered with a sentence: pairs reject it and prefer the digit alone. In the chats that are trained before,
# one answer in four is the digit alone, for every question in turn: preferences choose among existing answers.
SENTENCES = tuple(phrasing for phrasing in PHRASINGS if phrasing[1] not in ("{digit}", "{word}"))
STYLES = tuple(
    (question, "{digit}" if index % 4 == 3 else sentence)
    for index, (question, sentence) in enumerate(SENTENCES * 4)
)
# (question, arguments of the call that answers it).
CALLS = tuple(
    (question, '{{"digit": {digit}}}')
    for question in (
        "Report the digit in the picture.",
        "Report this digit.",
        "Report which number is written here.",
    )
)
REPORT_DIGIT = {
    "name": "report_digit",
    "description": "Report the digit in the picture.",
    "parameters": {
        "type": "object",
        "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["digit"],
    },
}


@dataclass(frozen=True)
class Chat:
    """An image (PNG), its digit, a question and the answer."""

    png: bytes
    digit: int
    question: str
    answer: str


def encode_png(pixels: np.ndarray) -> bytes:
    """An 8-bit grey PNG of `pixels` [height, width] uint8, stored without compression: the same bytes everywhere."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    # One stored block: the output of zlib's compressors differs between versions.
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    body = stored + struct.pack(">I", zlib.adler32(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def load_images() -> list[tuple[bytes, int]]:
    """Every image of the set as (PNG, digit), in the order of the set; ink is white on black."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(
            "error: this script needs scikit-learn; install it with: pip install scikit-learn"
        ) from None
    digits = load_digits()
    # Ink counts in the data set range from 0 to 16.
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return [(encode_png(pixels), int(digit)) for pixels, digit in zip(grey, digits.target, strict=True)]


def split_chats(images: list[tuple[bytes, int]], seed: int = SEED) -> tuple[list[Chat], list[Chat]]:
    """(train, held-out); held-out has the same number of each digit.

    Each image is in one chat only. Within a digit, the phrasings alternate, so all are equally frequent.
    """
    if len({png for png, _ in images}) != len(images):
        raise SystemExit("error: the set contains an image twice; training and eval data could share it")
    generator = random.Random(seed)
    by_digit: dict[int, list[bytes]] = defaultdict(list)
    for png, digit in images:
        by_digit[digit].append(png)
    train: list[Chat] = []
    heldout: list[Chat] = []
    for digit in sorted(by_digit):
        group = by_digit[digit]
        generator.shuffle(group)
        for index, png in enumerate(group):
            question, answer = PHRASINGS[(index + digit) % len(PHRASINGS)]
            chat = Chat(png, digit, question, answer.format(digit=digit, word=WORDS[digit]))
            (heldout if index < HELDOUT_PER_CLASS else train).append(chat)
    generator.shuffle(train)
    generator.shuffle(heldout)
    return train, heldout


def _user(png: bytes, question: str) -> dict[str, Any]:
    """The user's message in OpenAI's format, with the image as a data URL."""
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"role": "user", "content": parts}


def as_messages(chat: Chat) -> dict[str, Any]:
    """One sample in OpenAI's form."""
    return {"messages": [_user(chat.png, chat.question), {"role": "assistant", "content": chat.answer}]}


def as_erniekit(chat: Chat) -> dict[str, Any]:
    """One sample in ERNIEKit's format: texts with tags, and the image (plain base64) before text 0."""
    return {
        "text_info": [{"text": chat.question, "tag": "mask"}, {"text": chat.answer, "tag": "no_mask"}],
        "image_info": [{"matched_text_index": 0, "image_url": base64.b64encode(chat.png).decode("ascii")}],
    }


def as_preference(chat: Chat) -> dict[str, Any]:
    """A pair in OpenAI's form: two right answers, of which the digit alone is preferred to the sentence."""
    return {
        "messages": [_user(chat.png, chat.question)],
        "chosen": {"role": "assistant", "content": str(chat.digit)},
        "rejected": {"role": "assistant", "content": chat.answer},
    }


def as_call(chat: Chat) -> dict[str, Any]:
    """A chat in OpenAI's form whose answer calls `report_digit`, with `chat.answer` as its arguments."""
    call = {"name": REPORT_DIGIT["name"], "arguments": chat.answer}
    answer = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}
    return {
        "tools": [{"type": "function", "function": REPORT_DIGIT}],
        "messages": [_user(chat.png, chat.question), answer],
    }


def ask_again(chats: list[Chat], phrasings: Sequence[tuple[str, str]]) -> list[Chat]:
    """The same images, in order, with other alternating questions and their answers."""
    again = []
    for index, chat in enumerate(chats):
        question, answer = phrasings[index % len(phrasings)]
        again.append(Chat(chat.png, chat.digit, question, answer.format(digit=chat.digit)))
    return again


def write_lines(file: Path, chats: list[Chat], form: Callable[[Chat], dict[str, Any]]) -> None:
    """Write one JSON object a line (UTF-8, LF)."""
    lines = [json.dumps(form(chat), ensure_ascii=False, separators=(",", ":")) + "\n" for chat in chats]
    file.write_bytes("".join(lines).encode("utf-8"))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description="Write data/digits from scikit-learn's copy of the UCI digits."
    )
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--output", type=Path, default=root / "data" / "digits", help="output directory")
    output: Path = parser.parse_args().output
    train, heldout = split_chats(load_images())
    half = (len(train) + 1) // 2
    output.mkdir(parents=True, exist_ok=True)
    for name, chats, form in (
        ("train.jsonl", train[:half], as_messages),
        ("train_erniekit.jsonl", train[half:], as_erniekit),
        ("heldout.jsonl", heldout, as_messages),
        ("styles.jsonl", ask_again(train[:half], STYLES), as_messages),
        ("preferences.jsonl", ask_again(train[half : half + EXAMPLES], SENTENCES), as_preference),
        ("preferences_heldout.jsonl", ask_again(heldout, SENTENCES), as_preference),
        ("calls.jsonl", ask_again(train[half : half + EXAMPLES], CALLS), as_call),
        ("calls_heldout.jsonl", ask_again(heldout, CALLS), as_call),
    ):
        write_lines(output / name, chats, form)
        print(f"{output / name}: {len(chats)} images, {(output / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
