"""Context parallelism: several processes compute each row (DeepSpeed-Ulysses, Jacobs et al., arXiv 2309.14509).

Each process has a span of the row's tokens for all token-wise layers. Before attention an uneven all-to-all turns
[tokens of the span, all heads] into [all tokens, some heads], and after it another one turns that back, so attention
itself does not change.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import all_reduce_, all_reduce_host
from erniekit.distributed.differentiable import all_to_all_rows, shared_sum
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.watchdog import ranks_text
from erniekit.errors import ErnieKitError
from erniekit.models.attention import Attend
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs


def apply_context_parallel(model: ErnieModel, group: ProcessGroup) -> None:
    """Make a model compute each row together with the other processes of a group; no change for a group of one."""
    if group.size > 1:
        vision = model.config.vision
        model.sharding = ContextParallel(group, 1 if vision is None else vision.spatial_merge_size)


class ContextParallel:
    """Shards each row over a group of processes; see `erniekit.models.sequence_sharding.SequenceSharding`.

    Spans are consecutive and of nearly equal length. Images and pairs of video frames are assigned to processes in
    order, with nearly equal numbers of patches; their features are sent to the spans that contain their tokens. merge:
    patches along each side of a media token.
    """

    def __init__(self, group: ProcessGroup, merge: int) -> None:
        self._group, self._merge = group, merge

    @property
    def counts(self) -> bool:
        return self._group.rank == 0

    def span(self, tokens: int) -> tuple[int, int]:
        bounds = _bounds(tokens, self._group.size)
        return int(bounds[self._group.rank]), int(bounds[self._group.rank + 1])

    def part(self, row: RowInputs) -> RowInputs:
        """See `SequenceSharding`. Raises ErnieKitError if the processes do not have the same row."""
        self._check_same_row(row)
        start, stop = self.span(len(row.input_ids))
        first = min(start, stop - 1)
        media = self._media_shards(row)
        inside = (row.media_positions >= start) & (row.media_positions < stop)
        return replace(
            row,
            input_ids=row.input_ids[first:stop],
            position_ids=row.position_ids[:, first:stop],
            modality=row.modality[first:stop],
            patches=row.patches[slice(*media.patches[self._group.rank :][:2])],
            grid_thw=media.grid_thw[slice(*media.units[self._group.rank :][:2])],
            media_positions=row.media_positions[inside] - start,
            valid=row.valid and start < stop,
        )

    def features(self, features: Tensor, row: RowInputs) -> Tensor:
        tokens = self._media_shards(row).tokens
        used = np.searchsorted(row.media_positions, _bounds(len(row.input_ids), self._group.size))
        rank = self._group.rank
        send = _overlaps(tokens[rank : rank + 2], used)
        receive = _overlaps(used[rank : rank + 2], tokens)
        return all_to_all_rows(features, send, receive, self._group)

    def attend(self, attend: Attend, tokens: int) -> Attend:
        counts = np.diff(_bounds(tokens, self._group.size)).tolist()
        return _ShardedAttention(attend, counts, self._group)

    def add(self, counts: Tensor) -> Tensor:
        total = counts.clone()
        all_reduce_(total, self._group)
        return total

    def total(self, sums: Tensor) -> Tensor:
        return shared_sum(sums, self._group)

    def _check_same_row(self, row: RowInputs) -> None:
        """Processes with different rows would compute wrong results or deadlock."""
        digest = zlib.crc32(row.grid_thw.tobytes(), zlib.crc32(row.input_ids.tobytes()))
        high, low = all_reduce_host(np.array([digest, -digest]), self._group, "max").tolist()
        if high != -low:
            raise ErnieKitError(
                f"{ranks_text(self._group.ranks)} must compute the same row (parallel.context), but have read "
                "different ones. Check whether only some of them can read an image or a video, or whether their data "
                "files differ. Skipped samples are listed above. Earlier checkpoints are not affected"
            )

    def _media_shards(self, row: RowInputs) -> MediaShards:
        return shard_media(row.grid_thw, self._group.size, self._merge)


class _ShardedAttention:
    """Attention with the heads sharded over a group; `counts` are the tokens of each process."""

    def __init__(self, attend: Attend, counts: list[int], group: ProcessGroup) -> None:
        self._attend, self._counts, self._group = attend, counts, group

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attend`. The output for the placeholder token of a process without tokens is zero."""
        tokens, size = self._counts[self._group.rank], self._group.size
        even = [tokens] * size
        placeholders = query.shape[0] - tokens
        if placeholders:
            query, key, value = query[:tokens], key[:tokens], value[:tokens]
        parts = zip(*(_split_heads(x, size) for x in (query, key, value)), strict=True)
        packed = paddle.concat([paddle.concat(part, axis=1) for part in parts])
        received = all_to_all_rows(packed, even, self._counts, self._group)
        heads = query.shape[1] // size
        kv_heads = (received.shape[1] - heads) // 2
        attended = self._attend(layer, *received.split([heads, kv_heads, kv_heads], axis=1))
        output = paddle.concat(all_to_all_rows(attended, self._counts, even, self._group).split(even), axis=1)
        if placeholders:
            output = paddle.concat([output, paddle.zeros([placeholders, *output.shape[1:]], output.dtype)])
        return output


def _split_heads(x: Tensor, size: int) -> list[Tensor]:
    """[T, heads, d] -> the heads of each process. With fewer heads than processes, several processes get the same."""
    heads = x.shape[1]
    parts = x.split(min(size, heads), axis=1) if heads > 1 else [x]
    return [part for part in parts for _ in range(size // len(parts))]


@dataclass(frozen=True)
class MediaShards:
    """The images and videos that the vision tower of each process computes, as bounds [size + 1] in the row's order.

    grid_thw [U, 3]: the units that are assigned to processes, images and pairs of frames. units, patches, tokens:
    bounds in units, in patches and in media tokens.
    """

    grid_thw: np.ndarray
    units: list[int]
    patches: list[int]
    tokens: list[int]


def shard_media(grid_thw: np.ndarray, size: int, merge: int) -> MediaShards:
    """Assign the images and videos of a row (grid_thw, int [N, 3]) to `size` processes.

    The resampler merges pairs of frames and the vision tower computes each frame separately, so videos can be split
    between pairs. With the patches divided evenly among the processes, a unit goes to the process that has its middle.
    """
    units = np.repeat(grid_thw, np.maximum(grid_thw[:, 0] // 2, 1), axis=0)
    units[:, 0] = np.minimum(units[:, 0], 2)
    costs = units.astype(np.int64).prod(1)
    tokens = units[:, 1].astype(np.int64) * units[:, 2] // merge**2
    ends = np.cumsum(costs)
    owners = (2 * ends - costs) * size // (2 * costs.sum()) if len(units) else ends
    bounds = np.searchsorted(owners, np.arange(size + 1))
    patches, media_tokens = (np.concatenate([[0], np.cumsum(x)])[bounds] for x in (costs, tokens))
    return MediaShards(units, bounds.tolist(), patches.tolist(), media_tokens.tolist())


def _bounds(tokens: int, size: int) -> np.ndarray:
    """int64 [size + 1]: the starts of the spans of a row, and its end."""
    length, rest = divmod(tokens, size)
    return np.cumsum([0, *(length + (rank < rest) for rank in range(size))])


def _overlaps(interval: np.ndarray | list[int], bounds: np.ndarray | list[int]) -> list[int]:
    """The length of the overlap of `interval` [2] with each of the intervals between `bounds`."""
    return np.diff(np.clip(bounds, interval[0], interval[1])).tolist()
