"""Selects the layers with a backward pass, and those that are recomputed in it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.layer_runner import CheckpointedLayers, LayerHooks

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_BLOCK = re.compile(r"vision_model\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class BackwardPlan:
    """The layers with a backward pass, and how many of them are recomputed, starting with the lowest.

    The lowest layers keep their activations longest: when the backward pass reaches them, the activations of all others
    are freed. vision: blocks of the vision tower, with the resampler as the last one; layers: layers of the decoder.
    Layers below these ranges have no trained parameter, and neither has anything before them.
    """

    vision: range
    layers: range
    num_recomputed: int = 0

    @property
    def size(self) -> int:
        """The number of layers with a backward pass, of both kinds."""
        return len(self.vision) + len(self.layers)

    @property
    def vision_blocks(self) -> range:
        """`vision` without the resampler."""
        return self.vision[:-1]

    def includes(self, name: str) -> bool:
        """Whether a parameter is in one of the layers with a backward pass."""
        if (match := _LAYER.match(name)) is not None:
            return int(match[1]) in self.layers
        if (match := _BLOCK.match(name)) is not None:
            return int(match[1]) in self.vision
        return name.startswith("model.resampler_model.") and bool(self.vision)

    @property
    def recomputed_vision(self) -> range:
        """Recomputed blocks of the vision tower and the resampler. They are recomputed before decoder layers."""
        return self.vision[: self.num_recomputed]

    @property
    def recomputed_layers(self) -> range:
        """Recomputed layers of the decoder."""
        return self.layers[: max(0, self.num_recomputed - len(self.vision))]

    def apply(self, model: ErnieModel, hooks: LayerHooks | None = None) -> None:
        """Run the layers of a model by this plan. hooks: around the layers of the decoder; None for one process."""
        model.model.layer_runner = CheckpointedLayers(
            hooks, recompute=self.recomputed_layers, lowest=self.layers.start
        )
        if model.config.vision is not None:
            model.vision_model.layer_runner = CheckpointedLayers(
                recompute=self.recomputed_vision, lowest=self.vision.start
            )


def backward_plan(architecture: ErnieConfig, trained: Collection[str]) -> BackwardPlan:
    """The layers with a backward pass, without recomputation. trained: names of the whole model's trained parameters.

    The plan is the same in every process, for any experts and rows.
    """
    steps = 0 if architecture.vision is None else architecture.vision.depth + 1
    first = steps
    if any(name.startswith("vision_model.patch_embed.") for name in trained):
        first = 0
    elif any(name.startswith("vision_model.") for name in trained):
        first = _lowest(_BLOCK, trained, steps - 1)
    elif any(name.startswith("model.resampler_model.") for name in trained):
        first = steps - 1
    count = architecture.num_hidden_layers
    is_before = first < steps or "model.embed_tokens.weight" in trained
    return BackwardPlan(
        range(first, steps), range(0 if is_before else _lowest(_LAYER, trained, count), count)
    )


def _lowest(pattern: re.Pattern[str], names: Collection[str], default: int) -> int:
    return min((int(match[1]) for name in names if (match := pattern.match(name))), default=default)
