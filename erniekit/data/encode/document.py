"""An encoded sample: token ids, labels, and the modality and positions of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erniekit.data.encode.positions import media_positions, text_positions
from erniekit.data.media.item import Media

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Document:
    """An encoded sample of T tokens.

    input_ids int32 [T]; labels int32 [T], already shifted: the token to predict at position t, IGNORE for none.
    branches: for a preference pair, the starts of the chosen and the rejected answer; both continue the shared tokens
    before the chosen one, and do not see each other (see `erniekit.data.encode.pairs`). reference: for a pair, the
    log-probabilities of both answers under the reference model, if they are known.
    """

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    media: tuple[Media, ...]
    sample_id: str
    branches: tuple[int, int] | None = None
    reference: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_loss_tokens(self) -> int:
        """Positions with a label."""
        return int(np.count_nonzero(self.labels != IGNORE))

    @property
    def num_patches(self) -> int:
        """Patches of its images and videos: the cost for the vision tower."""
        return sum(item.num_patches for item in self.media)

    @property
    def modality(self) -> npt.NDArray[np.int8]:
        """[T] int8: 1 for placeholders and their start and end markers, 0 for text."""
        modality = np.zeros(len(self), np.int8)
        for item in self.media:
            modality[item.start - 1 : item.start + item.tokens + 1] = 1
        return modality

    @property
    def media_positions(self) -> npt.NDArray[np.int64]:
        """[M] int64: indices of the placeholders, image by image, video by video."""
        spans = [np.arange(item.start, item.start + item.tokens) for item in self.media]
        return np.concatenate(spans) if spans else np.zeros(0, np.int64)

    @property
    def position_ids(self) -> npt.NDArray[np.int64]:
        """[3, T] int64 (t, h, w) for 3-D RoPE, see `erniekit.data.encode.positions`.

        Both answers of a pair continue from the shared tokens.
        """
        positions = np.empty((3, len(self)), np.int64)
        chosen, rejected = self.branches or (len(self), len(self))
        shared = self._place(positions, 0, chosen, 0)
        self._place(positions, chosen, rejected, shared)
        self._place(positions, rejected, len(self), shared)
        return positions

    @property
    def num_positions(self) -> int:
        """Number of positions. Fewer than tokens if it has media or is a preference pair."""
        return int(self.position_ids.max()) + 1

    def _place(self, positions: npt.NDArray[np.int64], start: int, stop: int, current: int) -> int:
        """Fill [:, start:stop], starting at position `current`; returns the next position."""
        end = start
        for item in self.media:
            if not start <= item.start < stop:
                continue
            positions[:, end : item.start], current = text_positions(current, item.start - end)
            end = item.start + item.tokens
            positions[:, item.start : end], current = media_positions(current, *item.token_grid)
        positions[:, end:stop], current = text_positions(current, stop - end)
        return current
