"""The KV cache: keys and values of a batch of sequences during decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.models.attention import DocumentAttention

# Slots added to a full cache: few enough to waste little attention, many enough to copy rarely.
_GROWTH = 32
_MASKED = -1e30


class PrefillAttention:
    """Attention over a row of prompts, which keeps the keys and values of each layer.

    An `Attend` (erniekit.models.attention). `keys`, `values`: per layer [T, kv heads, d].
    """

    def __init__(self, cu_seqlens: np.ndarray, heads: int) -> None:
        self.lengths = np.diff(cu_seqlens).astype(np.int64)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._attend = DocumentAttention(cu_seqlens, causal=True, heads=heads)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys[layer], self.values[layer] = key, value
        return self._attend(layer, query, key, value)


class KeyValueCache:
    """Keys and values [N, kv heads, slots, d] of each layer; an `Attend` for one new token per sequence.

    All sequences end at the same slot, so that a step writes the same slot of each; shorter ones start later, and
    the slots before their start are masked. Call `open_slot` before each step of the model.
    """

    def __init__(self, prefilled: Sequence[PrefillAttention]) -> None:
        """Moves the keys and values out of the rows of prompts, in order."""
        lengths = np.concatenate([row.lengths for row in prefilled])
        self._end = int(lengths.max())
        self._starts = self._end - lengths
        self._mask: Tensor | None = None
        index = paddle.to_tensor(_slot_index(lengths, self._end + _GROWTH).reshape(-1))
        shape = [len(lengths), self._end + _GROWTH]
        self._keys = {}
        self._values = {}
        # Layer by layer, so that only one layer is in memory twice.
        for layer in sorted(prefilled[0].keys):
            self._keys[layer] = _gather([row.keys.pop(layer) for row in prefilled], index, shape)
            self._values[layer] = _gather([row.values.pop(layer) for row in prefilled], index, shape)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`query` [N, heads, d]; `key`, `value` [N, kv heads, d] of the open slot -> [N, heads, d]."""
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self._end - 1] = key
        values[:, :, self._end - 1] = value
        sequences, heads, width = query.shape
        # Query heads that share a key are rows of one matrix product.
        grouped = (query * width**-0.5).reshape([sequences, key.shape[1], -1, width])
        scores = paddle.matmul(grouped, keys, transpose_y=True).astype("float32") + self._mask
        weights = F.softmax(scores, axis=-1).astype(values.dtype)
        return paddle.matmul(weights, values).reshape([sequences, heads, width])

    def open_slot(self) -> None:
        """Makes room for the next token of each sequence."""
        slots = next(iter(self._keys.values())).shape[2]
        if self._end == slots:
            for tensors in (self._keys, self._values):
                for layer, tensor in tensors.items():
                    sequences, heads, _, width = tensor.shape
                    room = paddle.zeros([sequences, heads, _GROWTH, width], tensor.dtype)
                    tensors[layer] = paddle.concat([tensor, room], axis=2)
            slots += _GROWTH
        self._end += 1
        seen = (np.arange(slots) >= self._starts[:, None]) & (np.arange(slots) < self._end)
        mask = np.where(seen, 0.0, _MASKED).astype(np.float32)
        self._mask = paddle.to_tensor(mask[:, None, None, :])

    def keep(self, sequences: np.ndarray) -> None:
        """Keeps only the sequences at these indices, int64 [n] ascending."""
        index = paddle.to_tensor(sequences)
        self._starts = self._starts[sequences]
        for tensors in (self._keys, self._values):
            for layer, tensor in tensors.items():
                tensors[layer] = paddle.index_select(tensor, index)


def _slot_index(lengths: np.ndarray, slots: int) -> np.ndarray:
    """int64 [N, slots]: the index in the joined rows of each slot's token; any index for masked slots."""
    end, starts = int(lengths.max()), np.cumsum(lengths) - lengths
    place = np.arange(slots) - (end - lengths)[:, None]
    real = (place >= 0) & (place < lengths[:, None])
    return np.where(real, starts[:, None] + place, 0)


def _gather(rows: list[Tensor], index: Tensor, shape: list[int]) -> Tensor:
    """Rows [T, kv heads, d] -> [N, kv heads, slots, d], contiguous so that slots can be written in place."""
    joined = rows[0] if len(rows) == 1 else paddle.concat(rows)
    slots = paddle.index_select(joined, index).reshape([*shape, *joined.shape[1:]])
    return slots.transpose([0, 2, 1, 3]).contiguous()
