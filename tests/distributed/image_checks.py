"""What the tests of images that cannot be read run in each process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from unittest import mock

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.item import Media, MediaSpec, decode
from erniekit.data.media.patches import Patches
from erniekit.evaluation import answers
from erniekit.train import build
from tests.distributed.layouts import trainings


def reference_loads(world: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Train as each of `runs` says; how often this process loaded the reference in all of them."""
    with mock.patch.object(build, "load_sharded", wraps=build.load_sharded) as load:
        trainings(world, runs)
    return {"loads": load.call_count}


def draw_differently(world: int, settings: dict[str, Any], sample_id: str) -> None:
    """Train, while rank 1 alone cannot read the images of an eval chat."""

    def failing(media: Sequence[Media], name: str, spec: MediaSpec | None) -> list[Patches]:
        if name == sample_id and os.environ["PADDLE_TRAINER_ID"] == "1":
            raise SampleError(sample_id, "bad image", "the picture cannot be read here")
        return decode(media, name, spec)

    with mock.patch.object(answers, "decode", failing):
        trainings(world, [settings])
