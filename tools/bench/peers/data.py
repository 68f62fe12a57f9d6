"""Seeded chats, function calls, preference pairs and images, with lengths like those of public demo sets.

The words are made up. What counts for speed is how many tokens a sample has, and how the numbers vary.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Record = dict[str, Any]
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
NUM_WORDS = 3000
# Of samples with images: how many have none, and how many have two.
WITHOUT_IMAGE, TWO_IMAGES = 0.15, 0.12
# Photos of 300 x 180, smaller and larger.
IMAGE_SIZE, IMAGE_SCALES = (300, 180), (0.5, 1.9)
WITH_TOOLS = 0.6


class Writer:
    """Draws texts, and images below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._random = random.Random(0)
        words = {
            "".join(self._random.choices(SYLLABLES, k=self._random.randint(1, 4)))
            for _ in range(2 * NUM_WORDS)
        }
        self._words = sorted(words)[:NUM_WORDS]
        self._random.shuffle(self._words)
        self._weights = [1 / (rank + 10) for rank in range(len(self._words))]
        self._directory = directory
        self._images = 0

    def text(self, median: int, sigma: float, most: int) -> str:
        """Sentences; the number of words is log-normal, and at most `most`."""
        return self.words(min(most, max(1, round(median * self._random.lognormvariate(0, sigma)))))

    def words(self, count: int) -> str:
        """So many words in sentences of 12."""
        drawn = self._random.choices(self._words, self._weights, k=count)
        return ". ".join(" ".join(drawn[start : start + 12]) for start in range(0, count, 12)) + "."

    def word(self) -> str:
        """A word."""
        return self._random.choice(self._words)

    def chance(self) -> float:
        """A number between 0 and 1."""
        return self._random.random()

    def between(self, least: int, most: int) -> int:
        """A whole number between these, both included."""
        return self._random.randint(least, most)

    def image(self) -> str:
        """A JPEG of soft random colours; returns its path from the data file."""
        scale = self._random.uniform(*IMAGE_SCALES)
        size = [max(56, int(side * scale)) for side in IMAGE_SIZE]
        colours = Image.frombytes("RGB", (8, 5), self._random.randbytes(120))
        name = f"images/{self._images:04}.jpg"
        (self._directory / "images").mkdir(exist_ok=True)
        colours.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(self._directory / name, quality=90)
        self._images += 1
        return name


def instructions(writer: Writer) -> Record:
    """A short question with an answer of very different lengths."""
    return {
        "messages": [
            message("user", writer.text(14, 0.6, 160)),
            message("assistant", writer.text(80, 1.2, 560)),
        ]
    }


def image_chats(writer: Writer) -> Record:
    """A question about one image; some about two, or none."""
    kind = writer.chance()
    count = 0 if kind < WITHOUT_IMAGE else 2 if kind < WITHOUT_IMAGE + TWO_IMAGES else 1
    parts: list[Record] = [{"type": "image_url", "image_url": {"url": writer.image()}} for _ in range(count)]
    parts.append({"type": "text", "text": writer.text(14, 0.6, 160)})
    return {"messages": [{"role": "user", "content": parts}, message("assistant", writer.text(80, 1.0, 430))]}


def function_calls(writer: Writer) -> Record:
    """Chats of several turns; most with a tool that is called once."""
    messages = []
    for _ in range(writer.between(1, 5)):
        messages += [
            message("user", writer.text(16, 0.6, 120)),
            message("assistant", writer.text(40, 1.0, 260)),
        ]
    if writer.chance() > WITH_TOOLS:
        return {"messages": messages}
    name, names = writer.word(), [writer.word() for _ in range(3)]
    properties = {key: {"type": "string", "description": writer.words(8)} for key in names}
    function = {
        "name": name,
        "description": writer.words(10),
        "parameters": {"type": "object", "properties": properties, "required": names[:2]},
    }
    arguments = json.dumps({key: writer.words(3) for key in names})
    messages += [
        message("user", writer.text(16, 0.6, 120)),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
        },
        message("tool", json.dumps({"result": writer.words(20)})),
        message("assistant", writer.text(40, 0.8, 200)),
    ]
    return {"tools": [{"type": "function", "function": function}], "messages": messages}


def preferences(writer: Writer) -> Record:
    """Two answers to a prompt that is longer than they are."""
    return {
        "messages": [message("user", writer.text(280, 0.25, 480))],
        "chosen": message("assistant", writer.text(90, 0.6, 240)),
        "rejected": message("assistant", writer.text(90, 0.6, 240)),
    }


MAKERS: dict[str, Callable[[Writer], Record]] = {
    make.__name__: make for make in (instructions, image_chats, function_calls, preferences)
}


def message(role: str, content: str) -> Record:
    """One message."""
    return {"role": role, "content": content}


def write_samples(name: str, count: int, file: Path) -> None:
    """Write `count` records of the maker `name` as JSON lines; the same arguments give the same bytes."""
    writer = Writer(file.parent)
    lines = [json.dumps(MAKERS[name](writer)) + "\n" for _ in range(count)]
    file.write_text("".join(lines), encoding="utf-8")
