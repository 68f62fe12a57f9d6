"""`check_files`: counts, lengths and errors."""

from pathlib import Path
from typing import Any

import pytest

from erniekit.config import DataConfig
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.media.access import PUBLIC_URLS
from erniekit.data.media.item import MediaSpec
from erniekit.data.media.patches import ImageSpec
from erniekit.data.media.video import VideoSpec
from erniekit.inspection.check import DEFAULT_MEDIA, CheckedFile, CheckOptions, check_files
from erniekit.inspection.check_report import CheckReport
from tests.unit.data.helpers import data_uri, encoded, noise, qa, write_json, write_lines

LONG = "one two three four five six seven " * 20


def check(
    *paths: Path, encoder: Encoder | None = None, is_eval: bool = False, **settings: Any
) -> CheckReport:
    options = CheckOptions(encoder=encoder, **({"max_length": 200} | settings))
    return check_files([CheckedFile(path, "auto", is_eval) for path in paths], options)


def image(source: str) -> list[dict[str, Any]]:
    return [{"type": "image", "image": source}, {"type": "text", "text": "what?"}]


def reasons(report: CheckReport) -> dict[str, int]:
    return dict(report.errors.by_reason)


def test_counts_without_a_model(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            qa("hello", "hi"),
            {"instruction": "say", "output": "so"},
            qa(image(data_uri(noise(60, 60))), "a cat"),
            qa("hello", "hi"),
            {"text": "plain words"},
        ],
    )
    report = check(path)
    assert report.is_clean
    assert report.files[0].formats == {"messages": 3, "alpaca": 1, "text": 1}
    assert {role: count.messages for role, count in report.roles.items()} == {
        "user": 4,
        "assistant": 4,
        "text": 1,
    }
    assert report.roles["assistant"].with_loss == 4
    assert report.roles["assistant"].characters == len("hi" + "so" + "a cat" + "hi")
    assert report.contents == {"text only": 3, "with pictures": 1, "plain text": 1}
    assert (report.duplicates.count, report.duplicates.first) == (1, [f"{path}:4"])
    assert list(report.text.values) == [7, 5, 10, 7, 11]
    assert list(report.total.values) == list(report.text.values)
    assert list(report.vision.values) == [4]  # 60 x 60 pixels become 56 x 56: 2 x 2 tokens
    assert (report.images, report.videos, report.unit) == (1, 0, "characters")
    assert report.packing is None


def test_the_defaults_are_those_of_a_checkpoint_that_says_nothing_of_videos(tmp_path: Path) -> None:
    spec = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 4842768}}
    means = {"image_mean": DEFAULT_MEDIA.image.image_mean, "image_std": DEFAULT_MEDIA.image.image_std}
    write_json(tmp_path / "preprocessor_config.json", spec | means)
    own = MediaSpec(ImageSpec.from_checkpoint(tmp_path), VideoSpec.from_checkpoint(tmp_path))
    assert own == DEFAULT_MEDIA


def test_tokens_are_those_of_training(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa("hello", "hi"), qa(image(data_uri(noise(60, 60))), "a cat")])
    report = check(path, encoder=vl_encoder)
    packing = report.packing
    assert packing is not None
    assert report.total.total() == packing.tokens
    assert report.text.total() == packing.tokens - 4
    assert (report.vision_tokens, list(report.vision.values)) == (4, [4])
    assert (packing.rows, packing.documents) == (1, 2)
    assert packing.unused == pytest.approx(1 - packing.tokens / 200)
    assert packing.unused_if_padded == pytest.approx(1 - packing.tokens / 400)
    assert 0 < report.loss_tokens < packing.tokens


def test_every_kind_of_error_is_named_with_its_place(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(
        path,
        [
            qa("fine"),
            {"messages": [{"role": "user", "content": "no answer"}]},
            qa(image("nowhere.png")),
            {"strange": 1},
            qa("<|end_of_sentence|>"),
            qa(LONG),
        ],
    )
    path.write_text(path.read_text() + "{broken\n")
    report = check(path, encoder=vl_encoder)
    assert reasons(report) == {
        "no answer at the end": 1,
        "missing image": 1,
        "unknown format": 1,
        "reserved token": 1,
        "too long": 1,
        "invalid JSON": 1,
    }
    assert [error.sample_id for error in report.errors.first] == [f"{path}:{line}" for line in range(2, 8)]
    assert (report.samples, report.failed, report.is_clean) == (7, 6, False)
    without = check(path)
    assert set(reasons(report)) - set(reasons(without)) == {"reserved token", "too long"}


def test_the_first_errors_are_kept_and_one_of_each_reason(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"strange": number} for number in range(30)])
    path.write_text(path.read_text() + "{broken\n{broken\n")
    report = check(path)
    assert [error.reason for error in report.errors.first] == ["unknown format"] * 20 + ["invalid JSON"]
    assert (report.errors.total, report.failed) == (32, 32)
    assert len(check(path, most_errors=None).errors.first) == 32


