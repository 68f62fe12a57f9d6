"""3-D positions: one rule, also after a video of more token times than rows and columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config import DataConfig
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.encode.positions import media_positions, text_positions
from erniekit.data.load.loader import load_row
from erniekit.data.media.item import Media
from erniekit.export.reference import reference_row
from erniekit.models.config import VisionConfig
from tests.unit.data.helpers import chat, video

VISION = VisionConfig(1, 32, 64, 2, 14, 3, 2, 2)


def document_with(grid: tuple[int, int, int], frames: bool) -> Document:
    """Four tokens of text, an image or video between its markers, three tokens of text."""
    tokens = grid[0] * grid[1] * grid[2] // (8 if frames else 4)
    ids = np.zeros(4 + tokens + 3, np.int32)
    media = Media("x", grid, 4, tokens, 2, tuple(range(grid[0])) if frames else ())
    return Document(ids, ids.copy(), (media,), "x:1")


@pytest.mark.parametrize(
    ("grid", "frames", "next_position"),
    [
        ((1, 4, 10), False, 4 + 5),
        ((1, 10, 4), False, 4 + 5),
        ((4, 4, 6), True, 4 + 3),
        ((10, 4, 6), True, 4 + 5),  # 5 token times, 2 rows, 3 columns
        ((180, 34, 26), True, 4 + 90),
    ],
)
def test_text_continues_behind_the_longest_side(
    grid: tuple[int, int, int], frames: bool, next_position: int
) -> None:
    document = document_with(grid, frames)
    item = document.media[0]
    end = item.start + item.tokens
    for axis in document.position_ids:
        assert axis[:4].tolist() == [0, 1, 2, 3]
        assert axis[end:].tolist() == [next_position, next_position + 1, next_position + 2]
    t, h, w = document.position_ids[:, item.start : end]
    times, rows, columns = item.token_grid
    assert (t.min(), h.min(), w.min()) == (4, 4, 4)
    assert (t.max(), h.max(), w.max()) == (3 + times, 3 + rows, 3 + columns)


def test_functions_by_hand() -> None:
    text, after = text_positions(3, 2)
    assert text.tolist() == [[3, 4]] * 3 and after == 5
    box, after = media_positions(5, 3, 1, 2)
    assert box.tolist() == [[5, 5, 6, 6, 7, 7], [5] * 6, [5, 6] * 3]
    assert after == 8


@pytest.mark.parametrize("grid", [(4, 4, 6), (12, 4, 4)])
def test_references_are_placed_as_training_places_documents(grid: tuple[int, int, int]) -> None:
    document = document_with(grid, True)
    kinds = np.zeros((1, len(document)), np.int64)
    kinds[0, document.media_positions] = 2
    stored: dict[str, Any] = {
        "in_input_ids": document.input_ids[None],
        "in_mm_token_type_ids": kinds,
        "in_moe_mm_token_type_ids": kinds,
        "in_video_grid_thw": np.array([grid]),
        "in_pixel_values_videos": np.zeros((int(np.prod(grid)), 588), np.float32),
    }
    row, _ = reference_row(stored, VISION, "here")
    np.testing.assert_array_equal(row.position_ids, document.position_ids)


def test_transformers_is_compared_at_the_positions_of_training(vl_checkpoint: Path) -> None:
    pytest.importorskip("torch")
    from erniekit.export.verify_transformers import torch_inputs

    encoder = make_encoder(
        vl_checkpoint, DataConfig.without_sources(video_min_pixels=784, video_max_pixels=784 * 4)
    )
    document = encoder.encode(chat(("user", [video(28, 28, 8), "q"]), ("assistant", "a")))
    times, rows, columns = document.media[0].token_grid
    assert times > max(rows, columns)
    batch = load_row([document], encoder.media_spec)
    positions = torch_inputs(batch, encoder.media_spec)["position_ids"].numpy()
    assert positions.shape == (4, 1, len(document))
    np.testing.assert_array_equal(positions[0, 0], np.arange(len(document)))
    np.testing.assert_array_equal(positions[1:, 0], document.position_ids)
