"""Merging adapters into the weights of the base model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, read_array
from erniekit.checkpoint.tensor_layouts import OUTPUT
from erniekit.errors import CheckpointError
from erniekit.lora.adapters import read_adapter, refuse_untied
from erniekit.lora.peft import AdapterConfig


class AdapterMerge:
    """Merged values of base tensors.

    `W' = W + scaling B A` (see `AdapterConfig.scaling`), computed in float32 and rounded once. Full tensors of the
    adapter file (trained routers) replace the base model's. shapes: of the model's tensors; raises CheckpointError
    if the adapter does not fit them, see `check_fit`. read: returns the values of a base tensor, in the element type
    of its file.
    """

    def __init__(
        self,
        directory: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[TensorInfo], np.ndarray] = read_array,
    ) -> None:
        self._read = read
        self.config, self._tensors = read_adapter(directory)
        check_fit(directory, self.config, self._tensors, shapes)
        self.modules = {name.partition(".lora_A.")[0] for name in self._tensors if ".lora_A." in name}
        self.whole = {name for name in self._tensors if ".lora_" not in name}

    def __call__(self, info: TensorInfo, dtype: str) -> np.ndarray:
        """The merged value of one base tensor, in the element type `dtype`."""
        module = info.name.removesuffix(".weight")
        if info.name in self.whole:
            return as_dtype(read_array(self._tensors[info.name]), self._tensors[info.name].dtype, dtype)
        if module not in self.modules or not info.name.endswith(".weight"):
            return as_dtype(self._read(info), info.dtype, dtype)
        down, up = (self._float32(f"{module}.lora_{half}.weight") for half in "AB")
        merged = (up * self.config.scaling(module, down.shape[0])) @ down
        merged += as_dtype(self._read(info), info.dtype, "F32")
        return as_dtype(merged, "F32", dtype)

    def _float32(self, name: str) -> np.ndarray:
        info = self._tensors[name]
        return as_dtype(read_array(info), info.dtype, "F32")


def check_fit(
    directory: str | Path,
    adapter: AdapterConfig,
    tensors: Mapping[str, TensorInfo],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise CheckpointError if an adapter does not fit a model.

    adapter, tensors: of `read_adapter`; shapes: of the model's tensors.
    """
    if OUTPUT not in shapes:
        refuse_untied(directory, adapter, tensors)
    halves = {
        half: {name.partition(half)[0] for name in tensors if half in name}
        for half in (".lora_A.", ".lora_B.")
    }
    modules, others = halves.values()
    if modules != others:
        raise CheckpointError(f"{directory}: {min(modules ^ others)} has only one of lora_A and lora_B")
    whole = {name for name in tensors if ".lora_" not in name}
    left = sorted({name for name in modules if f"{name}.weight" not in shapes} | (whole - set(shapes)))
    if left:
        raise CheckpointError(
            f"{directory}: {len(left)} of {len(modules | whole)} adapters have no weight in the "
            f"base model, for example {left[0]}; is this the base model they were trained on?"
        )
    for name in sorted(modules):
        down, up = (tensors[f"{name}.lora_{half}.weight"].shape for half in "AB")
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or (up[0], down[1]) != shapes[f"{name}.weight"]:
            raise CheckpointError(
                f"{directory}: the adapter of {name} is {list(up)} x {list(down)}, the weight of the base model "
                f"{list(shapes[f'{name}.weight'])}; is this the base model it was trained on?"
            )
    for name in sorted(whole):
        if tensors[name].shape != shapes[name]:
            raise CheckpointError(
                f"{directory}: {name} is {list(tensors[name].shape)}, the model expects {list(shapes[name])}"
            )
