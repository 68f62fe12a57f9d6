"""A run that is resumed with other data is refused with the files that differ; what it had skipped may be gone."""

import re
from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import CheckpointError, ErnieKitError
from erniekit.train.run import run_training
from tests.integration.runs import assert_same_run, copy_at
from tests.integration.training_setup import chats, make_config, write_chats
from tests.unit.data.helpers import noise

SETTINGS: dict[str, Any] = {"train__max_steps": 4, "checkpoint__save_every": 1, "checkpoint__keep": 9}


def photo_chats(directory: Path) -> Path:
    """Chats about files, of which one image is cut after its header."""
    samples = chats(12, images=False)
    for number, sample in enumerate(samples[:6]):
        noise(56, 56).save(directory / f"{number}.png")
        image = {"type": "image_url", "image_url": {"url": f"{number}.png"}}
        sample["messages"][0]["content"] = [image, {"type": "text", "text": "Which colour?"}]
    whole = (directory / "2.png").read_bytes()
    (directory / "2.png").write_bytes(whole[:200])
    return write_chats(directory / "photos.jsonl", samples)


def test_a_skipped_image_may_be_gone_when_the_run_is_resumed(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photo_chats(tmp_path)
    cache = {"data__cache_dir": str(tmp_path / "cache"), "data__max_length": 60}
    settings = {**SETTINGS, **cache, "data__on_error": "skip", "train__rows_per_step": 2}
    whole, part, raising, uncached = (tmp_path / name for name in ("whole", "part", "raising", "uncached"))
    run_training(make_config(whole, model, data, **settings))
    assert capsys.readouterr().out.count("photos.jsonl:3") == 1
    copy_at(whole, part, 2)
    copy_at(whole, raising, 2)
    copy_at(whole, uncached, 2)
    (tmp_path / "2.png").unlink()
    assert run_training(make_config(part, model, data, **settings), resume=True) == 0
    assert_same_run(whole, part)
    with pytest.raises(ErnieKitError, match=r"photos\.jsonl:3: .*2\.png"):
        run_training(
            make_config(raising, model, data, **{**settings, "data__on_error": "raise"}), resume=True
        )
    # Nothing but the cache knows the size of the image, and so the rows.
    elsewhere, without = {"data__cache_dir": str(tmp_path / "other")}, {"data__cache": False}
    for change, problem in ((elsewhere, "are the same, but images"), (without, r"cannot be compared\)")):
        with pytest.raises(CheckpointError) as error:
            run_training(make_config(uncached, model, data, **settings | change), resume=True)
        lost = r"1 sample cannot be used now: .*photos\.jsonl:3: no such image.*2\.png"
        assert re.search(rf"data\.train: the data files.* {problem}.*; {lost}", str(error.value))


def test_streamed_images_that_vanish_or_appear_do_not_change_the_rows_in_silence(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photo_chats(tmp_path)
    (tmp_path / "1.png").rename(tmp_path / "away.png")
    streamed = {"data__streaming": True, "data__buffer": 12, "data__max_length": 60, "data__on_error": "skip"}
    settings = {**SETTINGS, **streamed, "train__rows_per_step": 1}
    whole, appeared, vanished, other = (
        tmp_path / name for name in ("whole", "appeared", "vanished", "other")
    )
    run_training(make_config(whole, model, data, **settings))
    for part in (appeared, vanished, other):
        copy_at(whole, part, 2)
    (tmp_path / "away.png").rename(tmp_path / "1.png")
    capsys.readouterr()
    # The rows of the checkpoint were packed without it, and so are those that follow them in the buffer.
    assert run_training(make_config(appeared, model, data, **settings), resume=True) == 0
    assert re.search(r"skipped: .*photos\.jsonl:2: no such image: .*1\.png", capsys.readouterr().out)
    assert_same_run(whole, appeared)
    (tmp_path / "4.png").rename(tmp_path / "away.png")
    with pytest.raises(
        ErnieKitError, match=r"1 sample .*photos\.jsonl:5: no such image: .*4\.png; put them back"
    ):
        run_training(make_config(vanished, model, data, **settings), resume=True)
    noise(84, 56).save(tmp_path / "4.png")
    with pytest.raises(ErnieKitError, match=r"images or data files have changed .*photos\.jsonl:12"):
        run_training(make_config(other, model, data, **settings), resume=True)
    # The error has not cost the checkpoint: with its image, the run continues.
    (tmp_path / "away.png").rename(tmp_path / "4.png")
    assert run_training(make_config(vanished, model, data, **settings), resume=True) == 0
    assert_same_run(whole, vanished)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_differ_are_named(tmp_path: Path, model: Path, streaming: bool) -> None:
    files = [write_chats(tmp_path / f"{name}.jsonl", chats(8, seed)) for seed, name in enumerate("abc")]
    cache = {"data__streaming": streaming, "data__cache_dir": str(tmp_path / "cache")}
    settings = {**cache, "train__max_steps": 1, "train__rows_per_step": 1, "data__max_length": 60}
    if streaming:
        settings["data__buffer"] = 8

    def config(*chosen: Path) -> Any:
        return make_config(
            tmp_path / "run", model, files[0], **settings, data__train=[str(file) for file in chosen]
        )

    run_training(config(files[0], files[1]))
    write_chats(files[1], chats(8, 9))
    with pytest.raises(CheckpointError) as error:
        run_training(config(files[1], files[2]), resume=True)
    expected = (
        f"data.train: {files[1]} has changed, {files[0]} is not in data.train any more, {files[2]} is new"
    )
    assert expected in str(error.value)
    write_chats(files[1], chats(8, 1))
    if not streaming:
        # The same samples in other bytes. A stream is known by its bytes.
        files[1].write_text(files[1].read_text().replace('": ', '":  '))
    settings["train__max_steps"] = 2
    assert run_training(config(files[0], files[1]), resume=True) == 0
