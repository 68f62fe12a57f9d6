"""Answers as pictures: the images of a sample, and the reference and the answer below them."""

from __future__ import annotations

from functools import cache

from PIL import Image, ImageDraw, ImageFont

from erniekit.display.text import clipped
from erniekit.train.trackers.tracker import ShownAnswer

_WIDTH, _GAP, _FONT_SIZE, _MOST_LINES = 320, 8, 15, 4
_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf")
_INK, _SOFT, _PAPER = "#1b1f24", "#5c6470", "#ffffff"


def draw_answer(answer: ShownAnswer) -> Image.Image:
    """The images in a row, then the reference and the answer. Characters without a glyph in the font are boxes."""
    height = max(image.height for image in answer.images)
    lines = [("reference", _SOFT), *_wrapped(answer.expected), ("answer", _SOFT), *_wrapped(answer.answer)]
    width = max(_WIDTH, sum(image.width + _GAP for image in answer.images) + _GAP)
    line_height = _FONT_SIZE + 5
    picture = Image.new("RGB", (width, height + 3 * _GAP + line_height * len(lines)), _PAPER)
    left = _GAP
    for image in answer.images:
        picture.paste(image, (left, _GAP))
        left += image.width + _GAP
    draw = ImageDraw.Draw(picture)
    for number, (text, colour) in enumerate(lines):
        draw.text((_GAP, height + 2 * _GAP + number * line_height), text, fill=colour, font=_font())
    return picture


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of this machine with Chinese characters if there is one, else Pillow's own."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, _FONT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(_FONT_SIZE)


def _wrapped(text: str) -> list[tuple[str, str]]:
    """The first lines of a text that fit into the width."""
    lines: list[tuple[str, str]] = []
    rest = clipped(text, 400)
    while rest and len(lines) < _MOST_LINES:
        end = len(rest)
        while _font().getlength(rest[:end]) > _WIDTH - 2 * _GAP:
            end -= 1
        space = rest.rfind(" ", 0, end + 1)
        end = space if end < len(rest) and space > 0 else end
        lines.append((rest[:end], _INK))
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = (lines[-1][0] + " ...", _INK)
    return lines or [("(nothing)", _SOFT)]
