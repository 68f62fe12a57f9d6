"""Write the image samples of `data/samples`: drawn shapes, and chats about them in two formats.

    python tools/datasets/make_samples.py [--output data/samples]

The chats reference the images by relative path. The pixels are the same on every machine; the bytes of the PNG files
may differ between versions of Pillow.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {
    "red": (208, 48, 48),
    "green": (40, 150, 70),
    "blue": (50, 90, 200),
    "yellow": (240, 200, 40),
    "black": (20, 20, 20),
    "orange": (240, 140, 40),
}
SYSTEM = "You describe pictures in one short sentence."


@dataclass(frozen=True)
class Drawing:
    """One shape on a plain ground; width and height in pixels."""

    colour: str
    shape: str
    width: int
    height: int

    @property
    def file(self) -> str:
        """Path of the image, relative to the data file."""
        return f"images/{self.colour}_{self.shape}.png"

    @property
    def name(self) -> str:
        """The content of the image, with its article."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"


# Wide, tall and small sizes, deliberately not multiples of 28.
DRAWINGS = (
    Drawing("red", "circle", 96, 96),
    Drawing("blue", "square", 120, 80),
    Drawing("green", "triangle", 70, 110),
    Drawing("yellow", "star", 112, 112),
    Drawing("black", "cross", 60, 60),
    Drawing("orange", "ring", 140, 90),
)


def draw(drawing: Drawing) -> Image.Image:
    """The image, RGB, without smoothing, so that pixels do not depend on a rasterizer's rounding of edges."""
    image = Image.new("RGB", (drawing.width, drawing.height), (245, 245, 240))
    pen = ImageDraw.Draw(image)
    colour = COLOURS[drawing.colour]
    x, y, r = drawing.width // 2, drawing.height // 2, min(drawing.width, drawing.height) * 2 // 5
    if drawing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif drawing.shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif drawing.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
    elif drawing.shape == "star":
        pen.polygon([(x, y - r), (x + r, y + r // 2), (x - r, y + r // 2)], fill=colour)
        pen.polygon([(x, y + r), (x + r, y - r // 2), (x - r, y - r // 2)], fill=colour)
    elif drawing.shape == "cross":
        pen.rectangle((x - r, y - r // 4, x + r, y + r // 4), fill=colour)
        pen.rectangle((x - r // 4, y - r, x + r // 4, y + r), fill=colour)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=r // 3)
    return image


def _image(drawing: Drawing) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": drawing.file}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def message_samples() -> list[dict[str, Any]]:
    """Chats in OpenAI's format: one image, several turns, a system message, two images, loss on one answer only."""
    samples = []
    for first, second in zip(DRAWINGS, (*DRAWINGS[1:], DRAWINGS[0]), strict=True):
        samples.append(
            _chat(
                ("user", [_image(first), _text("What is in this picture?")]),
                ("assistant", f"The picture shows {first.name}."),
                ("user", "Which colour is it?"),
                ("assistant", first.colour.capitalize() + "."),
            )
        )
        samples.append(
            _chat(
                ("system", SYSTEM),
                ("user", [_image(first), _image(second), _text("What do the two pictures show?")]),
                ("assistant", f"One shows {first.name}, the other {second.name}."),
            )
        )
    only_last = _chat(
        ("user", [{"type": "image", "image": DRAWINGS[0].file}, _text("Is this a square?")]),
        ("assistant", "Yes."),
        ("user", "Look again."),
        ("assistant", "No, it is a circle."),
    )
    only_last["messages"][1]["loss"] = False
    return [*samples, only_last]


def erniekit_samples() -> list[dict[str, Any]]:
    """The same kinds of chats in ERNIEKit's form."""
    samples: list[dict[str, Any]] = []
    for first, second in zip(DRAWINGS, (*DRAWINGS[2:], *DRAWINGS[:2]), strict=True):
        samples.append(
            {
                "image_info": [{"matched_text_index": 0, "image_url": first.file}],
                "text_info": [
                    {"text": "Name the shape.", "tag": "mask"},
                    {"text": f"It is a {first.shape}.", "tag": "no_mask"},
                    {"text": "And its colour?", "tag": "mask"},
                    {"text": f"It is {first.colour}.", "tag": "no_mask"},
                ],
            }
        )
        samples.append(
            {
                "is_system": 1,
                "image_info": [
                    {"matched_text_index": 2, "image_url": first.file},
                    {"matched_text_index": 2, "image_url": second.file},
                ],
                "text_info": [
                    {"text": SYSTEM, "tag": "mask"},
                    {"text": "Understood.", "tag": "no_mask"},
                    {"text": "Do the two pictures show the same?", "tag": "mask"},
                    {"text": f"No: first {first.name}, then {second.name}.", "tag": "no_mask"},
                ],
            }
        )
    return samples


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the image samples of data/samples.")
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--output", type=Path, default=root / "data" / "samples", help="output directory")
    output: Path = parser.parse_args().output
    (output / "images").mkdir(parents=True, exist_ok=True)
    for drawing in DRAWINGS:
        draw(drawing).save(output / drawing.file, optimize=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in message_samples()]
    (output / "shapes.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    array = json.dumps(erniekit_samples(), ensure_ascii=False, indent=1) + "\n"
    (output / "shapes_erniekit.json").write_text(array, encoding="utf-8", newline="\n")
    print(f"{output}: {len(DRAWINGS)} images, {len(lines)} chats in shapes.jsonl, and shapes_erniekit.json")


if __name__ == "__main__":
    main()
