"""Samples that cannot be read when a row is made of them."""

from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.encoder import Encoder
from erniekit.data.store.dataset import Dataset
from erniekit.errors import DataError
from tests.unit.data.helpers import encoded, noise, qa, write_lines
from tests.unit.data.loading import ROOM, assert_same, load, make_loader

pytestmark = pytest.mark.slow


def broken_dataset(vl_encoder: Encoder, tmp_path: Path, **options: Any) -> Dataset:
    """Ten samples, three of which have a truncated JPEG: only decoding finds that."""
    items = []
    for number in range(10):
        path = tmp_path / f"{number}.jpg"
        jpeg = encoded(noise(60, 60, number), "JPEG")
        path.write_bytes(jpeg[: len(jpeg) // 2] if number in (2, 5, 6) else jpeg)
        items.append(qa("<image>", f"answer {number}", images=[path.name]))
    path = write_lines(tmp_path / "f.jsonl", items)
    return load(vl_encoder, path, max_length=ROOM, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_an_error_that_names_sample_and_file(
    vl_encoder: Encoder, tmp_path: Path, workers: int
) -> None:
    loader = make_loader(broken_dataset(vl_encoder, tmp_path), workers, shuffle=False)
    with pytest.raises(SampleError, match=r"f\.jsonl:3: .*/2\.jpg.*truncated"):
        for _ in range(10):
            loader.next_row()
    loader.close()


def test_a_row_read_ahead_moves_nothing_and_its_error_comes_with_the_row(
    vl_encoder: Encoder, tmp_path: Path
) -> None:
    dataset = broken_dataset(vl_encoder, tmp_path)
    plain, ahead = (make_loader(dataset, shuffle=False, max_length=40) for _ in range(2))
    for _ in range(2):
        before = ahead.state
        ahead.prefetch()
        ahead.prefetch()
        assert ahead.state == before
        assert_same(ahead.next_row(), plain.next_row())
        assert ahead.state == plain.state
    ahead.prefetch()
    assert ahead.state == plain.state
    with pytest.raises(SampleError, match=r"f\.jsonl:3"):
        ahead.next_row()
    # A state that is loaded forgets what was read.
    ahead.prefetch()
    ahead.load_state_dict(make_loader(dataset, shuffle=False, max_length=40).state_dict())
    assert ahead.next_row().sample_ids == (f"{tmp_path}/f.jsonl:1",)


@pytest.mark.parametrize(("workers", "room"), [(0, ROOM), (2, ROOM), (0, 40)])
def test_truncated_images_are_skipped_and_counted_once(
    vl_encoder: Encoder, tmp_path: Path, workers: int, room: int
) -> None:
    # With room for one document a row, a broken one leaves its row empty, and the row is passed over.
    dataset = broken_dataset(vl_encoder, tmp_path, on_error="skip")
    loader = make_loader(dataset, workers, max_length=room)
    while loader.epoch < 2:
        row = loader.next_row()
        assert not {f"{tmp_path}/f.jsonl:{line}" for line in (3, 6, 7)} & set(row.sample_ids)
        assert len(row.grid_thw) == len(row.sample_ids)
    assert dataset.budget.by_reason() == "bad image: 3"
    loader.close()


def test_too_many_truncated_images(vl_encoder: Encoder, tmp_path: Path) -> None:
    loader = make_loader(broken_dataset(vl_encoder, tmp_path, on_error="skip", max_errors=2))
    with pytest.raises(DataError, match=r"more than data\.max_errors=2 samples"):
        for _ in range(10):
            loader.next_row()


def test_no_image_at_all_does_not_turn_for_ever(vl_encoder: Encoder, tmp_path: Path) -> None:
    dataset = broken_dataset(vl_encoder, tmp_path, on_error="skip")
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of the last 1000 rows .*\(missing image: 10\)"):
        make_loader(dataset).next_row()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_during_a_run(vl_encoder: Encoder, tmp_path: Path, workers: int) -> None:
    """An error that names sample and file, or with on_error skip a sample less."""
    names = [f"{number}.png" for number in range(10)]
    path = write_lines(tmp_path / "f.jsonl", [qa("<image>", images=[name]) for name in names])
    for on_error in ("raise", "skip"):
        for number, name in enumerate(names):
            noise(60, 60, number).save(tmp_path / name)
        loader = make_loader(load(vl_encoder, path, max_length=40, on_error=on_error), workers, max_length=40)
        first = loader.next_row()
        for name in names:
            (tmp_path / name).unlink()
        lost = (
            r"f\.jsonl:\d+: .*\d\.png" if on_error == "raise" else "none of the last 1000 rows has a sample"
        )
        with pytest.raises(DataError if on_error == "skip" else SampleError, match=lost):
            for _ in range(10):
                assert len(loader.next_row().sample_ids) == len(first.sample_ids)
        loader.close()


def test_an_image_that_has_changed_since_loading(vl_encoder: Encoder, tmp_path: Path) -> None:
    dataset = broken_dataset(vl_encoder, tmp_path)
    noise(60, 400).save(tmp_path / "0.jpg")
    with pytest.raises(SampleError, match=r"f\.jsonl:1: .*/0\.jpg has changed since the data was read"):
        make_loader(dataset, shuffle=False).next_row()


def test_a_document_longer_than_a_row(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="does not fit in a row of 20"):
        make_loader(dataset, max_length=20).next_row()
