import dataclasses
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.media.frames import video_info
from erniekit.data.media.images import open_image
from erniekit.data.media.item import Media, MediaSpec, decode
from erniekit.data.media.patches import ImageSpec, image_grid, num_tokens, patchify
from erniekit.data.media.video import VideoSpec, patchify_video, sample_frames, video_grid, video_tokens
from tests.unit.data.helpers import encoded, noise
from tests.unit.data.videos import video

LIMITS = (28 * 28, 6 * 28 * 28)
SPEC = MediaSpec(
    ImageSpec(*LIMITS, patch_size=14, merge_size=2, image_mean=(0.5,) * 3, image_std=(0.5,) * 3),
    VideoSpec(2.0, 4, 8, "leading", True, *LIMITS, patch_size=14, merge_size=2, seed=0),
)


def image_media(source: str | bytes, height: int, width: int) -> Media:
    grid = image_grid(height, width, SPEC.image)
    return Media(source, grid, start=1, tokens=num_tokens(grid, SPEC.image), merge_size=2)


def film(source: str | bytes | tuple[str | bytes, ...]) -> Media:
    info = video_info(source, "f:1")
    frames = sample_frames(info, SPEC.video, "k")
    grid = video_grid(info, frames, SPEC.video)
    return Media(source, grid, start=1, tokens=video_tokens(grid, SPEC.video), merge_size=2, frames=frames)


def test_images_and_videos_in_order() -> None:
    shot, still = video(30), encoded(noise(40, 70))
    frames = tuple(encoded(noise(30, 30, seed=seed)) for seed in range(3))
    media = (film(shot), image_media(still, 40, 70), film(frames))
    found = decode(media, "f:1", SPEC)
    assert [len(patches) for patches in found] == [item.num_patches for item in media]
    np.testing.assert_array_equal(found[1], patchify(open_image(still, "f:1"), SPEC.image)[0])
    for place, source in ((0, shot), (2, frames)):
        item = media[place]
        expected = patchify_video(source, item.frames, item.grid_thw, SPEC.video, "f:1")
        np.testing.assert_array_equal(found[place], expected)


def test_text_needs_no_spec() -> None:
    assert decode((), "f:1", None) == []


def test_an_image_that_has_changed_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(40, 70).save(path)
    item = image_media(str(path), 40, 70)
    for height, width in ((70, 40), (1, 900)):
        noise(height, width).save(path)
        with pytest.raises(SampleError, match=r"^f:1: the image .*a\.png has changed since") as caught:
            decode([item], "f:1", SPEC)
        assert caught.value.reason == "bad image"
    path.unlink()
    with pytest.raises(SampleError) as caught:
        decode([item], "f:1", SPEC)
    assert caught.value.reason == "missing image"


def test_worker_processes_give_the_same() -> None:
    media = (film(video(12)), image_media(encoded(noise(40, 70)), 40, 70))
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(decode, media, "f:1", SPEC).result()
        failed = pool.submit(decode, [dataclasses.replace(media[1], source=b"x")], "f:1", SPEC)
        error = failed.exception()
    for ours, theirs in zip(decode(media, "f:1", SPEC), there, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert isinstance(error, SampleError) and (error.sample_id, error.reason) == ("f:1", "bad image")
