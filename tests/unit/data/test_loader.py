import json
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.data import loader as loader_module
from erniekit.data.batch import PackedBatch
from erniekit.data.conversation import SampleError
from erniekit.data.dataset import Dataset, load_dataset
from erniekit.data.encode import Encoder
from erniekit.data.loader import RowLoader, load_row
from erniekit.data.media import open_image
from erniekit.data.vision import patchify
from erniekit.errors import DataError
from tests.unit.data.helpers import chat, data_uri, encoded, noise, qa, write_lines

ROOM = 160


def records(count: int = 40) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        image = {
            "type": "image",
            "image": data_uri(noise(8 + 20 * (number % 3), 8 + 16 * (number % 5), number)),
        }
        text = {"type": "text", "text": f"what is {number}?" * (1 + number % 4)}
        found.append(qa([[text], [image, text], [text, image, image]][number % 3], f"answer {number}"))
    return found


@pytest.fixture(scope="module")
def dataset(vl_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = write_lines(tmp_path_factory.mktemp("data") / "a.jsonl", records())
    return load_dataset([path], encoder=vl_encoder, max_length=ROOM)


def make(dataset: Dataset, workers: int = 2, **options: Any) -> RowLoader:
    return RowLoader(dataset, **{"max_length": ROOM, "shuffle": True, "seed": 5, **options}, workers=workers)


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for item in fields(PackedBatch):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


def test_a_row_is_its_documents_side_by_side(dataset: Dataset) -> None:
    spec = dataset.image_spec
    assert spec is not None
    by_id = {document.sample_id: document for document in dataset.documents}
    rows = make(dataset)
    for _ in range(rows.rows_per_epoch(0)):
        row = rows.next_row()
        documents = [by_id[sample_id] for sample_id in row.sample_ids]
        assert row.input_ids.dtype == row.labels.dtype == row.position_ids.dtype == np.int64
        assert row.modality.dtype == np.int8
        assert row.cu_seqlens.dtype == row.grid_thw.dtype == np.int32
        assert row.patches.dtype == np.uint8
        assert row.patches.shape[1] == 588
        assert row.cu_seqlens.tolist() == [0, *np.cumsum([len(document) for document in documents])]
        assert row.num_loss_tokens == sum(document.num_loss_tokens for document in documents)
        for document, start, end in zip(documents, row.cu_seqlens[:-1], row.cu_seqlens[1:], strict=True):
            np.testing.assert_array_equal(row.input_ids[start:end], document.input_ids)
            np.testing.assert_array_equal(row.labels[start:end], document.labels)
            np.testing.assert_array_equal(row.position_ids[:, start:end], document.position_ids)
            np.testing.assert_array_equal(row.modality[start:end], document.modality)
            assert row.labels[end - 1] == -100
        media = [(document, item) for document in documents for item in document.media]
        assert row.grid_thw.tolist() == [list(item.grid_thw) for _, item in media]
        patches = [patchify(open_image(item.source, "f:1"), spec)[0] for _, item in media]
        np.testing.assert_array_equal(row.patches, np.concatenate(patches or [np.zeros((0, 588), np.uint8)]))
        assert len(row.media_positions) == row.grid_thw.prod(1).sum() // 4
        placeholder = row.input_ids[row.media_positions]
        assert len(set(placeholder.tolist())) <= 1
        assert (row.modality[row.media_positions] == 1).all()


def test_every_document_once_an_epoch_and_another_order_in_the_next(dataset: Dataset) -> None:
    rows = make(dataset)
    seen: list[list[str]] = []
    for epoch in range(3):
        assert (rows.epoch, rows.row) == (epoch, 0)
        ids: list[str] = []
        for number in range(rows.rows_per_epoch(epoch)):
            assert (rows.epoch, rows.row) == (epoch, number)
            ids += rows.next_row().sample_ids
        assert sorted(ids) == sorted(document.sample_id for document in dataset.documents)
        seen.append(ids)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(dataset: Dataset, workers: int) -> None:
    plain, threaded = make(dataset, workers=0), make(dataset, workers=workers)
    for _ in range(plain.rows_per_epoch(0) + plain.rows_per_epoch(1) + 2):
        assert_same(plain.next_row(), threaded.next_row())
    threaded.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_a_resumed_loader_gives_the_same_rows(dataset: Dataset, workers: int, epoch: int, where: str) -> None:
    straight = make(dataset, workers)
    per_epoch = [straight.rows_per_epoch(number) for number in range(2)]
    done = (
        sum(per_epoch[:epoch]) + {"start": 0, "middle": per_epoch[epoch] // 2, "end": per_epoch[epoch]}[where]
    )
    for _ in range(done):
        straight.next_row()
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = make(dataset, workers)
    resumed.next_row()  # whatever it has read ahead must not show
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.row) == (straight.epoch, straight.row)
    for _ in range(per_epoch[0] + 3):
        assert_same(straight.next_row(), resumed.next_row())
        assert straight.state_dict() == resumed.state_dict()


def test_a_state_of_other_data_or_settings_is_refused(
    dataset: Dataset, vl_encoder: Encoder, tmp_path: Path
) -> None:
    state = make(dataset).state_dict()
    other = load_dataset(
        [write_lines(tmp_path / "b.jsonl", records(39))], encoder=vl_encoder, max_length=ROOM
    )
    with pytest.raises(
        DataError, match="cannot continue: the training data, its template or its tokenizer have changed"
    ):
        make(other).load_state_dict(state)
    for options in ({"seed": 6}, {"shuffle": False}, {"max_length": 200}):
        with pytest.raises(DataError, match=f"cannot continue: {next(iter(options))} was "):
            make(dataset, **options).load_state_dict(state)
    for place in ({"row": 999}, {"epoch": -1}):
        with pytest.raises(DataError, match="cannot continue: there is no row"):
            make(dataset).load_state_dict({**state, **place})


def test_moved_data_may_go_on(vl_encoder: Encoder, tmp_path: Path) -> None:
    loaders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        noise(8, 8).save(tmp_path / name / "x.png")
        path = write_lines(tmp_path / name / "f.jsonl", [qa("<image>", images=["x.png"]), qa("q")])
        loaders.append(make(load_dataset([path], encoder=vl_encoder, max_length=ROOM)))
    loaders[1].load_state_dict(loaders[0].state_dict())


def test_evaluation_rows_are_fixed_and_leave_the_place_alone(dataset: Dataset) -> None:
    rows = make(dataset)
    rows.next_row()
    place = rows.state_dict()
    first, second = list(rows.iter_rows_once()), list(rows.iter_rows_once())
    assert sorted(id for row in first for id in row.sample_ids) == sorted(
        d.sample_id for d in dataset.documents
    )
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    for _ in make(dataset, seed=99).iter_rows_once():
        break  # closing early must not hang
    assert rows.state_dict() == place


def test_rows_without_pictures(text_encoder: Encoder, vl_encoder: Encoder) -> None:
    conversation = chat(("user", "q"), ("assistant", "a"))
    for encoder in (vl_encoder, text_encoder):
        row = load_row([encoder.encode(conversation), encoder.encode(conversation)], encoder.image_spec)
        assert (row.patches.shape, row.grid_thw.shape, row.media_positions.shape) == (
            (0, 588),
            (0, 3),
            (0,),
        )
        assert row.grid_thw.dtype == np.int32
        assert row.media_positions.dtype == np.int64
        assert row.position_ids[0].tolist() == list(range(len(row.input_ids) // 2)) * 2


def broken_dataset(vl_encoder: Encoder, tmp_path: Path, **options: Any) -> Dataset:
    """Ten samples, three of which have a truncated JPEG: only decoding finds that."""
    items = []
    for number in range(10):
        path = tmp_path / f"{number}.jpg"
        jpeg = encoded(noise(60, 60, number), "JPEG")
        path.write_bytes(jpeg[: len(jpeg) // 2] if number in (2, 5, 6) else jpeg)
        items.append(qa("<image>", f"answer {number}", images=[path.name]))
    return load_dataset(
        [write_lines(tmp_path / "f.jsonl", items)], encoder=vl_encoder, max_length=ROOM, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_is_an_error_that_names_sample_and_file(
    vl_encoder: Encoder, tmp_path: Path, workers: int
) -> None:
    rows = make(broken_dataset(vl_encoder, tmp_path), workers, shuffle=False)
    with pytest.raises(SampleError, match=r"f\.jsonl:3: damaged picture .*/2\.jpg: .*truncated"):
        for _ in range(10):
            rows.next_row()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("room", [ROOM, 40])
def test_truncated_pictures_are_skipped_and_counted_once(
    vl_encoder: Encoder, tmp_path: Path, workers: int, room: int
) -> None:
    # With room for one document a row, a broken one leaves its row empty, and the row is passed over.
    dataset = broken_dataset(vl_encoder, tmp_path, on_error="skip")
    rows = make(dataset, workers, max_length=room)
    while rows.epoch < 2:
        row = rows.next_row()
        assert not {f"{tmp_path}/f.jsonl:{line}" for line in (3, 6, 7)} & set(row.sample_ids)
        assert len(row.grid_thw) == len(row.sample_ids)
    assert dataset.budget.by_reason() == "bad image: 3"


def test_too_many_truncated_pictures(vl_encoder: Encoder, tmp_path: Path) -> None:
    rows = make(broken_dataset(vl_encoder, tmp_path, on_error="skip", max_errors=2))
    with pytest.raises(DataError, match=r"more than data\.max_errors=2 samples"):
        for _ in range(10):
            rows.next_row()


def test_no_picture_at_all_does_not_turn_for_ever(vl_encoder: Encoder, tmp_path: Path) -> None:
    dataset = broken_dataset(vl_encoder, tmp_path, on_error="skip")
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"no picture of the dataset can be decoded \(missing image: 10\)"):
        make(dataset).next_row()


def test_a_picture_that_has_changed_since_loading(vl_encoder: Encoder, tmp_path: Path) -> None:
    dataset = broken_dataset(vl_encoder, tmp_path)
    noise(60, 400).save(tmp_path / "0.jpg")
    with pytest.raises(
        SampleError, match=r"f\.jsonl:1: the picture .*/0\.jpg has changed since the data was read"
    ):
        make(dataset, shuffle=False).next_row()


def test_reading_ahead_is_bounded(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    lock = threading.Lock()
    original = loader_module.RowLoader._load

    def counting(self: RowLoader, row: tuple[int, ...]) -> Any:
        with lock:
            loaded.append(row)
        return original(self, row)

    monkeypatch.setattr(loader_module.RowLoader, "_load", counting)
    rows = make(dataset, workers=2)
    for taken in range(1, 12):
        rows.next_row()
        assert len(loaded) <= taken + 4
    rows.close()
    count = len(loaded)
    assert count <= 11 + 4


def test_a_document_longer_than_a_row(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="does not fit in a row of 20"):
        make(dataset, max_length=20)
