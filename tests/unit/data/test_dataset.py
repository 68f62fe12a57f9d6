import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.conversation import SampleError
from erniekit.data.dataset import Dataset, load_dataset
from erniekit.data.encode import Encoder
from erniekit.errors import DataError
from tests.unit.data.helpers import SHARED, data_uri, encoded, noise, qa, write_json, write_lines


def load(encoder: Encoder, *paths: Path, **options: Any) -> Dataset:
    return load_dataset(list(paths), encoder=encoder, **{"max_length": 4096, **options})


def test_both_formats_in_one_file_and_several_files(vl_encoder: Encoder, tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    noise(56, 140).save(tmp_path / "sub" / "a.png")
    part = {"type": "image", "image": "a.png"}
    ernie = {
        "text_info": [{"text": "q", "tag": "mask"}, {"text": "seven", "tag": "no_mask"}],
        "image_info": [{"image_url": "a.png"}],
    }
    one = write_lines(
        tmp_path / "one.jsonl", [qa([part, {"type": "text", "text": "q"}]), ernie, qa("text only")]
    )
    two = write_json(tmp_path / "sub" / "two.json", [qa("<image>q", images=["a.png"])])
    dataset = load(vl_encoder, one, two)
    first, second, third, fourth = dataset.documents
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert [item.tokens for document in dataset.documents for item in document.media] == [4, 4, 10]
    assert third.media == ()
    assert fourth.sample_id == f"{two}:1"
    stats = dataset.stats
    assert (stats.samples, stats.images, stats.vision_tokens) == (4, 3, 18)
    assert stats.tokens == sum(dataset.lengths)
    assert stats.longest == max(dataset.lengths)
    assert stats.loss_tokens == sum(document.num_loss_tokens for document in dataset.documents)
    assert stats.messages == {"user": 4, "assistant": 4}
    assert stats.skipped == {}


def test_empty_dataset(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl: the data file has no samples"):
        load(vl_encoder, path)
    with pytest.raises(DataError, match="is a directory"):
        load(vl_encoder, tmp_path)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read the data file: No such file"):
        load(vl_encoder, tmp_path / "none.jsonl")


def bad_lines(tmp_path: Path) -> Path:
    lines = [
        json.dumps(qa("q")),
        '{"messages": ',
        json.dumps(qa([{"type": "image", "image": "none.png"}])),
        json.dumps(qa("q", role="x") | {"messages": [{"role": "bot", "content": "x"}]}),
        json.dumps(qa("q" * 9000)),
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "loss": False},
                ]
            }
        ),
        json.dumps(qa("other")),
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    return path


REASONS = ["invalid JSON", "missing image", "unknown role", "too long", "no loss token"]


def test_skipped_samples_are_counted_by_reason(vl_encoder: Encoder, tmp_path: Path) -> None:
    dataset = load(vl_encoder, bad_lines(tmp_path), on_error="skip")
    assert [document.sample_id.rsplit(":", 1)[1] for document in dataset.documents] == ["1", "7"]
    assert dataset.stats.skipped == dict.fromkeys(REASONS, 1)
    assert dataset.stats.samples == 2


def test_each_bad_sample_is_an_error_that_names_its_line(vl_encoder: Encoder, tmp_path: Path) -> None:
    lines = bad_lines(tmp_path).read_text().split("\n")
    for number, reason in enumerate(REASONS, 2):
        path = tmp_path / "one.jsonl"
        path.write_text("\n" * (number - 1) + lines[number - 1])
        with pytest.raises(SampleError, match=rf"one\.jsonl:{number}: ") as caught:
            load(vl_encoder, path)
        assert caught.value.reason == reason


def test_messages_name_path_and_length(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa([{"type": "image", "image": "pictures/none.png"}])])
    with pytest.raises(DataError, match=rf"a\.jsonl:1: no such picture: {tmp_path}/pictures/none\.png"):
        load(vl_encoder, path)
    path = write_lines(tmp_path / "b.jsonl", [qa("q")])
    with pytest.raises(DataError, match=r"b\.jsonl:1: \d+ tokens, more than data\.max_length=5: "):
        load(vl_encoder, path, max_length=5)


