import json
import os
from pathlib import Path

import pytest

from erniekit.data.chat.conversation import ImagePart
from erniekit.data.files.find import expand
from erniekit.data.files.hub import hub_file
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import parse_record
from erniekit.errors import DataError
from tests.unit.data.files.fake_hub import FakeHub, install
from tests.unit.data.helpers import encoded, noise, qa


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl", "a.json", "LICENSE.txt", "notes.md", "images/1.png", "deep/er/c.parquet", "deep/d.CSV",
        "deep/e.jsonl.gz", ".hidden/f.jsonl", ".g.jsonl", "texts/2.txt", "texts/1.txt", "odd[1].jsonl", "empty/x.png",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(root: Path, *entries: str) -> list[str]:
    return [str(path.relative_to(root)) for path in expand([str(root / entry) for entry in entries])]


def test_a_directory_means_the_data_files_in_it_and_below(tree: Path) -> None:
    found = ["a.json", "b.jsonl", "deep/d.CSV", "deep/e.jsonl.gz", "deep/er/c.parquet", "odd[1].jsonl"]
    assert names(tree, "") == found
    assert names(tree, "texts") == ["texts/1.txt", "texts/2.txt"]


def test_patterns(tree: Path) -> None:
    assert names(tree, "*.json*") == ["a.json", "b.jsonl", "odd[1].jsonl"]
    assert names(tree, "deep/*") == ["deep/d.CSV", "deep/e.jsonl.gz"]
    assert names(tree, "**/*.parquet") == ["deep/er/c.parquet"]
    assert names(tree, "[ab].*") == ["a.json", "b.jsonl"]
    assert names(tree, "odd[1].jsonl") == ["odd[1].jsonl"]


def test_files_keep_the_order_of_their_entries_and_come_once(tree: Path) -> None:
    (tree / "link.jsonl").symlink_to("b.jsonl")
    assert names(tree, "notes.md", "b.jsonl", "*.json", "b.jsonl", "link.jsonl") == [
        "notes.md",
        "b.jsonl",
        "a.json",
    ]
    assert expand([tree / "b.jsonl"]) == [tree / "b.jsonl"]


def test_relative_entries_stay_relative(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert expand(["b.jsonl", "deep/*.CSV"]) == [Path("b.jsonl"), Path("deep/d.CSV")]
    monkeypatch.setenv("HOME", str(tree))
    assert expand(["~/b.jsonl"]) == [tree / "b.jsonl"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("c.jsonl", r"c\.jsonl: cannot read the data file: No such file or directory; there is .*b\.jsonl"),
        ("dep/e.jsonl", r"No such file or directory; there is .*deep"),
        ("quite/elsewhere", r"No such file or directory$"),
        ("*.tsv", r"\*\.tsv: the pattern matches nothing"),
        ("b.json?x", r"the pattern matches nothing .*; there is .*b\.jsonl"),
        ("images/*", r"images/\*: the pattern matches no data files"),
        ("empty", r"empty: the directory has no data files \(\.json, "),
    ],
)
def test_what_means_no_file_is_named(tree: Path, entry: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand([str(tree / entry)])
    with pytest.raises(DataError):
        expand(["x" * 5000])


def test_a_name_of_the_hub_error_shows_how_to_write_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(DataError, match=r"No such file.*; a dataset of the Hub is named hub:owner/name$"):
        expand(["owner/chats"])


def test_a_hub_dataset_becomes_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = encoded(noise(8, 8))
    image = {"bytes": png, "path": "a/1.png"}
    hub = FakeHub([{**qa(f"<image>{n} 猫"), "images": [image]} for n in range(300)])
    install(monkeypatch, hub)
    path = hub_file("hub:some-one/set.1:test", tmp_path / "cache")
    assert hub_file("hub:some-one/set.1:test", tmp_path / "cache") == path
    assert hub.asked == [("some-one/set.1", "test")]
    found = [item for item in read_records(path) if isinstance(item, Record)]
    assert len(found) == 300
    record = parse_record(found[7].value, format="auto", base_dir=path.parent, sample_id="f:8")
    part = record.messages[0].parts[0]
    assert isinstance(part, ImagePart)
    assert isinstance(part.source, str)
    assert Path(part.source).read_bytes() == png
    assert part.source.endswith(".png")
    assert len(list(path.with_suffix(".media").iterdir())) == 1


def test_names_of_hub_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub([{"text": "x"}])
    install(monkeypatch, hub)
    entries = ["hub:a/b", "hub:a", "hub:a/b:train[:10%]", "hub:a/b:train+test", "hub:a--b"]
    paths = {hub_file(entry, tmp_path) for entry in entries}
    assert hub.asked == [
        ("a/b", "train"),
        ("a", "train"),
        ("a/b", "train[:10%]"),
        ("a/b", "train+test"),
        ("a--b", "train"),
    ]
    assert len(paths) == 5
    for wrong in ("hub:", "hub:a/b/c", "hub:../../x", "hub:a/b:", "hub:a b"):
        with pytest.raises(DataError, match="hub:owner/name"):
            hub_file(wrong, tmp_path)
    assert all(path.parent == tmp_path for path in paths)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach"),
            "hub:a/b: the Hub cannot be reached, and the dataset is not in its cache",
        ),
        (
            FileNotFoundError("Dataset 'a/b' doesn't exist\nmore"),
            "hub:a/b: datasets cannot load it: .*exist$",
        ),
        (ValueError('Unknown split "train".'), "datasets cannot load it: Unknown split"),
        (RuntimeError(), "datasets cannot load it: RuntimeError"),
    ],
)
def test_what_the_hub_cannot_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    install(monkeypatch, FakeHub([], error))
    with pytest.raises(DataError, match=message):
        hub_file("hub:a/b", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeHub([{"text": "x"}]))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="hub:a/b: cannot write "):
        hub_file("hub:a/b", tmp_path / "cache")


def test_a_half_written_file_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub([{"text": "x"}])
    install(monkeypatch, hub)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        hub_file("hub:a/b", tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_real_package_says_that_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hub:nobody/nothing: the Hub cannot be reached"):
        hub_file("hub:nobody/nothing", tmp_path)


def test_the_real_package_hands_over_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    png = encoded(noise(8, 8))
    features = datasets.Features({"query": datasets.Value("string"), "image": datasets.Image()})
    rows = {"query": ["<image>q"], "image": [{"bytes": png, "path": None}]}
    made = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: made)
    (found,) = read_records(hub_file("hub:a/b", tmp_path))
    assert isinstance(found, Record)
    assert (tmp_path / found.value["image"]).read_bytes() == png
