"""Runs with tokens that were added to the tokenizer, and with more positions than the checkpoint was made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.resize import read_rows
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.create.create import create_model
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.export import export_model
from erniekit.export.verify import VerifyOptions, verify_model
from erniekit.generation.load import find_model
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.integration.training_setup import chats, losses, make_config, write_chats

TOKENS = ("<call_x>", "<call_y>")
VOCAB = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = chats(8, images=False)
    samples[0]["messages"][0]["content"] += " <call_x>"
    samples[1]["messages"][1]["content"] += " <call_y>"
    return write_chats(tmp_path_factory.mktemp("data") / "train.jsonl", samples)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose embedding ends where the tokenizer did before two tokens were added; "untied" has its own head."""
    parent = tmp_path_factory.mktemp("bases")
    text = write_chats(parent / "text.jsonl", chats(40, images=False))
    for name in ("dense", "untied", "vl"):
        shape = "tiny-vl" if name == "vl" else "tiny-dense"
        own = ["tie_word_embeddings=false"] if name == "untied" else []
        create_model(shape, parent / name, [text], seed=3, std=0.1, overrides=["num_hidden_layers=2", *own])
        tokenizer = load_tokenizer(parent / name)
        tokenizer.add_tokens([f"<spare_{number}>" for number in range(512 - len(tokenizer))])
        tokenizer.add_tokens(list(TOKENS))
        assert tokenizer.convert_tokens_to_ids(list(TOKENS)) == [512, 513]
        tokenizer.save_pretrained(parent / name)
    return {name: parent / name for name in ("dense", "untied", "vl")}


def config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def arrays(directory: Path) -> dict[str, np.ndarray]:
    return {name: read_array(info) for name, info in read_index(directory).items()}


def test_a_run_that_meets_such_a_token_says_so_first(
    tmp_path: Path, bases: dict[str, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_config(tmp_path / "run", bases["dense"], data, data__cache=False)
    for start in (run_training, dry_run_training):
        with pytest.raises(SampleError, match="'<call_x>' has the id 512, but the model's embedding has 512"):
            start(run)
        assert "2 tokens without a row" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["dense", "untied", "vl"])
def test_a_resized_vocabulary_is_trained_exported_and_verified(
    tmp_path: Path,
    bases: dict[str, Path],
    data: Path,
    name: str,
    lora: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, Any] = {"model__resize_vocab": True, "lora__enabled": lora, "train__max_steps": 2}
    if lora and name == "vl":
        # Embedding and head are trained, and so never quantized.
        settings["model__quantize"] = "int8"
    assert run_training(make_config(tmp_path / "run", bases[name], data, **settings)) == 0
    assert "vocabulary: 512 rows -> 576" in capsys.readouterr().out
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    if not lora:
        assert config(checkpoint)["vocab_size"] == 576
    assert find_model(checkpoint).load().config.vocab_size == 576

    layout = "transformers" if name == "vl" else "hub"
    export_model(tmp_path / "run", tmp_path / "out", layout=layout)  # type: ignore[arg-type]
    text = config(tmp_path / "out").get("text_config", config(tmp_path / "out"))
    assert text["vocab_size"] == 576
    before, after = arrays(bases[name]), arrays(tmp_path / "out")
    for tensor in VOCAB[: 2 if name == "untied" else 1]:
        assert after[tensor].shape[0] == 576
        # Trained, all of them: the softmax reaches every row, and the embedding those that were met.
        assert not np.array_equal(after[tensor][:512], before[tensor])
        mean = before[tensor].mean(0)
        assert not np.array_equal(after[tensor][512], mean)
        assert np.linalg.norm(after[tensor][512:] - mean) < 0.5 * np.linalg.norm(mean[None].repeat(64, 0)) + 1
    assert load_tokenizer(tmp_path / "out").convert_tokens_to_ids(list(TOKENS)) == [512, 513]
    checks = list(verify_model(tmp_path / "out", VerifyOptions(base=bases[name])))
    assert not [check for check in checks if check.status == "FAIL"]
    texts = "\n".join(check.text for check in checks)
    assert "except for +64 rows of the vocabulary" in texts
    assert "has a row in the embedding (576 rows)" in texts


@pytest.mark.parametrize("lora", [False, True])
def test_a_resized_run_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, bases: dict[str, Path], data: Path, lora: bool
) -> None:
    settings: dict[str, Any] = {"model__resize_vocab": True, "lora__enabled": lora, "train__max_steps": 4}
    settings |= {"checkpoint__save_every": 2, "checkpoint__keep": 9}
    run = make_config(tmp_path / "run", bases["untied"], data, **settings)
    run_training(run)
    whole = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-000004")
    run_training(run, resume=True)
    assert losses(tmp_path / "run")[-2:] == whole[-2:]
    # A token more than there is room for: another model, not this run.
    other = shutil.copytree(bases["untied"], tmp_path / "other")
    tokenizer = load_tokenizer(other)
    tokenizer.add_tokens([f"<more_{number}>" for number in range(70)])
    tokenizer.save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"model\.resize_vocab: was 576, is now 640"):
        run_training(
            make_config(tmp_path / "run", other, data, **settings | {"train__max_steps": 6}), resume=True
        )