def test_too_many_skipped_samples(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = bad_lines(tmp_path)
    assert load(vl_encoder, path, on_error="skip", max_errors=5).stats.samples == 2
    with pytest.raises(
        DataError, match=r"more than data\.max_errors=2 samples.*unknown role: 1.*the last: .*jsonl:4"
    ):
        load(vl_encoder, path, on_error="skip", max_errors=2)


def test_nothing_left(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"x": 1}, {"y": 1}])
    with pytest.raises(
        DataError, match=r"no sample can be used \(unknown format: 2\); the first: .*a\.jsonl:1"
    ):
        load(vl_encoder, path, on_error="skip")


def test_a_syntax_error_in_an_array_cannot_be_skipped(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"[{json.dumps(qa('q'))},\n{{]")
    with pytest.raises(DataError, match=r"a\.json:2: not valid JSON"):
        load(vl_encoder, path, on_error="skip")


def test_progress_ends_with_all_bytes(vl_encoder: Encoder, tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", [qa("q")] * 250)
    two = write_json(tmp_path / "two.json", [qa("猫")] * 250)
    seen: list[tuple[int, int]] = []
    load(vl_encoder, one, two, progress=lambda done, total: seen.append((done, total)))
    total = one.stat().st_size + two.stat().st_size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 7
    assert seen[-1] == (total, total)
    assert {t for _, t in seen} == {total}


def test_fingerprint_sees_texts_answers_and_pictures_but_not_places(
    vl_encoder: Encoder, tmp_path: Path
) -> None:
    def fingerprint(name: str, *records: Any) -> str:
        (tmp_path / name).mkdir()
        noise(8, 8).save(tmp_path / name / "a.png")
        return load(vl_encoder, write_lines(tmp_path / name / "f.jsonl", records)).fingerprint

    picture = {"type": "image", "image": data_uri(noise(8, 8))}
    base = fingerprint("a", qa("q"), qa([{"type": "image", "image": "a.png"}]), qa([picture]))
    assert base == fingerprint("b", qa("q"), qa([{"type": "image", "image": "a.png"}]), qa([picture]))
    other = {"type": "image", "image": data_uri(noise(8, 8, seed=1))}
    changed = [
        fingerprint("c", qa("r"), qa([{"type": "image", "image": "a.png"}]), qa([picture])),
        fingerprint("d", qa("q"), qa([{"type": "image", "image": "a.png"}]), qa([other])),
        fingerprint("e", qa([{"type": "image", "image": "a.png"}]), qa("q"), qa([picture])),
        fingerprint("f", qa("q"), qa([{"type": "image", "image": "a.png"}])),
    ]
    assert len({base, *changed}) == 5

    answers = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2
    silent = [answers[0], {**answers[1], "loss": False}, *answers[2:]]
    assert fingerprint("g", {"messages": answers}) != fingerprint("h", {"messages": silent})


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/testdata")
def test_the_photographs_of_the_demo_data(vl_encoder: Encoder) -> None:
    dataset = load(vl_encoder, SHARED / "testdata" / "mllm_demo.json")
    assert (dataset.stats.samples, dataset.stats.images) == (6, 8)
    assert dataset.stats.messages == {"user": 12, "assistant": 12}
    assert dataset.documents[1].sample_id.endswith("mllm_demo.json:26")
    with pytest.raises(DataError, match=r'mllm_video_demo\.json:2: "videos" is not supported yet'):
        load(vl_encoder, SHARED / "testdata" / "mllm_video_demo.json")


def test_same_picture_by_path_and_inside_the_sample(vl_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(30, 40)))
    records = [qa([{"type": "image", "image": source}]) for source in ("a.png", data_uri(noise(30, 40)))]
    one, two = load(vl_encoder, write_lines(tmp_path / "f.jsonl", records)).documents
    assert one.media[0].grid_thw == two.media[0].grid_thw
    assert one.input_ids.tolist() == two.input_ids.tolist()
