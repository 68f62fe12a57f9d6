"""Selection of samples by place, at random and by name."""

import json
from pathlib import Path

import pytest

from erniekit.data.files.reader import BadLine
from erniekit.errors import DataError
from erniekit.inspection.check import CheckedFile
from erniekit.inspection.select import SelectedRecord, first_records, named_record, random_records
from tests.unit.data.helpers import write_lines


@pytest.fixture
def files(tmp_path: Path) -> list[CheckedFile]:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        write_lines(path, [{"text": f"{path.stem}{number}"} for number in range(5)])
    return [CheckedFile(path, "text") for path in paths]


def texts(chosen: list[SelectedRecord]) -> list[str]:
    return ["bad" if isinstance(record, BadLine) else record.value["text"] for _, record in chosen]


def test_the_first_ones(files: list[CheckedFile]) -> None:
    assert texts(first_records(files, 3)) == ["a0", "a1", "a2"]
    assert texts(first_records(files, 3, skip=4)) == ["a4", "b0", "b1"]
    assert texts(first_records(files, 3, skip=9)) == ["b4"]


def test_skipping_everything_is_an_error_that_counts(files: list[CheckedFile]) -> None:
    with pytest.raises(DataError, match="there are 10 samples: none is left after the first 10"):
        first_records(files, 1, skip=10)


def test_random_ones_differ_by_seed_and_repeat(files: list[CheckedFile]) -> None:
    draws = [texts(random_records(files, 4, seed)) for seed in range(40)]
    assert draws == [texts(random_records(files, 4, seed)) for seed in range(40)]
    for draw in draws:
        assert len(set(draw)) == 4
        assert draw == sorted(draw)
    # Each sample is in 4 of 10 draws, give or take.
    shares = [sum(f"{name}{number}" in draw for draw in draws) for name in "ab" for number in range(5)]
    assert min(shares) > 5
    assert max(shares) < 28


def test_more_random_ones_than_there_are(files: list[CheckedFile]) -> None:
    assert len(random_records(files, 100, 0)) == 10


def test_one_by_its_name(files: list[CheckedFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, record = named_record(files, f"{files[1].path}:3", "auto")
    assert texts([(file, record)]) == ["b2"]
    assert file is files[1]
    monkeypatch.chdir(tmp_path)
    assert texts([named_record(files, "b.jsonl:3", "auto")]) == ["b2"]
    assert texts([named_record(files, "./b.jsonl:3 (message 4)", "auto")]) == ["b2"]


def test_a_bad_line_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{broken\n')
    assert texts([named_record([], f"{path}:2", "auto")]) == ["bad"]


def test_a_file_that_is_not_of_the_run_has_the_given_format(files: list[CheckedFile], tmp_path: Path) -> None:
    other = write_lines(tmp_path / "other.jsonl", [{"text": "x"}])
    assert named_record(files, f"{other}:1", "messages")[0] == CheckedFile(other, "messages")


@pytest.mark.parametrize("name", ["chats.jsonl", ":3", ""])
def test_a_name_needs_a_line(files: list[CheckedFile], name: str) -> None:
    with pytest.raises(DataError, match="a sample is named file:line"):
        named_record(files, name, "auto")


def test_a_name_without_a_sample_says_what_is_near(files: list[CheckedFile], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        named_record(files, f"{tmp_path / 'gone.jsonl'}:1", "auto")
    with pytest.raises(DataError, match="no sample begins there; near it: 3, 4, 5"):
        named_record(files, f"{files[0].path}:9", "auto")
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"text": "x"}, {"text": "y"}], indent=1))
    with pytest.raises(DataError, match="near it: 2, 5"):
        named_record([], f"{array}:3", "auto")
