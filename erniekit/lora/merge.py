"""Merging adapters into the weights of the base model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from erniekit.checkpoint.hub import TensorInfo, as_dtype, read_array
from erniekit.errors import CheckpointError
from erniekit.lora.adapters import read_adapter


class AdapterMerge:
    """Merged values of base tensors.

    `W' = W + scaling B A` (see `AdapterConfig.scaling`), computed in float32 and rounded once. Full tensors of the
    adapter file (trained routers) replace those of the base model. `finish` must be called at the end: it checks that
    every adapter was merged. read: returns the values of a base tensor, in the element type of its file.
    """

    def __init__(self, directory: str | Path, read: Callable[[TensorInfo], np.ndarray] = read_array) -> None:
        self.directory = Path(directory)
        self._read = read
        self.config, self._tensors = read_adapter(directory)
        self.modules = {name.partition(".lora_A.")[0] for name in self._tensors if ".lora_A." in name}
        # Name -> shape.
        self.whole = {name: info.shape for name, info in self._tensors.items() if ".lora_" not in name}
        halves = {name.partition(".lora_B.")[0] for name in self._tensors if ".lora_B." in name}
        if halves != self.modules:
            name = min(halves ^ self.modules)
            raise CheckpointError(f"{directory}: {name} has only one of lora_A and lora_B")
        self._merged: set[str] = set()

    def __call__(self, info: TensorInfo, dtype: str) -> np.ndarray:
        """The merged value of one base tensor, in the element type `dtype`."""
        module = info.name.removesuffix(".weight")
        if info.name in self.whole:
            self._merged.add(info.name)
            return as_dtype(read_array(self._tensors[info.name]), self._tensors[info.name].dtype, dtype)
        if module not in self.modules or not info.name.endswith(".weight"):
            return as_dtype(self._read(info), info.dtype, dtype)
        down, up = (self._float32(f"{module}.lora_{half}.weight") for half in "AB")
        if (up.shape[0], down.shape[1]) != info.shape:
            raise CheckpointError(
                f"{self.directory}: the adapter of {module} is for a weight of "
                f"{[up.shape[0], down.shape[1]]}, the base has {list(info.shape)}"
            )
        merged = (up * self.config.scaling(module, down.shape[0])) @ down
        merged += as_dtype(self._read(info), info.dtype, "F32")
        self._merged.add(module)
        return as_dtype(merged, "F32", dtype)

    def finish(self) -> int:
        """The number of merged adapters. Raises CheckpointError if an adapter has no weight in the base model."""
        everything = self.modules | set(self.whole)
        left = sorted(everything - self._merged)
        if left:
            raise CheckpointError(
                f"{self.directory}: {len(left)} of {len(everything)} adapters have no weight in the "
                f"base model, for example {left[0]}; is this the base model they were trained on?"
            )
        return len(self.modules)

    def _float32(self, name: str) -> np.ndarray:
        info = self._tensors[name]
        return as_dtype(read_array(info), info.dtype, "F32")
