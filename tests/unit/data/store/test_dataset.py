import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.store import dataset as dataset_module
from erniekit.errors import DataError
from tests.unit.data.helpers import SHARED, data_uri, encoded, noise, qa, write_json, write_lines
from tests.unit.data.loading import documents, load


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
    first, second, third, fourth = documents(dataset)
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert [item.tokens for document in documents(dataset) for item in document.media] == [4, 4, 10]
    assert third.media == ()
    assert fourth.sample_id == f"{two}:1"
    stats = dataset.stats
    assert (stats.samples, stats.images, stats.vision_tokens) == (4, 3, 18)
    assert stats.tokens == dataset.lengths.sum()
    assert stats.longest == dataset.lengths.max()
    assert stats.loss_tokens == sum(document.num_loss_tokens for document in documents(dataset))
    assert stats.messages == {"user": 4, "assistant": 4}
    assert stats.skipped == {}


def test_empty_dataset(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl: the data file has no samples"):
        load(vl_encoder, path)
    with pytest.raises(DataError, match=r"none\.jsonl"):
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
    assert [document.sample_id.rsplit(":", 1)[1] for document in documents(dataset)] == ["1", "7"]
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
    path = write_lines(tmp_path / "a.jsonl", [qa([{"type": "image", "image": "images/none.png"}])])
    missing = rf"a\.jsonl:1: no such image: {tmp_path}/images/none\.png; data\.on_error: skip leaves out"
    with pytest.raises(DataError, match=missing):
        load(vl_encoder, path)
    path = write_lines(tmp_path / "b.jsonl", [qa("q")])
    with pytest.raises(DataError, match=r"b\.jsonl:1: \d+ tokens, more than data\.max_length=5: ") as caught:
        load(vl_encoder, path, max_length=5)
    assert "on_error" not in str(caught.value)


def test_too_many_skipped_samples(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = bad_lines(tmp_path)
    assert load(vl_encoder, path, on_error="skip", max_errors=5).stats.samples == 2
    with pytest.raises(
        DataError, match=r"more than data\.max_errors=2 samples.*unknown role: 1.*the last: .*jsonl:4"
    ):
        load(vl_encoder, path, on_error="skip", max_errors=2)


def test_long_samples_may_be_dropped_in_any_number(vl_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa("q"), qa("q" * 9000), qa("r" * 9000)])
    dataset = load(vl_encoder, path, on_long="drop", max_errors=0)
    assert dataset.stats.samples == 1
    assert dataset.stats.skipped == {"too long": 2}
    assert [error.sample_id for error in dataset.budget.left_out()] == [f"{path}:2", f"{path}:3"]
    with pytest.raises(SampleError, match=r"a\.jsonl:2: .*set data\.on_long to trim_history or drop"):
        load(vl_encoder, path)


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
    sizes = [one.stat().st_size, two.stat().st_size]
    for size in sizes:
        found = [done for done, total in seen if total == size]
        assert found == sorted(found)
        assert len(found) >= 4
        assert found[-1] == size
    assert {total for _, total in seen} == set(sizes)


def test_fingerprint_sees_texts_answers_and_images_but_not_places(
    vl_encoder: Encoder, tmp_path: Path
) -> None:
    def fingerprint(name: str, *records: Any) -> str:
        (tmp_path / name).mkdir()
        noise(8, 8).save(tmp_path / name / "a.png")
        return load(vl_encoder, write_lines(tmp_path / name / "f.jsonl", records)).fingerprint

    image = {"type": "image", "image": data_uri(noise(8, 8))}
    base = fingerprint("a", qa("q"), qa([{"type": "image", "image": "a.png"}]), qa([image]))
    assert base == fingerprint("b", qa("q"), qa([{"type": "image", "image": "a.png"}]), qa([image]))
    other = {"type": "image", "image": data_uri(noise(8, 8, seed=1))}
    changed = [
        fingerprint("c", qa("r"), qa([{"type": "image", "image": "a.png"}]), qa([image])),
        fingerprint("d", qa("q"), qa([{"type": "image", "image": "a.png"}]), qa([other])),
        fingerprint("e", qa([{"type": "image", "image": "a.png"}]), qa("q"), qa([image])),
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
    assert documents(dataset)[1].sample_id.endswith("mllm_demo.json:26")
    videos = load(vl_encoder, SHARED / "testdata" / "mllm_video_demo.json", on_error="skip", max_length=10**6)
    assert (videos.stats.samples, videos.stats.videos, videos.stats.images) == (2, 2, 0)
    assert videos.stats.skipped == {"missing video": 1}


def test_same_image_by_path_and_inside_the_sample(vl_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(30, 40)))
    records = [qa([{"type": "image", "image": source}]) for source in ("a.png", data_uri(noise(30, 40)))]
    one, two = documents(load(vl_encoder, write_lines(tmp_path / "f.jsonl", records)))
    assert one.media[0].grid_thw == two.media[0].grid_thw
    assert one.input_ids.tolist() == two.input_ids.tolist()


class TestCache:
    """What was encoded once is found again, as long as nothing that shapes it has changed."""

    @pytest.fixture(autouse=True)
    def count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded = 0
        original = dataset_module._samples

        def counting(*arguments: Any) -> Any:
            self.encoded += 1
            return original(*arguments)

        monkeypatch.setattr(dataset_module, "_samples", counting)

    def test_a_second_start_encodes_nothing(self, vl_encoder: Encoder, tmp_path: Path) -> None:
        (tmp_path / "p.png").write_bytes(encoded(noise(30, 40)))
        path = write_lines(tmp_path / "a.jsonl", [qa("q"), {"x": 1}, qa("<image>", images=["p.png"])])
        first = load(vl_encoder, path, cache=tmp_path / "cache", on_error="skip")
        second = load(vl_encoder, path, cache=tmp_path / "cache", on_error="skip")
        assert self.encoded == 1
        assert [source.cached for source in (*first.sources, *second.sources)] == [False, True]
        assert second.stats == first.stats
        assert second.fingerprint == first.fingerprint
        for one, other in zip(documents(first), documents(second), strict=True):
            assert (one.sample_id, one.media) == (other.sample_id, other.media)
            assert one.input_ids.tolist() == other.input_ids.tolist()
        # Errors found then are reported again, in the way that this run asks for.
        assert second.budget.by_reason() == "unknown format: 1"
        with pytest.raises(SampleError, match=r"a\.jsonl:2"):
            load(vl_encoder, path, cache=tmp_path / "cache")

    def test_whatever_shapes_a_document_is_in_the_key(self, vl_checkpoint: Path, tmp_path: Path) -> None:
        image = tmp_path / "p.png"
        image.write_bytes(encoded(noise(30, 40)))
        path = write_lines(tmp_path / "a.jsonl", [qa("q"), qa("<image>", images=["p.png"])])
        cache = tmp_path / "cache"
        encoder = make_encoder(vl_checkpoint)
        load(encoder, path, cache=cache)
        for number, change in enumerate(
            (
                lambda: load(
                    make_encoder(vl_checkpoint, DataConfig.without_sources(min_pixels=9000)),
                    path,
                    cache=cache,
                ),
                lambda: load(
                    make_encoder(vl_checkpoint, DataConfig.without_sources(loss_on="last_turn")),
                    path,
                    cache=cache,
                ),
                lambda: load(encoder, path, cache=cache, max_length=300),
                lambda: load(encoder, path, cache=cache, on_long="trim_history"),
                lambda: load(encoder, path, cache=cache, format="messages"),
                lambda: image.write_bytes(encoded(noise(90, 40))) and load(encoder, path, cache=cache),
                lambda: write_lines(path, [qa("r")]) and load(encoder, path, cache=cache),
            ),
            2,
        ):
            change()
            assert self.encoded == number
        load(encoder, path, cache=cache)
        assert self.encoded == number

    def test_a_broken_off_start_leaves_nothing_behind(self, vl_encoder: Encoder, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", [qa("q"), {"x": 1}])
        with pytest.raises(SampleError):
            load(vl_encoder, path, cache=tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_encode_the_same_in_the_same_order(
    vl_encoder: Encoder, tmp_path: Path, workers: int
) -> None:
    items = [qa(f"question {number}") if number % 7 else {"x": number} for number in range(700)]
    path = write_lines(tmp_path / "a.jsonl", items)
    dataset = load(vl_encoder, path, on_error="skip", workers=workers)
    expected = [f"{path}:{number + 1}" for number in range(700) if number % 7]
    assert [document.sample_id for document in documents(dataset)] == expected
    assert [error.sample_id for error in dataset.budget.left_out()] == [
        f"{path}:{number + 1}" for number in range(0, 700, 7)
    ]
