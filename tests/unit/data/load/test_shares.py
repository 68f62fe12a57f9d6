"""Several processes read data together: each does its own share, and all of them the whole."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from erniekit.config.choices import Mix
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.samples import SampleReader
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.files import reader as reader_module
from erniekit.data.load.loader import RowLoader, join_states
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.load.stream import StreamedRows
from erniekit.data.store.dataset import SourceFiles
from erniekit.data.store.store import DocumentStore
from erniekit.errors import DataError
from tests.unit.data.helpers import data_uri, noise, qa, write_lines
from tests.unit.data.loading import load, make_loader


class Counting(SampleReader):
    """Takes note of the records that it encodes."""

    __slots__ = ("seen",)
    seen: list[str]

    def read(self, record: Any, base_dir: Path, format: str) -> Any:
        self.seen.append(getattr(record, "sample_id", "bad").rsplit("/", 1)[-1])
        return super().read(record, base_dir, format)


def stream(
    encoder: Encoder,
    sources: Sequence[Path],
    rank: int = 0,
    ranks: int = 1,
    *,
    mix: Mix = "concat",
    weights: tuple[float, ...] | None = None,
    buffer: int = 16,
    max_length: int = 60,
    on_error: Any = "raise",
) -> tuple[RowLoader, list[str]]:
    """The loader of one of `ranks` processes, and the records that it has encoded."""
    reader = Counting(encoder, max_length, "error")
    object.__setattr__(reader, "seen", [])
    files = [SourceFiles.of(str(source)) for source in sources]
    pool, budget = Workers(0, encoder.media_spec, reader), ErrorBudget(on_error, 9)
    mixture = Mixture(mix, "first_exhausted", weights or (1.0,) * len(files), True, 3)
    rows = StreamedRows(files, reader, mixture, budget, pool, buffer=buffer, rank=rank, ranks=ranks)
    return RowLoader(rows, budget, pool, rows_per_step=ranks, rank=rank, ranks=ranks), reader.seen


def lines(path: Path, name: str, count: int) -> Path:
    return write_lines(path, [qa(f"{name} {number}") for number in range(count)])


def items(count: int) -> list[dict[str, str]]:
    return [{"query": f"what is {number}?", "response": f"it is {number}"} for number in range(count)]


def write(path: Path, count: int) -> Path:
    """A file of the kind that its name says."""
    rows = items(count)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=17)
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table, max_chunksize=19)
    elif path.suffix == ".csv":
        text = "".join(f"{row['query']},{row['response']}\n" for row in rows)
        path.write_text(f"query,response\n{text}")
    elif path.suffix == ".json":
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        write_lines(path, rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_each_process_encodes_its_share_and_all_of_them_everything(
    text_encoder: Encoder, tmp_path: Path, kind: str, ranks: int
) -> None:
    """Over a pass of 96 records in two files, in buffers of 16."""
    files = [write(tmp_path / f"{name}.{kind}", count) for name, count in (("a", 41), ("b", 55))]
    trained: Counter[str] = Counter()
    for rank in range(ranks):
        loader, encoded = stream(text_encoder, [tmp_path], rank, ranks)
        names: list[str] = []
        while len(names) < 96 // ranks:
            names += [name.rsplit("/", 1)[1] for name in loader.next_row().sample_ids]
        assert len(encoded) == 96 // ranks  # and not 96
        assert Counter(names) == Counter(encoded)
        assert loader.epoch == 1
        trained.update(names)
    alone, whole = stream(text_encoder, [tmp_path])
    while alone.epoch < 1:
        alone.next_row()
    assert trained == Counter(whole)
    assert set(trained.values()) == {1}
    assert len(trained) == 96
    assert {name.split(".")[0] for name in trained} == {file.name.split(".")[0] for file in files}


def test_lines_of_other_processes_are_not_even_parsed(
    text_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    original = json.loads

    def loads(text: str) -> Any:
        parsed.append(text)
        return original(text)

    monkeypatch.setattr(reader_module.json, "loads", loads)
    loader, encoded = stream(text_encoder, [lines(tmp_path / "a.jsonl", "a", 160)], 1, 4, buffer=40)
    loader.next_row()
    assert len(encoded) == 40
    # Also the next one, and the first line whenever the file is opened, which shows that these are lines.
    assert 40 <= len(parsed) <= 44


def test_records_that_do_not_divide_go_round(text_encoder: Encoder, tmp_path: Path) -> None:
    """After several passes every record was drawn as often as any other, whoever drew it."""
    path = lines(tmp_path / "a.jsonl", "a", 10)
    counts: Counter[str] = Counter()
    for rank in range(3):
        loader, encoded = stream(text_encoder, [path], rank, 3, buffer=10)
        while len(encoded) < 10:
            loader.next_row()
        assert set(encoded) == {f"a.jsonl:{number + 1}" for number in range(10)}
        counts.update(encoded)
    assert set(counts.values()) == {3}


def test_more_processes_than_records(text_encoder: Encoder, tmp_path: Path) -> None:
    """Each has some nevertheless, and none waits for ever."""
    path = lines(tmp_path / "a.jsonl", "a", 2)
    drawn = [stream(text_encoder, [path], rank, 5, buffer=4)[0].next_row().sample_ids for rank in range(5)]
    assert all(len(names) > 0 for names in drawn)
    assert {name.rsplit(":", 1)[1] for names in drawn for name in names} == {"1", "2"}


@pytest.mark.parametrize(
    ("mix", "weights", "share"), [("weighted", (3.0, 1.0), 0.75), ("interleave", (1.0, 1.0), 0.5)]
)
def test_every_process_mixes_the_sources_as_one_would(
    text_encoder: Encoder, tmp_path: Path, mix: Any, weights: tuple[float, ...], share: float
) -> None:
    """In turn, with as many processes as sources: none is given one source only."""
    sources = [lines(tmp_path / "a.jsonl", "a", 30), lines(tmp_path / "b.jsonl", "b", 7)]
    for rank in range(2):
        loader, encoded = stream(text_encoder, sources, rank, 2, mix=mix, weights=weights, buffer=20)
        while len(encoded) < 160:
            loader.next_row()
        assert sum(name.startswith("a") for name in encoded) / 160 == pytest.approx(share, abs=0.02)
        assert len({name for name in encoded if name.startswith("b")}) == 7
        assert len({name for name in encoded if name.startswith("a")}) >= 15


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_every_process_goes_on_where_it_stood(text_encoder: Encoder, tmp_path: Path, kind: str) -> None:
    """From the state of all of them, which differ, at any step and in any pass."""
    sources = [write(tmp_path / f"a.{kind}", 50), lines(tmp_path / "b.jsonl", "b", 21)]
    options: dict[str, Any] = {"mix": "weighted", "weights": (2.0, 1.0), "buffer": 14}
    straight = [stream(text_encoder, sources, rank, 3, **options)[0] for rank in range(3)]
    states, rows = [], []
    for _ in range(20):
        states.append(json.loads(json.dumps(join_states([loader.state_dict() for loader in straight]))))
        rows.append([loader.next_row() for loader in straight])
    assert min(loader.epoch for loader in straight) >= 1
    assert len(states[9]["places"]) == 3
    for index in (0, 1, 9, 15):
        for rank in range(3):
            resumed, encoded = stream(text_encoder, sources, rank, 3, **options)
            resumed.load_state_dict(states[index])
            for step in rows[index : index + 5]:
                found = resumed.next_row()
                assert found.sample_ids == step[rank].sample_ids
                np.testing.assert_array_equal(found.input_ids, step[rank].input_ids)
            assert len(encoded) <= 14 * 6


def test_another_number_of_processes_is_refused(text_encoder: Encoder, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "a", 30)
    loaders = [stream(text_encoder, [path], rank, 2)[0] for rank in range(2)]
    for loader in loaders:
        loader.next_row()
    state = join_states([loader.state_dict() for loader in loaders])
    for rank, ranks in ((0, 1), (3, 4)):
        with pytest.raises(
            DataError,
            match=r"cannot continue: the number of processes that share the stream .*"
            rf"was 2 and is now {ranks}, which changes every row; set it back, or start a new run",
        ):
            stream(text_encoder, [path], rank, ranks)[0].load_state_dict(state)


def test_the_state_of_stored_rows_is_one_for_any_number(text_encoder: Encoder, tmp_path: Path) -> None:
    dataset = load(text_encoder, lines(tmp_path / "a.jsonl", "a", 40), max_length=60)
    ranks = [make_loader(dataset, max_length=60, rows_per_step=4, rank=rank, ranks=2) for rank in range(2)]
    for loader in ranks:
        for _ in range(2):
            loader.next_row()
    state = join_states([loader.state_dict() for loader in ranks])
    assert "places" not in state
    alone = make_loader(dataset, max_length=60, rows_per_step=4)
    alone.load_state_dict(state)
    assert alone.state == ranks[0].state


def test_a_damaged_image_is_passed_over_by_its_process_alone(vl_encoder: Encoder, tmp_path: Path) -> None:
    """No other process waits for it, so no filler stands in its place."""
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    noise(56, 56).save(good)
    noise(56, 56).save(bad)
    bad.write_bytes(bad.read_bytes()[:-1000])
    path = write_lines(
        tmp_path / "a.jsonl",
        [qa(f"<image>{n}", images=["bad.png" if n % 4 == 0 else "good.png"]) for n in range(16)],
    )
    loader, _ = stream(vl_encoder, [path], 0, 2, buffer=8, max_length=30, on_error="skip")
    for _ in range(8):
        assert loader.next_row().sample_ids
    assert len(loader.budget.errors) == 4


def test_a_process_reads_the_stored_documents_of_its_own_rows_only(
    vl_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are planned, and spread by their images, from lengths and numbers of patches."""
    image = data_uri(noise(56, 84))
    records = [
        qa([{"type": "text", "text": f"{n}"}, *([{"type": "image", "image": image}] * (n % 3))])
        for n in range(60)
    ]
    dataset = load(vl_encoder, write_lines(tmp_path / "a.jsonl", records), max_length=160)
    read: list[int] = []
    original = DocumentStore.__getitem__

    def reading(store: DocumentStore, index: int) -> Document:
        read.append(index)
        return original(store, index)

    monkeypatch.setattr(DocumentStore, "__getitem__", reading)
    shares: list[list[int]] = []
    for rank in range(4):
        loader = make_loader(dataset, rows_per_step=4, rank=rank, ranks=4)
        assert isinstance(loader.source, StoredRows)
        read.clear()
        names = []
        for _ in range(loader.source.rows_per_epoch(0) // 4):
            names += loader.next_row().sample_ids
        assert len(read) == len(names) < 30
        shares.append(list(read))
        read.clear()
        seen = [row for row in loader.once(loader.source.once(rank, 4)) if row.sample_ids]
        assert len(read) == sum(len(row.sample_ids) for row in seen) < 30
    together = [index for share in shares for index in share]
    assert len(together) == len(set(together)) > 50
