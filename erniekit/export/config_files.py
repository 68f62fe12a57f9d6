"""Writing the `config.json` of an export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from erniekit.config.choices import CheckpointLayout
from erniekit.export.files import VIDEO_PLACEHOLDER, drop_missing_code, token_id, write_json
from erniekit.export.layouts import MTP_LAYERS, layout_config
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, is_router_tensor


def write_config(
    target: Path, config: ErnieConfig, layout: CheckpointLayout, dtype: str, *, has_mtp: bool = False
) -> list[str]:
    """Write `config.json` of a layout; returns warnings.

    config: of the base model. dtype: the element type of most weights. has_mtp: the weights have the
    multi-token-prediction head of the base model.
    """
    video = None if "text_config" in config.raw else token_id(target, VIDEO_PLACEHOLDER)
    content = layout_config(config, layout, dtype, video)
    if has_mtp and MTP_LAYERS in config.raw:
        content[MTP_LAYERS] = config.raw[MTP_LAYERS]
    drop_missing_code(content, target)
    write_json(target / "config.json", content)
    if layout == "transformers":
        same = config.family != "vl"
        return ["the layouts hub and transformers are the same for text models"] if same else []
    if "text_config" in config.raw and config.media is not None:
        return [
            f"the {layout} layout has one placeholder for images and videos: video_token_id "
            f"{config.media.video_placeholder} of the base model is lost"
        ]
    return []


def main_dtype(specs: Sequence[TensorSpec]) -> str:
    """The most common element type, without routers: the one that `config.json` states, "" without any."""
    sizes: Counter[str] = Counter()
    for spec in specs:
        if not is_router_tensor(spec.name):
            sizes[spec.dtype] += spec.size
    return sizes.most_common(1)[0][0] if sizes else ""
