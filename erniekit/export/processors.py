"""Processor settings of an export, so that images and videos are processed as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erniekit.config import DataConfig
from erniekit.data.media.video import VideoSpec
from erniekit.export.files import timestamps, write_json
from erniekit.local_files import read_json_object

_SAMPLING = "leading"  # as in every engine


def set_image_bounds(directory: Path, min_pixels: int | None, max_pixels: int | None) -> list[str]:
    """Set the image processor to the bounds of training, areas in pixels; None: unchanged.

    Returns the changes as messages.
    """
    changes = []
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = directory / name
        content = read_json_object(file) if file.is_file() else {}
        processor = content.get("image_processor", content)
        for key, edge, value in (
            ("min_pixels", "shortest_edge", min_pixels),
            ("max_pixels", "longest_edge", max_pixels),
        ):
            size = processor.get("size")
            before = processor.get(key, size.get(edge) if isinstance(size, dict) else None)
            if not processor or value is None or before == value:
                continue
            if isinstance(size, dict) and edge in size:
                size[edge] = value
            if key in processor or not isinstance(size, dict):
                processor[key] = value
            changes.append(f"{name}: {key} is {value}, as in training, instead of {before}")
        if changes and processor:
            write_json(file, content)
    return changes


def set_videos(directory: Path, data: DataConfig) -> list[str]:
    """Make transformers' video processor pick, time and resize frames as training did, with the keys data.video_*.

    Only the transformers layout has a file for it. Returns what was changed, and what cannot be said there.
    """
    files = [directory / "video_preprocessor_config.json", directory / "processor_config.json"]
    found = {file: read_json_object(file) for file in files if file.is_file()}
    processors = {
        file: content if file.name.startswith("video") else content.get("video_processor")
        for file, content in found.items()
    }
    asked = [
        f"data.{name}"
        for name, value in data.model_dump().items()
        if name.startswith("video_") and value not in (None, _SAMPLING)
    ]
    if not any(processors.values()):
        return [f"{', '.join(asked)}: no file of the hub layout can say so to engines"] if asked else []
    spec = VideoSpec.from_checkpoint(directory, data)
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    wanted: dict[str, Any] = {"fps": spec.fps, "min_frames": spec.min_frames, "max_frames": spec.max_frames}
    wanted |= {"size": size, "draw_on_frames": spec.timestamps}
    changes = []
    for file, processor in processors.items():
        if not processor:
            continue
        # Where they stand apart as well, they are what is read first.
        areas = {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels}
        own = wanted | {name: area for name, area in areas.items() if processor.get(name) is not None}
        changed = {name: value for name, value in own.items() if processor.get(name) != value}
        if not processor.get("draw_on_frames", True) and spec.timestamps:
            processor |= timestamps(directory)
        changes += [f"{file.name}: {name} is {value}, as in training" for name, value in changed.items()]
        processor |= changed
        write_json(file, found[file])
    if data.video_sampling != _SAMPLING:
        changes.append(
            f"data.video_sampling was {data.video_sampling}: engines take the first frame of every interval"
        )
    return changes
