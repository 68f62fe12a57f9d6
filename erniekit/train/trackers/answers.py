"""Answers of an evaluation with their images, for trackers and the report."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.frames import load_frames
from erniekit.data.media.images import open_image
from erniekit.display.text import visible
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Prediction
from erniekit.train.trackers.tracker import ShownAnswer

SHOWN_ANSWERS = 12
_MOST_IMAGES = 4
_SHORTEST, _LONGEST = 96, 224  # pixels of the longest side


def shown_answers(answered: Sequence[tuple[EvalSample, Prediction]]) -> list[ShownAnswer]:
    """The first answers, with their images and the middle frames of their videos."""
    return [
        ShownAnswer(
            visible(prediction.id),
            visible(prediction.prompt.rstrip()),
            visible(prediction.expected),
            visible(prediction.answer) + ("" if prediction.ended else " (cut off)"),
            prediction.scores,
            sample_images(sample),
        )
        for sample, prediction in answered[:SHOWN_ANSWERS]
    ]


def sample_images(sample: EvalSample) -> list[Image.Image]:
    """The first images of a sample, and the middle frames of its videos, in a size to look at."""
    found = []
    for item in sample.prompt.media[:_MOST_IMAGES]:
        try:
            if item.frames:
                middle = item.frames[len(item.frames) // 2]
                (image,) = load_frames(item.source, (middle,), sample.sample_id)
            else:
                assert not isinstance(item.source, tuple), "only a video is given as frames"
                image = open_image(item.source, sample.sample_id)
        except SampleError:
            continue  # the evaluation has reported it
        found.append(_resized(image.convert("RGB")))
    return found


def _resized(image: Image.Image) -> Image.Image:
    """A smaller image, or whole multiples of the pixels of a tiny one."""
    factor = _SHORTEST // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_LONGEST, _LONGEST))
    return image
