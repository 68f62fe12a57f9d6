import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.workers import Workers
from erniekit.data.load.batch import split
from erniekit.data.load.loader import RowLoader, load_row
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.media.images import open_image
from erniekit.data.media.patches import patchify
from erniekit.data.store.dataset import Dataset
from erniekit.errors import DataError
from tests.unit.data.helpers import chat, noise, qa, write_lines
from tests.unit.data.load.conftest import records
from tests.unit.data.loading import ROOM, assert_same, documents, load, make_loader, rows_of

pytestmark = pytest.mark.slow


def test_a_row_is_its_documents_side_by_side(dataset: Dataset) -> None:
    assert dataset.spec is not None
    by_id = {document.sample_id: document for document in documents(dataset)}
    loader = make_loader(dataset)
    for _ in range(rows_of(loader).rows_per_epoch(0)):
        row = loader.next_row()
        found = [by_id[sample_id] for sample_id in row.sample_ids]
        assert row.input_ids.dtype == row.labels.dtype == row.position_ids.dtype == np.int64
        assert row.modality.dtype == np.int8
        assert row.cu_seqlens.dtype == row.grid_thw.dtype == np.int32
        assert row.patches.dtype == np.uint8
        assert row.patches.shape[1] == 588
        assert row.cu_seqlens.tolist() == [0, *np.cumsum([len(document) for document in found])]
        assert row.num_loss_tokens == sum(document.num_loss_tokens for document in found)
        for document, start, end in zip(found, row.cu_seqlens[:-1], row.cu_seqlens[1:], strict=True):
            np.testing.assert_array_equal(row.input_ids[start:end], document.input_ids)
            np.testing.assert_array_equal(row.labels[start:end], document.labels)
            np.testing.assert_array_equal(row.position_ids[:, start:end], document.position_ids)
            np.testing.assert_array_equal(row.modality[start:end], document.modality)
            assert row.labels[end - 1] == -100
        media = [item for document in found for item in document.media]
        assert row.grid_thw.tolist() == [list(item.grid_thw) for item in media]
        patches = [patchify(open_image(item.source, "f:1"), dataset.spec.image)[0] for item in media]
        np.testing.assert_array_equal(row.patches, np.concatenate(patches or [np.zeros((0, 588), np.uint8)]))
        assert len(row.media_positions) == row.grid_thw.prod(1).sum() // 4
        placeholder = row.input_ids[row.media_positions]
        assert len(set(placeholder.tolist())) <= 1
        assert (row.modality[row.media_positions] == 1).all()


def test_a_row_can_be_split_into_its_documents(dataset: Dataset) -> None:
    chosen = documents(dataset)[:6]
    row = load_row(chosen, dataset.spec)
    assert len(row.grid_thw) > 1
    for document, part in zip(chosen, split(row), strict=True):
        assert_same(part, load_row([document], dataset.spec))


