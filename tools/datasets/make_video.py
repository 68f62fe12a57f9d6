"""Write the video samples of `data/samples`: drawn moving shapes, and chats about them.

    python tools/datasets/make_video.py [--output data/samples]

The frames are the same on every machine before encoding; the bytes of the files depend on the version of x264 in
PyAV.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw

WIDTH, HEIGHT, FPS, FRAMES = 160, 120, 10, 24
GROUND = (245, 245, 240)


@dataclass(frozen=True)
class Motion:
    """A shape that moves across the frame in a straight line; start and end in pixels of its middle."""

    colour: tuple[int, int, int]
    shape: str
    start: tuple[int, int]
    end: tuple[int, int]
    file: str


MOTIONS = (
    Motion((208, 48, 48), "circle", (24, 60), (136, 60), "videos/red_circle_right.mp4"),
    Motion((50, 90, 200), "square", (80, 24), (80, 96), "videos/blue_square_down.mp4"),
)


def draw(motion: Motion) -> Iterator[Image.Image]:
    """The frames, RGB."""
    for number in range(FRAMES):
        image = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
        x, y = (
            start + (end - start) * number // (FRAMES - 1)
            for start, end in zip(motion.start, motion.end, strict=True)
        )
        pen = ImageDraw.Draw(image)
        shape = pen.ellipse if motion.shape == "circle" else pen.rectangle
        shape((x - 18, y - 18, x + 18, y + 18), fill=motion.colour)
        yield image


def encode(motion: Motion, path: Path) -> None:
    """Writes the frames as H.264 in MP4."""
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "23", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in draw(motion):
            output.mux(stream.encode(av.VideoFrame.from_image(image)))
        output.mux(stream.encode())


def video_samples() -> list[dict[str, Any]]:
    """Chats in the three ways to name a video: a part, a part with a URL, and a mark in the text."""
    circle, square = MOTIONS
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": circle.file},
                        {"type": "text", "text": "What moves in this video, and where to?"},
                    ],
                },
                {"role": "assistant", "content": "A red circle moves from left to right."},
                {"role": "user", "content": "Does its size change?"},
                {"role": "assistant", "content": "No, it stays the same."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "<video>Describe the video in one short sentence."},
                {"role": "assistant", "content": "A blue square moves down."},
            ],
            "videos": [square.file],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": square.file}},
                        {"type": "video_url", "video_url": {"url": circle.file}},
                        {"type": "text", "text": "In which of the two videos does something move sideways?"},
                    ],
                },
                {"role": "assistant", "content": "In the second one."},
            ]
        },
    ]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the video samples of data/samples.")
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--output", type=Path, default=root / "data" / "samples", help="output directory")
    output: Path = parser.parse_args().output
    (output / "videos").mkdir(parents=True, exist_ok=True)
    for motion in MOTIONS:
        encode(motion, output / motion.file)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in video_samples()]
    (output / "video.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{output}: {len(MOTIONS)} videos, {len(lines)} chats in video.jsonl")


if __name__ == "__main__":
    main()
