"""Adapters on experts that are stacked in one parameter, as transformers 5 has them and PEFT adapts them.

PEFT wraps the parameters of a layer's experts (`target_parameters`), `gate_up_proj` first, so that its tensors are
`experts.base_layer.lora_A`, and the tensors of `down_proj` are `experts.lora_A` (ParamWrapper in
peft/tuners/lora/layer.py).
`lora_A` [rank x experts, in] has one expert after the other; `lora_B` [out, rank x experts] has the columns of expert e
at e, e + experts, ...
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from erniekit.checkpoint.header import NUMPY_TYPES, Columns, TensorInfo
from erniekit.errors import CheckpointError

STACKED_NAME = re.compile(
    r"^(?P<path>.*\.mlp\.)(?P<kind>text_moe\.|vision_moe\.|)experts\.(?P<inner>base_layer\.)?lora_(?P<half>[AB])\.weight$"
)
LEAVES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def adapted_parameter(name: str, names: Collection[str], targets: Collection[str]) -> str:
    """The parameter that an adapter tensor of stacked experts is for: "gate_up_proj" or "down_proj".

    names: of all tensors of the file; targets: target_parameters of its configuration.
    """
    found = STACKED_NAME.match(name)
    assert found is not None
    path = f"{found['path']}{found['kind']}experts"
    if any(other.startswith(f"{path}.base_layer.lora_") for other in names):
        return "gate_up_proj" if found["inner"] else "down_proj"
    named = [leaf for leaf in LEAVES if any(f"{path}.{leaf}".endswith(target) for target in targets)]
    return named[0] if len(named) == 1 else "down_proj"


def unstack(info: TensorInfo, name: str, leaf: str, rank: int) -> Iterator[TensorInfo]:
    """The adapter tensors of the single experts in one of stacked experts, under the Hub's names.

    name: of the tensor, without the names of transformers' classes before `.mlp`; leaf: the parameter that it adapts;
    rank: of an expert. gate_proj and up_proj get the same lora_A. Raises CheckpointError for a shape that does not fit.
    """
    found = STACKED_NAME.match(name)
    assert found is not None
    half, leaves = found["half"], LEAVES[leaf]
    # A shape without values may name any number of experts.
    total = info.shape[0 if half == "A" else -1] if len(info.shape) == 2 and info.nbytes else 0
    experts, remainder = divmod(total, max(rank, 1))
    if rank < 1 or not experts or remainder or (half == "B" and info.shape[0] % len(leaves)):
        raise CheckpointError(
            f"{info.file}: {name} is {list(info.shape)}, which is not an adapter of rank {rank} on {leaf} of experts"
        )
    first = experts if found["kind"] == "vision_moe." else 0
    itemsize = np.dtype(NUMPY_TYPES[info.dtype]).itemsize
    for expert in range(experts):
        for place, part in enumerate(leaves):
            hub = f"{found['path']}experts.{first + expert}.{part}.lora_{half}.weight"
            if half == "A":
                shape, columns = (rank, info.shape[1]), None
                offset = expert * rank * info.shape[1]
            else:
                shape, columns = (info.shape[0] // len(leaves), rank), Columns(expert, total, experts, False)
                offset = place * shape[0] * total
            yield replace(
                info,
                name=hub,
                shape=shape,
                offset=info.offset + offset * itemsize,
                nbytes=shape[0] * shape[1] * itemsize,
                columns=columns,
            )


def stack_a(parts: list[list[np.ndarray]]) -> np.ndarray:
    """lora_A of stacked experts, from the lora_A [rank, in] of each expert's projections."""
    return np.concatenate([half for expert in parts for half in expert])


def stack_b(parts: list[list[np.ndarray]]) -> np.ndarray:
    """lora_B of stacked experts, from the lora_B [out, rank] of each expert's projections.

    Projections that are concatenated in a parameter have concatenated ranks: each is multiplied with its own lora_A.
    """
    first = parts[0]
    rows, ranks = (sum(half.shape[axis] for half in first) for axis in (0, 1))
    result = np.zeros((rows, ranks, len(parts)), first[0].dtype)
    for number, expert in enumerate(parts):
        row = column = 0
        for half in expert:
            result[row : row + half.shape[0], column : column + half.shape[1], number] = half
            row, column = row + half.shape[0], column + half.shape[1]
    return result.reshape(rows, ranks * len(parts))