def test_every_document_once_an_epoch_and_another_order_in_the_next(dataset: Dataset) -> None:
    loader = make_loader(dataset)
    seen: list[list[str]] = []
    for epoch in range(3):
        assert loader.state == {"epoch": epoch, "row": 0}
        ids: list[str] = []
        count = rows_of(loader).rows_per_epoch(epoch)
        for number in range(count):
            assert loader.state == {"epoch": epoch, "row": number}
            assert loader.epochs_done == epoch + number / count
            ids += loader.next_row().sample_ids
        assert sorted(ids) == sorted(document.sample_id for document in documents(dataset))
        seen.append(ids)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_the_same_rows(dataset: Dataset, workers: int) -> None:
    first = rows_of(make_loader(dataset)).rows_per_epoch(0)
    second = rows_of(make_loader(dataset)).rows_per_epoch(1)
    resumed = make_loader(dataset, workers)
    for done in (0, first // 2, first, first + second // 2, first + second):
        straight = make_loader(dataset)
        for _ in range(done):
            straight.next_row()
        resumed.next_row()  # whatever it has read ahead must not show
        resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
        assert resumed.state == straight.state
        for _ in range(first + 3):
            assert_same(straight.next_row(), resumed.next_row())
            assert straight.state_dict() == resumed.state_dict()
    resumed.close()


def test_a_state_of_other_data_or_settings_is_refused(
    dataset: Dataset, vl_encoder: Encoder, tmp_path: Path
) -> None:
    state = make_loader(dataset).state_dict()
    other = load(vl_encoder, write_lines(tmp_path / "b.jsonl", records(39)), max_length=ROOM)
    with pytest.raises(
        DataError, match=r"cannot continue: .*a\.jsonl is not in data\.train any more, .*b\.jsonl is new"
    ):
        make_loader(other).load_state_dict(state)
    state["settings"]["files"] = {}
    with pytest.raises(
        DataError, match="cannot continue: the training data, its template or its tokenizer have changed"
    ):
        make_loader(other).load_state_dict(state)
    for name, loader in (
        ("seed", make_loader(dataset, seed=6)),
        ("shuffle", make_loader(dataset, shuffle=False)),
        ("max_length", make_loader(dataset, max_length=200)),
    ):
        with pytest.raises(DataError, match=f"cannot continue: {name} was "):
            loader.load_state_dict(state)
    for place, problem in (
        ({"epoch": 0, "row": 999}, "there is no row"),
        ({"epoch": -1, "row": 0}, "there is no row"),
        ({}, "the checkpoint has no valid position"),
    ):
        with pytest.raises(DataError, match=f"cannot continue: {problem}"):
            make_loader(dataset).load_state_dict({**state, "place": place})


def test_what_a_state_says_is_cut_in_messages(dataset: Dataset) -> None:
    for section in ({"seed": "7" * 5000}, {"fingerprint": "", "files": {"x" * 5000: ["digest"]}}):
        state = make_loader(dataset).state_dict()
        state["settings"] = {**state["settings"], **section}
        with pytest.raises(DataError) as refused:
            make_loader(dataset).load_state_dict(state)
        assert "77777..." in str(refused.value) or "xxxxx... is not in data.train" in str(refused.value)
        assert len(str(refused.value)) < 600


def test_moved_data_may_go_on(vl_encoder: Encoder, tmp_path: Path) -> None:
    loaders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        noise(8, 8).save(tmp_path / name / "x.png")
        path = write_lines(tmp_path / name / "f.jsonl", [qa("<image>", images=["x.png"]), qa("q")])
        loaders.append(make_loader(load(vl_encoder, path, max_length=ROOM)))
    loaders[1].load_state_dict(loaders[0].state_dict())
    rows = [loader.next_row() for loader in loaders]
    # Only the paths differ.
    paths = {"sample_ids": rows[1].sample_ids, "media_names": rows[1].media_names}
    assert_same(rows[1], replace(rows[0], **paths))


def test_evaluation_rows_are_fixed_and_leave_the_place_alone(dataset: Dataset) -> None:
    loader = make_loader(dataset)
    loader.next_row()
    place = loader.state_dict()
    first, second = (list(loader.once(rows_of(loader).once())) for _ in range(2))
    assert sorted(id for row in first for id in row.sample_ids) == sorted(
        document.sample_id for document in documents(dataset)
    )
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    for _ in loader.once(rows_of(loader).once()):
        break  # closing early must not hang
    assert loader.state_dict() == place


def test_ranks_share_the_rows_of_a_step(dataset: Dataset) -> None:
    """Every row of a step goes to one rank, as many to each; states agree at the ends of steps."""
    alone = make_loader(dataset)
    ranks = [make_loader(dataset, rows_per_step=6, rank=rank, ranks=3) for rank in range(3)]
    for _ in range(4):
        step = {alone.next_row().sample_ids for _ in range(6)}
        shared = [[loader.next_row() for _ in range(2)] for loader in ranks]
        assert {row.sample_ids for rows in shared for row in rows} == step
        assert [loader.state for loader in ranks] == [alone.state] * 3
        patches = [sum(len(row.patches) for row in rows) for rows in shared]
        assert max(patches) <= 1.5 * np.mean(patches)
    state = ranks[1].state_dict()
    again = make_loader(dataset, rows_per_step=6, rank=1, ranks=3)
    again.load_state_dict(state)
    assert_same(again.next_row(), ranks[1].next_row())


def test_rows_without_images(text_encoder: Encoder, vl_encoder: Encoder) -> None:
    conversation = chat(("user", "q"), ("assistant", "a"))
    for encoder in (vl_encoder, text_encoder):
        row = load_row([encoder.encode(conversation), encoder.encode(conversation)], encoder.media_spec)
        assert (row.patches.shape, row.grid_thw.shape, row.media_positions.shape) == (
            (0, 588),
            (0, 3),
            (0,),
        )
        assert row.grid_thw.dtype == np.int32
        assert row.media_positions.dtype == np.int64
        assert row.position_ids[0].tolist() == list(range(len(row.input_ids) // 2)) * 2


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 1.25, 2.0])
def test_epochs_end_after_a_share_of_the_rows(
    text_encoder: Encoder, tmp_path: Path, ranks: int, epochs: float
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa(f"q{number}") for number in range(30)])
    dataset = load(text_encoder, path, max_length=60)
    whole = make_loader(dataset, max_length=60)
    rows = StoredRows(dataset, whole.source.mixture, 60)  # type: ignore[attr-defined]
    counts = [rows.rows_per_epoch(epoch) for epoch in range(3)]
    full = int(epochs)
    wanted = sum(counts[:full]) + math.ceil((epochs - full) * counts[full])
    expected = [whole.next_row().sample_ids for _ in range(wanted)]
    assert not whole.is_over
    drawn: list[tuple[str, ...]] = []
    loaders = [
        make_loader(dataset, max_length=60, rows_per_step=4, epochs=epochs, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    while not loaders[0].is_over:
        drawn += [tuple(loader.next_row().sample_ids) for loader in loaders]
    assert all(loader.is_over for loader in loaders)
    assert sorted(ids for ids in drawn if ids) == sorted(map(tuple, expected))
    assert loaders[0].epochs_done == pytest.approx(
        full + math.ceil((epochs - full) * counts[full]) / counts[full]
    )


@pytest.mark.parametrize("mix", ["weighted", "interleave", "concat"])
def test_a_mixture_of_sources_goes_on_where_it_stood(text_encoder: Encoder, tmp_path: Path, mix: Any) -> None:
    paths = [
        write_lines(tmp_path / f"{name}.jsonl", [qa(f"{name} {number}") for number in range(count)])
        for name, count in (("a", 17), ("b", 5), ("c", 9))
    ]
    dataset = load(text_encoder, *paths, max_length=60)
    mixture = Mixture(mix, "all_exhausted", (3.0, 1.0, 1.0), True, 11)
    straight = RowLoader(StoredRows(dataset, mixture, 60), dataset.budget, Workers(0, None))
    states, ids = [], []
    while straight.epoch < 4:
        states.append(json.loads(json.dumps(straight.state_dict())))
        ids.append(straight.next_row().sample_ids)
    assert len(ids) > 12
    for index in (0, 3, len(ids) // 2, len(ids) - 5):
        resumed = RowLoader(StoredRows(dataset, mixture, 60), dataset.budget, Workers(0, None))
        resumed.load_state_dict(states[index])
        assert [resumed.next_row().sample_ids for _ in range(5)] == ids[index : index + 5]
