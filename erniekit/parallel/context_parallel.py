"""Context parallelism: processes that share each row, in the form of Ulysses (Jacobs et al., arXiv 2309.14509).

Each process has a span of the row's tokens for all that works token by token. Around attention an uneven all-to-all
turns [own tokens, all heads] into [all tokens, own heads] and another one turns it back, so that attention itself is
what it is without.
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
    """Let a model compute each row together with the processes of a group. Nothing for a group of one."""
    if group.size > 1:
        vision = model.config.vision
        model.sharding = ContextParallel(group, 1 if vision is None else vision.spatial_merge_size)


class ContextParallel:
    """Rows that a group of processes shares; see `erniekit.models.sequence_sharding.SequenceSharding`.

    Spans are consecutive, as even as can be. Pictures and pairs of a video's frames are shared out in order, nearly
    even by patches, and their features go to the processes in whose spans they are used. merge: patches along each
    side of a media token.
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
        """See `SequenceSharding`. Raises ErnieKitError where the processes do not have the same row."""
        self._agree(row)
        start, stop = self.span(len(row.input_ids))
        first = min(start, stop - 1)
        media = self._media(row)
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
        tokens = self._media(row).tokens
        used = np.searchsorted(row.media_positions, _bounds(len(row.input_ids), self._group.size))
        rank = self._group.rank
        send = _overlaps(tokens[rank : rank + 2], used)
        receive = _overlaps(used[rank : rank + 2], tokens)
        return all_to_all_rows(features, send, receive, self._group)

    def attend(self, attend: Attend, tokens: int) -> Attend:
        counts = np.diff(_bounds(tokens, self._group.size)).tolist()
        return _SharedAttention(attend, counts, self._group)

    def add(self, counts: Tensor) -> Tensor:
        total = counts.clone()
        all_reduce_(total, self._group)
        return total

    def total(self, sums: Tensor) -> Tensor:
        return shared_sum(sums, self._group)

    def _agree(self, row: RowInputs) -> None:
        """Without this, processes with different rows would compute nonsense or wait for ever."""
        digest = zlib.crc32(row.grid_thw.tobytes(), zlib.crc32(row.input_ids.tobytes()))
        high, low = all_reduce_host(np.array([digest, -digest]), self._group, "max").tolist()
        if high != -low:
            raise ErnieKitError(
                f"{ranks_text(self._group.ranks)} share each row (parallel.context), but have read different ones: is "
                "there a picture or video that only some of them can read, or do they read different files? Samples "
                "that were skipped are named above. Earlier checkpoints are untouched"
            )

    def _media(self, row: RowInputs) -> _MediaShares:
        return share_media(row.grid_thw, self._group.size, self._merge)


class _SharedAttention:
    """Attention of which each process of a group computes some heads; `counts` are the tokens of each process."""

    def __init__(self, attend: Attend, counts: list[int], group: ProcessGroup) -> None:
        self._attend, self._counts, self._group = attend, counts, group

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attend`; of a process without tokens the one that stands in for them gets zeros."""
        own, size = self._counts[self._group.rank], self._group.size
        even = [own] * size
        absent = query.shape[0] - own
        if absent:
            query, key, value = query[:own], key[:own], value[:own]
        parts = zip(*(_by_process(x, size) for x in (query, key, value)), strict=True)
        leaving = paddle.concat([paddle.concat(part, axis=1) for part in parts])
        arrived = all_to_all_rows(leaving, even, self._counts, self._group)
        heads = query.shape[1] // size
        others = (arrived.shape[1] - heads) // 2
        output = self._attend(layer, *arrived.split([heads, others, others], axis=1))
        back = paddle.concat(all_to_all_rows(output, self._counts, even, self._group).split(even), axis=1)
        if absent:
            back = paddle.concat([back, paddle.zeros([absent, *back.shape[1:]], back.dtype)])
        return back


def _by_process(x: Tensor, size: int) -> list[Tensor]:
    """[T, heads, d] -> the heads of each process. Of fewer heads than processes, each goes to several."""
    heads = x.shape[1]
    parts = x.split(min(size, heads), axis=1) if heads > 1 else [x]
    return [part for part in parts for _ in range(size // len(parts))]


@dataclass(frozen=True)
class _MediaShares:
    """What the vision tower sees in each process, as bounds [size + 1] in the row's order.

    grid_thw [U, 3]: pictures and pairs of frames, the units of sharing; units, patches, tokens: bounds of each
    process's, the last in media tokens.
    """

    grid_thw: np.ndarray
    units: list[int]
    patches: list[int]
    tokens: list[int]


def share_media(grid_thw: np.ndarray, size: int, merge: int) -> _MediaShares:
    """Share the pictures and videos int [N, 3] of a row out to `size` processes.

    The resampler merges pairs of frames and the tower sees each frame alone, so that videos can be cut there. Each
    unit goes to the process in whose even share of all patches its middle lies.
    """
    units = np.repeat(grid_thw, np.maximum(grid_thw[:, 0] // 2, 1), axis=0)
    units[:, 0] = np.minimum(units[:, 0], 2)
    costs = units.astype(np.int64).prod(1)
    tokens = units[:, 1].astype(np.int64) * units[:, 2] // merge**2
    ends = np.cumsum(costs)
    owners = (2 * ends - costs) * size // (2 * costs.sum()) if len(units) else ends
    bounds = np.searchsorted(owners, np.arange(size + 1))
    patches, media_tokens = (np.concatenate([[0], np.cumsum(x)])[bounds] for x in (costs, tokens))
    return _MediaShares(units, bounds.tolist(), patches.tolist(), media_tokens.tolist())


def _bounds(tokens: int, size: int) -> np.ndarray:
    """int64 [size + 1]: where the spans of a row begin, and its end."""
    each, rest = divmod(tokens, size)
    return np.cumsum([0, *(each + (rank < rest) for rank in range(size))])


def _overlaps(own: np.ndarray | list[int], bounds: np.ndarray | list[int]) -> list[int]:
    """How much of the interval `own` [2] lies in each of the intervals between `bounds`."""
    return np.diff(np.clip(bounds, own[0], own[1])).tolist()