def test_new_rows_start_as_the_mean(tmp_path: Path, bases: dict[str, Path]) -> None:
    info = read_index(bases["untied"])["lm_head.weight"]
    grown, before = read_rows(info, 576), read_array(info)
    np.testing.assert_array_equal(grown[:512], before)
    wanted = np.tile(before.astype(np.float64).mean(0), (64, 1))
    assert np.linalg.norm(grown[512:] - wanted) <= 1e-6 * np.linalg.norm(wanted)
    np.testing.assert_array_equal(read_rows(info, 512), before)


def test_preferences_with_a_resized_vocabulary(tmp_path: Path, bases: dict[str, Path]) -> None:
    """The reference has the new rows too, untrained: policy and reference agree before the first step."""
    pairs = [
        {"messages": chat["messages"][:1], "chosen": "yes <call_x>", "rejected": "no <call_y>"}
        for chat in chats(4, images=False)
    ]
    data = write_chats(tmp_path / "pairs.jsonl", pairs)
    for number, settings in enumerate(
        ({"lora__enabled": True}, {"dpo__reference": "copy"}, {"dpo__reference": "cached"})
    ):
        run = tmp_path / f"run{number}"
        chosen: dict[str, Any] = {
            "task": "dpo",
            "model__resize_vocab": True,
            "train__max_steps": 2,
            **settings,
        }
        chosen["data__cache_dir"] = str(tmp_path / "cache")
        run_training(make_config(run, bases["untied"], data, **chosen))
        steps = losses(run)
        assert steps[0][1] == pytest.approx(np.log(2), abs=1e-4)
        assert steps[1][1] < steps[0][1]


def test_frozen_rows_are_refused(tmp_path: Path, bases: dict[str, Path], data: Path) -> None:
    run = make_config(
        tmp_path / "run",
        bases["dense"],
        data,
        model__resize_vocab=True,
        model__freeze=["model.embed_tokens.*"],
    )
    with pytest.raises(ConfigError, match=r"model\.freeze covers model\.embed_tokens\.weight"):
        dry_run_training(run)


@pytest.mark.parametrize("lora", [False, True])
def test_more_positions_are_trained_and_stated(
    tmp_path: Path, bases: dict[str, Path], lora: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(bases["dense"], tmp_path / "base")
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        content = json.loads((base / name).read_text()) | {key: 20}
        (base / name).write_text(json.dumps(content))
    samples = chats(8, images=False)
    samples[3]["messages"][0]["content"] = "Say red, number 3. " * 5
    data = write_chats(tmp_path / "train.jsonl", samples)
    settings: dict[str, Any] = {"train__max_steps": 1, "lora__enabled": lora, "data__cache": False}
    with pytest.raises(
        SampleError, match=r"train.jsonl:4: .* positions, more than .*max_position_embeddings=20"
    ):
        run_training(make_config(tmp_path / "run", base, data, **settings))
    with pytest.raises(ConfigError, match="10 is below the checkpoint's 20"):
        run_training(make_config(tmp_path / "run", base, data, **settings, model__max_position_embeddings=10))
    # Rows are longer than that: positions begin anew in each document.
    dropped = make_config(tmp_path / "dropped", base, data, **settings, data__on_long="drop")
    assert run_training(dropped) == 0
    assert "too long: 1" in capsys.readouterr().out
    run = make_config(tmp_path / "run", base, data, **settings, model__max_position_embeddings=160)
    assert run_training(run) == 0
    assert find_model(tmp_path / "run").load().config.max_position_embeddings == 160
    export_model(tmp_path / "run", tmp_path / "out")
    assert config(tmp_path / "out")["max_position_embeddings"] == 160
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 160