def test_too_long_as_on_long_says(tmp_path: Path, vl_encoder: Encoder) -> None:
    history = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "x"}]
    path = write_lines(
        tmp_path / "a.jsonl", [qa("short"), qa(LONG), {"messages": history + qa("short")["messages"]}]
    )
    failing = check(path, encoder=vl_encoder)
    assert (failing.failed, failing.dropped) == (2, 0)
    dropping = check(path, encoder=vl_encoder, on_long="drop")
    assert (dropping.failed, dropping.dropped, dropping.is_clean) == (0, 2, True)
    trimming = check(path, encoder=vl_encoder, on_long="trim_history")
    assert (trimming.failed, trimming.trimmed) == (1, 1)
    # Lengths are of whole documents, rows hold the documents that are used.
    for report in (failing, dropping, trimming):
        assert report.total.over(200) == 2
        assert report.total.longest() > 200
    assert [len(report.row_lengths.values) for report in (failing, dropping, trimming)] == [1, 1, 2]
    assert trimming.row_lengths.longest() <= 200


def test_a_long_text_is_one_length_and_several_pieces(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": LONG}])
    report = check(path, encoder=vl_encoder, max_length=50)
    assert report.is_clean
    assert len(report.total.values) == 1
    assert len(report.row_lengths.values) == -(-(report.total.longest() - 1) // 49)


def test_each_turn_has_a_length_for_each_answer(tmp_path: Path, vl_checkpoint: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": qa("a")["messages"] + qa("b")["messages"]}])
    encoder = make_encoder(vl_checkpoint, DataConfig.without_sources(loss_on="each_turn"))
    report = check(path, encoder=encoder)
    assert (report.samples, len(report.total.values), len(report.row_lengths.values)) == (1, 2, 2)


def test_eval_files_are_checked_but_not_packed(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa("a"), {"strange": 1}])
    report = check(path, encoder=vl_encoder, is_eval=True)
    assert (report.failed, len(report.total.values), report.packing) == (1, 1, None)


@pytest.mark.parametrize("with_model", [False, True])
def test_decode_finds_what_headers_do_not_tell(tmp_path: Path, vl_encoder: Encoder, with_model: bool) -> None:
    data = encoded(noise(200, 200))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    path = write_lines(tmp_path / "a.jsonl", [qa(image("cut.png"))])
    encoder = vl_encoder if with_model else None
    assert check(path, encoder=encoder).is_clean
    assert reasons(check(path, encoder=encoder, decode=True)) == {"bad image": 1}


def test_a_damaged_file_does_not_stop_the_others(tmp_path: Path) -> None:
    damaged = tmp_path / "a.json"
    damaged.write_text('[{"messages": [{"role": "user", "content": "x"}, ')
    empty = tmp_path / "b.jsonl"
    empty.write_text("\n")
    good = write_lines(tmp_path / "c.jsonl", [qa("x")])
    report = check(damaged, empty, good, tmp_path / "gone.jsonl")
    assert [file.unreadable is None for file in report.files] == [False, False, True, False]
    assert report.files[1].unreadable is not None and "no samples" in report.files[1].unreadable
    assert (report.samples, report.failed, report.is_clean) == (1, 0, False)


def test_limit_stops_after_so_many_samples(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "a.jsonl", [qa(str(number)) for number in range(3)])
    second = write_lines(tmp_path / "b.jsonl", [qa("x"), {"strange": 1}])
    report = check(one, second, limit=4)
    assert ([file.samples for file in report.files], report.is_clean) == ([3, 1], True)
    assert len(check(one, second, limit=3).files) == 1


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    paths = [write_lines(tmp_path / f"{name}.jsonl", [qa("x"), qa("y")]) for name in "ab"]
    seen: list[tuple[int, int]] = []
    files = [CheckedFile(path, "auto") for path in paths]
    check_files(files, CheckOptions(None, 100), lambda phase, done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in paths)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_urls_only_where_they_are_allowed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa(image("http://127.0.0.1:9/a.png"))])
    assert reasons(check(path)) == {"not supported": 1}
    assert reasons(check(path, access=PUBLIC_URLS)) == {"not fetched": 1}
