"""Model directories that cannot be used are refused by every command, before any data is encoded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import TensorSpec, read_array, read_index, write_shards
from erniekit.errors import CheckpointError, DataError
from erniekit.export.convert import convert_model
from erniekit.export.export import export_model
from erniekit.export.verify import VerifyOptions, verify_model
from erniekit.generation.load import find_model
from erniekit.train import inputs as inputs_module
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.integration.training_setup import chats, make_config, write_chats

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    arrays = {name: read_array(info) for name, info in read_index(directory).items()}
    change(arrays)
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    write_shards(directory, specs, arrays.__getitem__)


def _second_output_matrix(directory: Path) -> str:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + 1

    rewrite(directory, change)
    return "is not equal to model.embed_tokens.weight"


def _pointer_weights(directory: Path) -> str:
    next(directory.glob("*.safetensors")).write_bytes(POINTER)
    return "git lfs pull"


def _pointer_tokenizer(directory: Path) -> str:
    (directory / "tokenizer.json").write_bytes(POINTER)
    return "tokenizer.json: is a Git LFS pointer"


def _cut_off(directory: Path) -> str:
    file = next(directory.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    return "cut off"


def _rope(directory: Path) -> str:
    change_config(directory, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    return "rope_scaling is"


FAULTS = [_second_output_matrix, _pointer_weights, _pointer_tokenizer, _cut_off, _rope]


@pytest.fixture
def no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("data is encoded")

    monkeypatch.setattr(inputs_module, "load_source", fail)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
@pytest.mark.usefixtures("no_encoding")
def test_every_command_refuses_it(
    fault: Callable[[Path], str], model: Path, data: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    words = fault(broken)
    config = make_config(tmp_path / "run", broken, data)
    for command in (
        lambda: run_training(config),
        lambda: dry_run_training(config),
        lambda: find_model(broken),
        lambda: export_model(broken, tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError) as caught:
            command()
        assert words in str(caught.value)
    checks = list(verify_model(broken, VerifyOptions(transformers=False)))
    assert any(check.status == "FAIL" and words in check.text for check in checks), checks
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_encoding")
@pytest.mark.parametrize("key", ["data.train", "data.eval"])
def test_the_last_file_of_data_is_looked_at_before_the_first_is_encoded(
    key: str, model: Path, data: Path, tmp_path: Path
) -> None:
    later = write_chats(tmp_path / "later.jsonl", chats(2))
    later.write_bytes(POINTER)
    sources = [str(data), str(later)] if key == "data.train" else [str(later)]
    config = make_config(tmp_path / "run", model, data, **{key.replace(".", "__"): sources})
    with pytest.raises(DataError, match=r"later\.jsonl: is a Git LFS pointer"):
        run_training(config)
    later.unlink()
    with pytest.raises(DataError, match=r"later\.jsonl"):
        run_training(config)


def test_unknown_keys_are_reported(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    change_config(other, logit_scale=0.5)
    words = f"{other / 'config.json'}: this key is not known: logit_scale"
    config = make_config(tmp_path / "run", other, data, train__max_steps=1)
    dry_run_training(config)
    assert capsys.readouterr().out.count(words) == 1
    run_training(config)
    assert capsys.readouterr().out.count(words) == 1
    report = export_model(other, tmp_path / "out")
    assert any("not known: logit_scale" in warning for warning in report.warnings)
    checks = list(verify_model(tmp_path / "out", VerifyOptions(transformers=False)))
    assert [check.status for check in checks if "not known: logit_scale" in check.text] == ["note"]


def test_training_starts_from_the_paddle_layout(model: Path, data: Path, tmp_path: Path) -> None:
    """The run and its export are those of the same model in the Hub's layout."""
    convert_model(model, tmp_path / "paddle", "paddle")
    checks = list(verify_model(tmp_path / "paddle", VerifyOptions(base=model)))
    assert not [check for check in checks if check.status == "FAIL"], checks
    assert any("does not read the paddle layout" in check.text for check in checks)
    exports = []
    for name, base in (("hub", model), ("paddle", tmp_path / "paddle")):
        run_training(make_config(tmp_path / f"run-{name}", base, data, train__max_steps=2))
        for layout in ("hub", "paddle"):
            export_model(tmp_path / f"run-{name}", tmp_path / f"{name}-{layout}", layout=layout)
            exports.append(tmp_path / f"{name}-{layout}")
    checkpoint = json.loads(next((tmp_path / "run-paddle").glob("*/config.json")).read_text())
    assert "torch_dtype" in checkpoint and "dtype" not in checkpoint
    weights = [file.read_bytes() for path in exports for file in path.glob("*.safetensors")]
    assert weights[0] == weights[2] and weights[1] == weights[3] and weights[0] != weights[1]


def test_an_untied_model_stays_untied(model: Path, data: Path, tmp_path: Path) -> None:
    untied = shutil.copytree(model, tmp_path / "model")
    _second_output_matrix(untied)
    change_config(untied, tie_word_embeddings=False)
    run_training(make_config(tmp_path / "run", untied, data, train__max_steps=1))
    export_model(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    before, after = (read_index(directory)["lm_head.weight"] for directory in (untied, tmp_path / "out"))
    assert not np.array_equal(read_array(before), read_array(after)), "it is trained"
    assert all(
        check.status != "FAIL" for check in verify_model(tmp_path / "out", VerifyOptions(transformers=False))
    )
