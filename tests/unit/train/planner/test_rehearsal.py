"""The plan against what a H200 measured (docs/performance.md): VL-28B with all 28 layers."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest

from erniekit.config import Config
from erniekit.create.shapes import shape_config
from erniekit.models.config import ErnieConfig
from erniekit.train.activations import RowShape
from erniekit.train.planner.gpus import find_gpu
from erniekit.train.planner.job import Job
from erniekit.train.planner.roofline import Roofline

pytestmark = pytest.mark.slow
GPU = find_gpu("h200-141gb")
LENGTH = 8192
# The rehearsal's rows of images: four pictures of 1,024 x 768 pixels.
IMAGES = 3996 / LENGTH
MEDIA = {
    "im_patch_id": 9,
    "image_start_token_id": 14,
    "image_end_token_id": 15,
    "video_start_token_id": 16,
    "video_end_token_id": 17,
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "experts": {"enabled": True, "rank": 32},
}


class Measured(NamedTuple):
    """A case of the tables: GiB at the peak, milliseconds of a layer, tokens per second; None: not compared."""

    method: str
    gib: float
    milliseconds: float | None
    rate: float
    recompute: str = "layers"
    quantize: str = "none"
    images: float = 0.0


CASES = [
    Measured("full", 421, 17.1, 11265),
    Measured("experts", 74.6, 15.1, 18368),
    Measured("experts", 99.7, None, 23354, recompute="none"),
    Measured("experts", 36.7, None, 16172, quantize="int4"),
    Measured("full", 446, None, 7634, images=IMAGES),
    Measured("experts", 76.5, None, 14759, images=IMAGES),
]


@cache
def roofline(case: Measured, layers: int) -> Roofline:
    # Rows of text ran with one block of the vision tower.
    depth = 32 if case.images else 1
    raw = shape_config("vl-28b-a3b", [f"vision_config.depth={depth}", f"num_hidden_layers={layers}"])
    config = Config.model_validate(
        {
            "model": {"path": "m", "quantize": case.quantize},
            "data": {"train": "t", "max_length": LENGTH},
            "train": {"output_dir": "o", "recompute": case.recompute},
            "lora": METHODS[case.method],
        }
    )
    media = round(case.images * LENGTH)
    row = RowShape(LENGTH, media, LENGTH, LENGTH, 4 * media)
    job = Job(config, ErnieConfig.from_json(raw | MEDIA), 1, GPU.memory, row=row)
    return Roofline(job, GPU, case.images)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.method}-{case.recompute}-{case.quantize}-{case.images:.1f}"
)
def test_the_plan_is_near_the_measurements(case: Measured) -> None:
    found = roofline(case, 28)
    assert found.job.plan.memory.total_bytes / 2**30 == pytest.approx(case.gib, rel=0.1)
    assert found.step().tokens_per_second == pytest.approx(case.rate, rel=0.25)
    if case.milliseconds is None:
        return
    few, more = (roofline(case, layers).row_seconds() for layers in (3, 5))
    assert (more - few) / 2 * 1e3 == pytest.approx(case.milliseconds, rel=0.2)
