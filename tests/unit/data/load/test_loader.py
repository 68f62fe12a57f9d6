import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode import workers as workers_module
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.load.batch import PackedBatch, split
from erniekit.data.load.loader import RowLoader, load_row
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.media.images import open_image
from erniekit.data.media.patches import patchify
from erniekit.data.store.dataset import Dataset
from erniekit.errors import DataError
from tests.unit.data.helpers import chat, data_uri, encoded, noise, qa, write_lines
from tests.unit.data.loading import documents, load, make_loader

pytestmark = pytest.mark.slow

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
    return load(vl_encoder, path, max_length=ROOM)


def rows_of(loader: RowLoader) -> StoredRows:
    assert isinstance(loader.source, StoredRows)
    return loader.source


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for item in fields(PackedBatch):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


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


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(dataset: Dataset, workers: int) -> None:
    plain, helped = make_loader(dataset), make_loader(dataset, workers)
    for _ in range(rows_of(plain).rows_per_epoch(0) + rows_of(plain).rows_per_epoch(1) + 2):
        assert_same(plain.next_row(), helped.next_row())
    helped.close()


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


def test_reading_ahead_is_bounded(dataset: Dataset) -> None:
    drawn = 0

    def rows() -> Any:
        nonlocal drawn
        for row in rows_of(make_loader(dataset)).once():
            drawn += 1
            yield row

    workers = Workers(2, dataset.spec)
    for taken, _ in enumerate(workers.decode(rows(), lambda row: row), 1):
        assert drawn <= taken + 4
    workers.close()


def test_what_a_killed_worker_had_to_do_is_done_again(dataset: Dataset) -> None:
    """Also for rows of an evaluation, which come from the same processes."""
    lines: list[str] = []
    loader, expected = make_loader(dataset, 2), make_loader(dataset)
    loader._workers._log = lines.append
    for number in range(40):
        if number in (5, 20):
            pool = loader._workers._pool
            assert pool is not None
            for process in pool._processes.values():
                os.kill(process.pid, signal.SIGKILL)
        assert_same(loader.next_row(), expected.next_row())
    evaluated = loader.once(rows_of(loader).once())
    for number, row in enumerate(expected.once(rows_of(expected).once())):
        if number == 3:
            pool = loader._workers._pool
            assert pool is not None
            os.kill(next(iter(pool._processes)), signal.SIGKILL)
        assert_same(next(evaluated), row)
        assert_same(loader.next_row(), expected.next_row())
    loader.close()
    # The last of them for the rows of each.
    assert 3 <= len(lines) <= 4
    assert lines[0].startswith(
        "a worker process of the data died (killed, perhaps, because memory ran out); new"
    )


def test_a_worker_that_always_dies_is_an_error_and_not_a_hang() -> None:
    workers = Workers(1, None, log=(lines := []).append)
    results = workers._run([0, 7], str, _die_at_7, lambda number: True, lambda number: f"a.jsonl:{number}")
    assert next(results) == "0"
    with pytest.raises(DataError, match=r"died 3 times .* at a\.jsonl:7\. Fewer data\.workers \(now 1\)"):
        next(results)
    workers.close()
    assert len(lines) == 2


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workers_module, "ProcessPoolExecutor", fail)
    results = Workers(1, None)._run([0], str, str, lambda number: True, str)
    with pytest.raises(DataError, match=r"cannot be started: No space left on device.* lie in /dev/shm"):
        next(results)


def _die_at_7(number: int) -> str:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(number)


def test_a_stopped_worker_is_an_error_and_not_a_hang(dataset: Dataset) -> None:
    lines: list[str] = []
    workers = Workers(1, dataset.spec, log=lines.append)
    rows = workers.decode(rows_of(make_loader(dataset)).once(), lambda row: row)
    next(rows)
    workers._patience = 0.2
    assert workers._pool is not None
    (process,) = workers._pool._processes.values()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(
        DataError, match=rf"gives no result for .*\.jsonl:\d+.*: process {process.pid} is stopped"
    ):
        list(rows)
    workers.close()
    assert lines[-1] == f"worker processes of the data do not end and are killed: {process.pid}"
    assert not process.is_alive()


def test_a_slow_worker_is_named(dataset: Dataset) -> None:
    lines: list[str] = []
    workers = Workers(1, dataset.spec, log=lines.append, patience=0.05)
    # As for a disk that does not answer.
    rows = workers._run([10.0**6], time.sleep, time.sleep, lambda row: True, lambda row: "a.jsonl:7")
    with pytest.raises(
        DataError, match=r"no result for a\.jsonl:7 in .* it may wait for a disk or the network"
    ):
        list(rows)
    assert [line[:47] for line in lines[:2]] == ["waiting for a worker process of the data for 0 "] * 2
    workers.close()


def test_workers_end_with_a_main_process_that_is_killed(vl_checkpoint: Path, tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "p.png")
    path = write_lines(tmp_path / "a.jsonl", [qa("<image>", images=["p.png"])])
    program = f"""
from pathlib import Path
from erniekit.data.encode.encoder import make_encoder
from tests.unit.data.loading import load, make_loader

if __name__ == "__main__":
    loader = make_loader(load(make_encoder({str(vl_checkpoint)!r}), Path({str(path)!r})), workers=2)
    loader.next_row()
    print(*loader._workers._pool._processes, flush=True)
    input()
"""
    (tmp_path / "main.py").write_text(program)
    main = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])},
    )
    assert main.stdout is not None
    workers = [int(word) for word in main.stdout.readline().split()]
    assert workers
    main.kill()
    main.communicate()
    deadline = time.monotonic() + 600
    while any(_lives(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(worker) for worker in workers)


def _lives(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


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


def test_text_starts_no_process(text_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa(f"q{number}") for number in range(20)])
    loader = make_loader(load(text_encoder, path, max_length=ROOM), workers=2)
    for _ in range(5):
        loader.next_row()
    assert loader._workers._pool is None


def test_a_document_longer_than_a_row(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="does not fit in a row of 20"):
        make_loader(dataset, max_length=20).next_row()


def test_errors_cross_processes_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(SampleError("f:1", "bad image", "what")))
    assert (error.sample_id, error.reason, error.detail, str(error)) == (
        "f:1",
        "bad image",
        "what",
        "f:1: what",
    )
    assert workers_module.decode_all([], None) == []
    assert ErrorBudget("skip", 3).left_out() == []


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


def test_memory_stays_flat_over_many_images(vl_encoder: Encoder, tmp_path: Path) -> None:
    """The bench does this with 50,000; here 3,000 of 25 KB each, 75 MB in all, of which a few rows are held."""
    for number in range(20):
        noise(112, 112, number).save(tmp_path / f"{number}.png")
    items = [qa(f"<image>{number}", images=[f"{number % 20}.png"]) for number in range(3000)]
    loader = make_loader(
        load(vl_encoder, write_lines(tmp_path / "a.jsonl", items), max_length=400), max_length=400
    )
    weights = []
    while loader.epoch == 0:
        loader.next_row()
        status = Path("/proc/self/status").read_text()
        weights.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")))
    third = len(weights) // 3
    assert len(weights) > 100
    assert max(weights[-third:]) - max(weights[:third]) < 16384  # KB; all images together are 75 MB
