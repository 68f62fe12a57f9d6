"""Directories that hold several splits of a dataset, as the Hub and `datasets` lay them out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from erniekit.data.files.find import Use, expand, split_of
from erniekit.data.files.hub import hub_file
from erniekit.data.files.reader import Cursor, Record, read_records
from erniekit.errors import DataError
from tests.unit.data.files.fake_hub import FakeHub, install


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return root


def names(root: Path, use: Use = "train", said: list[str] | None = None) -> list[str]:
    log = None if said is None else said.append
    return [path.relative_to(root).as_posix() for path in expand([root], use, log)]


@pytest.mark.parametrize(
    ("files", "train", "held_out"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
             "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/validation-00000-of-00001.parquet"],
        ),
        (
            ["default/train/0000.parquet", "default/test/0000.parquet"],
            ["default/train/0000.parquet"],
            ["default/test/0000.parquet"],
        ),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], ["train.jsonl"], ["dev.jsonl"]),
        (["train.jsonl", "valid.jsonl.gz"], ["train.jsonl"], ["valid.jsonl.gz"]),
        (["train/a.jsonl", "train/b.jsonl", "val/a.jsonl"], ["train/a.jsonl", "train/b.jsonl"], ["val/a.jsonl"]),
        (["chats_train.json", "chats_eval.json"], ["chats_train.json"], ["chats_eval.json"]),
        (
            ["data/train_sft-0.parquet", "data/train_gen-0.parquet", "data/test_sft-0.parquet"],
            ["data/train_gen-0.parquet", "data/train_sft-0.parquet"],
            ["data/test_sft-0.parquet"],
        ),
        # A file's own name counts more than those of its directories; of several words the first.
        (["test/train.csv", "test/test.csv"], ["test/train.csv"], ["test/test.csv"]),
        (["train-for-test.jsonl", "test-of-train.jsonl"], ["train-for-test.jsonl"], ["test-of-train.jsonl"]),
        (["Train.JSONL", "held_out.jsonl"], ["Train.JSONL"], ["held_out.jsonl"]),
        (["训练集.jsonl", "验证集.jsonl", "测试集.jsonl"], ["训练集.jsonl"], ["验证集.jsonl"]),
        # Of no split: they are to train on where nothing else is.
        (["chats.jsonl", "test.jsonl"], ["chats.jsonl"], ["test.jsonl"]),
        (["train.jsonl", "labels.json", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
    ],
)  # fmt: skip
def test_splits_are_distinguished(
    tmp_path: Path, files: list[str], train: list[str], held_out: list[str]
) -> None:
    make(tmp_path, *files)
    for use, expected in (("train", train), ("eval", held_out)):
        said: list[str] = []
        assert names(tmp_path, use, said) == expected  # type: ignore[arg-type]
        (line,) = said
        assert line.startswith(f"{tmp_path}: reads the ")
        left = [name for name in files if name not in expected]
        assert "; not read: " in line
        assert all(name in line for name in left)


@pytest.mark.parametrize(
    "files",
    [
        ["a.jsonl", "b.jsonl"],
        # Words that only look like splits.
        ["latest.jsonl", "contest.json", "device.jsonl", "trainer.jsonl", "values.csv", "tested.jsonl"],
    ],
)
def test_a_directory_without_splits_means_all_of_it(tmp_path: Path, files: list[str]) -> None:
    make(tmp_path, *files)
    for use in ("train", "eval"):
        said: list[str] = []
        assert names(tmp_path, use, said) == sorted(files)  # type: ignore[arg-type]
        assert said == []


def test_files_of_the_split_train_alone(tmp_path: Path) -> None:
    """All are to train on, and none is to be evaluated on."""
    make(tmp_path, "train.jsonl", "more.jsonl")
    assert names(tmp_path) == ["more.jsonl", "train.jsonl"]
    with pytest.raises(DataError, match=r"no files of the split validation or test .*train: train\.jsonl"):
        names(tmp_path, "eval")


def test_a_directory_to_train_on_has_a_split_for_it(tmp_path: Path) -> None:
    make(tmp_path, "validation.jsonl", "test.jsonl")
    with pytest.raises(DataError, match=r"no files of the split train \(.*list the files, or use a pattern"):
        names(tmp_path)
    assert names(tmp_path, "eval") == ["validation.jsonl"]


def test_a_file_or_pattern_means_what_it_says(tmp_path: Path) -> None:
    make(tmp_path, "data/train-0.jsonl", "data/test-0.jsonl", "data/validation-0.jsonl", "dataset_infos.json")
    said: list[str] = []
    assert expand([tmp_path / "data" / "test-0.jsonl"], "train", said.append) == [
        tmp_path / "data/test-0.jsonl"
    ]
    assert len(expand([str(tmp_path / "data" / "*")], "train", said.append)) == 3
    assert len(expand([str(tmp_path / "**" / "*.json*")], "eval", said.append)) == 3  # and no metadata
    assert expand([tmp_path / "dataset_infos.json"]) == [tmp_path / "dataset_infos.json"]
    assert said == []
    # The split of a directory that is named is its owner's choice.
    make(tmp_path, "by/test/0000.jsonl")
    assert names(tmp_path / "by" / "test") == ["0000.jsonl"]


def test_what_is_no_data_is_named_and_not_read(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("train.jsonl", "README.md", "dataset_infos.json", "dataset_dict.json", "notes.txt", "images/1.png"),
        *(".gitattributes", ".cache/huggingface/download/train.jsonl", ".cache/x.metadata", "clips/a.mp4"),
    )
    said: list[str] = []
    assert names(tmp_path, "train", said) == ["train.jsonl"]
    assert said == [
        f"{tmp_path}: ignores files that are not data files: "
        "README.md, dataset_dict.json, dataset_infos.json and 1 more"
    ]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("a/training/x.json", "train"),
        ("valid1.json", "validation"),
        ("en/dev-v2.0.json", "validation"),
        ("evaluation.csv", "test"),
        ("Held-Out.jsonl", "validation"),
        ("main.jsonl", None),
        ("attestation.jsonl", None),
        ("训练.jsonl", "train"),
    ],
)
def test_split_of(path: str, split: str | None) -> None:
    assert split_of(Path(path)) == split


ROWS = [{"query": f"q{number}", "response": f"a{number}", "tags": ["x"] * number} for number in range(300)]


def read(path: Path, after: Cursor | None = None) -> list[Record]:
    found = list(read_records(path) if after is None else read_records(path, after))
    assert all(isinstance(record, Record) for record in found)
    return found  # type: ignore[return-value]


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path) -> None:
    """By the real package: a directory a split, Arrow streams, and what `map` has left beside them."""
    import datasets

    made = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:7])
    )
    made.save_to_disk(tmp_path / "saved")
    made["train"].map(
        lambda row: {"query": "mapped"}, cache_file_name=str(tmp_path / "saved/train/cache-1.arrow")
    )
    said: list[str] = []
    (file,) = expand([tmp_path / "saved"], "train", said.append)
    assert file == tmp_path / "saved" / "train" / "data-00000-of-00001.arrow"
    assert "not read: test (test/data-00000-of-00001.arrow)" in said[0]
    assert [record.value for record in read(file)] == ROWS
    (held_out,) = expand([tmp_path / "saved"], "eval")
    assert [record.value for record in read(held_out)] == ROWS[:7]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_are_read_from_any_place(tmp_path: Path, kind: str) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    path = tmp_path / "a.arrow"
    writer = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as out:
        out.write_table(table, max_chunksize=140)
    records = read(path)
    assert [record.value for record in records] == ROWS
    assert records[7].sample_id == f"{path}:row 8"
    for number in (0, 1, 127, 139, 140, 298, 299):
        assert read(path, records[number].after) == records[number + 1 :]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.arrow:row \d+: the Arrow file cannot be read"):
        read(path)


class HubOf(FakeHub):
    """A dataset with these splits."""

    def __init__(self, *splits: str) -> None:
        super().__init__([{"text": "x"}])
        self.splits = splits

    def get_dataset_split_names(self, name: str) -> Any:
        return list(self.splits)


def test_held_out_data_of_the_hub_is_not_its_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for splits, expected in (
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
        (("train_sft", "test_sft", "test_gen"), "test_sft"),
    ):
        hub = HubOf(*splits)
        install(monkeypatch, hub)
        said: list[str] = []
        path = hub_file("hub:a/b", tmp_path / expected, "eval", said.append)
        assert hub_file("hub:a/b", tmp_path / expected, "eval") == path
        assert hub.asked == [("a/b", expected)]
        assert said == [f"hub:a/b: reads the split {expected}"]
        hub_file("hub:a/b:train", tmp_path / expected, "eval")
        assert hub.asked[-1] == ("a/b", "train")
        assert hub_file("hub:a/b:train", tmp_path / expected) == hub_file("hub:a/b", tmp_path / expected)
    install(monkeypatch, HubOf("train"))
    with pytest.raises(DataError, match=r"hub:a/b: the dataset has no validation or test split \(train\)"):
        hub_file("hub:a/b", tmp_path / "none", "eval")
    broken = SimpleNamespace(get_dataset_split_names=lambda name: json.loads("{"))
    install(monkeypatch, broken)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="hub:a/b: datasets cannot load it"):
        hub_file("hub:a/b", tmp_path / "none", "eval")
