"""Images and videos in documents: room, modality, positions."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import Conversation, ImagePart, Message, SampleError, TextPart, VideoPart
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.errors import CheckpointError
from tests.unit.data.helpers import (
    SHARED,
    SPECIAL,
    chat,
    encoded,
    make_checkpoint,
    make_tokenizer,
    noise,
    video,
    write_json,
)

SMALL = encoded(noise(8, 8))  # 2 x 2 tokens
WIDE = encoded(noise(56, 140))  # 2 x 5 tokens
# 4 frames of 56 x 84 pixels, enlarged to 420 x 616: 15 x 22 tokens for each two frames.
CLIP = video(56, 84, 4)
CLIP_TOKENS = 2 * 15 * 22


def test_media_and_modality(vl_encoder: Encoder) -> None:
    conversation = chat(
        ("user", ["a", WIDE, "b", SMALL]), ("assistant", "Paris"), ("user", [SMALL, WIDE]), ("assistant", "b")
    )
    document = vl_encoder.encode(conversation)
    tokens = vl_encoder.media_tokens
    assert tokens is not None
    assert [item.source for item in document.media] == [WIDE, SMALL, SMALL, WIDE]
    assert [item.grid_thw for item in document.media] == [(1, 4, 10), (1, 4, 4), (1, 4, 4), (1, 4, 10)]
    for item in document.media:
        assert document.input_ids[item.start - 1] == tokens.image_start
        assert document.input_ids[item.start + item.tokens] == tokens.image_end
    placeholders = np.flatnonzero(document.input_ids == tokens.image_placeholder)
    np.testing.assert_array_equal(document.media_positions, placeholders)
    markers = np.isin(document.input_ids, [tokens.image_placeholder, tokens.image_start, tokens.image_end])
    np.testing.assert_array_equal(document.modality, markers.astype(np.int8))
    assert (document.labels[document.modality == 1] == IGNORE).all()


def test_videos(vl_encoder: Encoder) -> None:
    tokens = vl_encoder.media_tokens
    assert tokens is not None and vl_encoder.media_spec is not None
    assert vl_encoder.image_spec is vl_encoder.media_spec.image
    document = vl_encoder.encode(chat(("user", [SMALL, CLIP, "q", CLIP]), ("assistant", "a")))
    still, one, two = document.media
    assert (still.is_video, one.is_video) == (False, True)
    assert (one.source, one.grid_thw, one.tokens) == (CLIP.source, (4, 30, 44), CLIP_TOKENS)
    assert (one.frames, one.merge_size) == ((0, 1, 2, 3), 2)
    assert two == dataclasses.replace(one, start=two.start)
    for item in (one, two):
        assert document.input_ids[item.start - 1] == tokens.video_start
        assert document.input_ids[item.start + item.tokens] == tokens.video_end
        np.testing.assert_array_equal(
            document.input_ids[item.start : item.start + item.tokens], tokens.video_placeholder
        )
    assert (document.labels[document.modality == 1] == IGNORE).all()
    decoded = make_tokenizer(None).decode(document.input_ids[document.modality == 0])
    assert "User: Picture 1:Video 1:qVideo 2:\nAssistant: " in decoded


def test_a_video_token_of_its_own(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "vl")
    config = json.loads((directory / "config.json").read_text())
    image, video_token = config.pop("im_patch_id"), SPECIAL.index("<|image@placeholder|>")
    config |= {"model_type": "ernie4_5_vl_moe", "image_token_id": image, "video_token_id": video_token}
    write_json(directory / "config.json", config)
    document = make_encoder(directory).encode(chat(("user", [CLIP, SMALL]), ("assistant", "a")))
    clip, still = document.media
    assert (document.input_ids[clip.start : clip.start + clip.tokens] == video_token).all()
    assert (document.input_ids[still.start : still.start + still.tokens] == image).all()


def test_a_placeholder_that_is_a_token_of_text(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "vl")
    (word,) = make_tokenizer(None).encode("User:", add_special_tokens=False)
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"im_patch_id": word})
    with pytest.raises(CheckpointError, match=rf"{word} as the ids of .* placeholders, but text has these"):
        make_encoder(directory).encode(chat(("user", [SMALL, "a"]), ("assistant", "b")))


def test_options_of_videos(vl_checkpoint: Path) -> None:
    options = DataConfig.without_sources(video_max_frames=2, video_min_pixels=784, video_max_pixels=1568)
    conversation = chat(("user", CLIP), ("assistant", "a"))
    (item,) = make_encoder(vl_checkpoint, options).encode(conversation).media
    assert (item.grid_thw, item.frames, item.tokens) == ((2, 2, 2), (0, 2), 1)
    random = options.model_copy(update={"video_sampling": "random"})
    found = {
        make_encoder(vl_checkpoint, random, seed=seed).encode(conversation).media[0].frames
        for seed in range(8)
    }
    assert len(found) > 1
    again = make_encoder(vl_checkpoint, random)
    assert again.encode(conversation).media[0].frames == again.encode(conversation).media[0].frames


def test_positions_by_hand(vl_encoder: Encoder) -> None:
    document = vl_encoder.encode(chat(("user", ["a", WIDE]), ("assistant", "a")))
    start = document.media[0].start
    t, h, w = document.position_ids
    for axis in (t, h, w):
        np.testing.assert_array_equal(axis[:start], np.arange(start))
        np.testing.assert_array_equal(
            axis[start + 10 :], np.arange(start + 5, start + 5 + len(document) - start - 10)
        )
    assert t[start : start + 10].tolist() == [start] * 10
    assert (h[start : start + 10] - start).tolist() == [0] * 5 + [1] * 5
    assert (w[start : start + 10] - start).tolist() == [0, 1, 2, 3, 4] * 2


def transformers_positions(document: Document) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe import Ernie4_5_VLMoeModel

    # The method needs of its model only two settings: a model need not be built.
    settings = SimpleNamespace(vision_config=SimpleNamespace(temporal_merge_size=2, spatial_merge_size=2))
    stand_in = SimpleNamespace(config=settings)
    stand_in.get_vision_position_ids = lambda *a, **k: Ernie4_5_VLMoeModel.get_vision_position_ids(
        stand_in, *a, **k
    )
    ids = torch.from_numpy(document.input_ids.astype(np.int64))[None]
    types = torch.zeros_like(ids, dtype=torch.int32)
    grids: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    for item in document.media:
        types[0, item.start : item.start + item.tokens] = 2 if item.is_video else 1
        grids[item.is_video].append(item.grid_thw)
    images, videos = (torch.tensor(grids[kind]) if grids[kind] else None for kind in (False, True))
    found, _ = Ernie4_5_VLMoeModel.get_rope_index(
        stand_in, ids, types, image_grid_thw=images, video_grid_thw=videos
    )
    positions: np.ndarray = found[:, 0].numpy()
    return positions


def test_positions_equal_transformers(vl_checkpoint: Path) -> None:
    encoder = make_encoder(
        vl_checkpoint, DataConfig.without_sources(video_min_pixels=784, video_max_pixels=784 * 20)
    )
    generator = np.random.default_rng(3)
    media = [encoded(noise(*size)) for size in ((8, 8), (56, 140), (140, 56), (28, 300), (90, 90))]
    # Token times are not more than rows or columns: see erniekit.data.encode.positions.
    clips = [video(28, 56, 4), video(56, 28, 3), video(84, 56, 5), video(112, 112, 8)]
    seen = set()
    for _ in range(30):
        content = [
            [*media, *clips, "some text", "more"][kind]
            for kind in generator.integers(0, len(media) + len(clips) + 2, 6)
        ]
        if not any(isinstance(item, bytes | VideoPart) for item in content):
            continue
        document = encoder.encode(chat(("user", content), ("assistant", "a")))
        seen |= {item.grid_thw for item in document.media}
        np.testing.assert_array_equal(document.position_ids, transformers_positions(document))
    assert {(4, 2, 4), (4, 4, 2), (6, 6, 4), (8, 8, 8)} <= seen


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_positions_and_modality_of_the_stored_reference() -> None:
    stored = np.load(SHARED / "reference_models" / "ref_vl.npz")
    encoder = make_encoder(SHARED / "reference_models" / "vl_hub")
    assert encoder.media_tokens is not None
    conversation = chat(
        ("user", ["what is in the picture? ", (SHARED / "reference_models" / "ref_image.png").read_bytes()]),
        ("assistant", "a small cat and two apples on a table."),
    )
    document = encoder.encode(conversation)
    ids = stored["in_input_ids"][0]
    start = int(np.flatnonzero(ids == encoder.media_tokens.image_placeholder)[0])
    # The stored sequence has the same image; its texts differ a little from the template's.
    item = document.media[0]
    assert (item.grid_thw, item.tokens) == (tuple(stored["in_image_grid_thw"][0]), 12)
    expected = stored["position_ids_thw"][:, 0]
    shift = item.start - start
    np.testing.assert_array_equal(
        document.position_ids[:, item.start : item.start + 16] - shift, expected[:, start : start + 16]
    )
    modality = document.modality[item.start - 1 : item.start + 13]
    np.testing.assert_array_equal(modality, stored["in_moe_mm_token_type_ids"][0, start - 1 : start + 13])


def test_images_that_cannot_be_used(text_encoder: Encoder, vl_encoder: Encoder) -> None:
    with pytest.raises(
        SampleError, match=r"^f:1: the model does not take images or videos, but the sample has /x\.png"
    ):
        text_encoder.encode(Conversation(image_chat("/x.png"), "f:1"))
    with pytest.raises(SampleError, match="does not take images or videos, but the sample has") as caught:
        text_encoder.encode(chat(("user", CLIP), ("assistant", "a")))
    assert caught.value.reason == "not supported"
    with pytest.raises(SampleError, match=r"the video .* cannot be used: one side is more") as caught:
        vl_encoder.encode(chat(("user", video(2, 900, 2)), ("assistant", "a")))
    assert caught.value.reason == "bad video"
    with pytest.raises(SampleError, match=r"^f:1: no such image: /none/x\.png"):
        vl_encoder.encode(Conversation(image_chat("/none/x.png"), "f:1"))
    with pytest.raises(SampleError, match="cannot be used: one side is more than 200 times the other"):
        vl_encoder.encode(chat(("user", encoded(noise(2, 900))), ("assistant", "a")))


def image_chat(path: str) -> tuple[Message, Message]:
    return Message("user", (ImagePart(path),), False), Message("assistant", (TextPart("a"),), True)
