"""Model directories that are not what they seem: pointers, other layouts, unfinished downloads, two output matrices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint import element_types, hub
from erniekit.checkpoint.model_files import (
    EMBEDDING,
    OUTPUT,
    open_model,
    refuse_undownloaded,
    remote_code_note,
)
from erniekit.errors import CheckpointError
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, parameter_specs
from tests.model_configs import DENSE, FLAT, MOE

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
Arrays = dict[str, np.ndarray]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model of random values; `change` edits its arrays, keyword arguments its config.json."""

    def make(
        raw: dict[str, Any] = DENSE,
        change: Callable[[Arrays], None] | None = None,
        name: str = "model",
        shard_bytes: int = hub.DEFAULT_SHARD_BYTES,
        **config: Any,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        rng = np.random.default_rng(0)
        arrays = {
            spec.name: rng.standard_normal(spec.shape).astype(np.float32)
            for spec in parameter_specs(ErnieConfig.from_json(raw))
        }
        if change is not None:
            change(arrays)
        (directory / "config.json").write_text(json.dumps(raw | {"torch_dtype": "float32"} | config))
        (directory / "tokenizer.json").write_text("{}")
        specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
        hub.write_shards(directory, specs, arrays.__getitem__, shard_bytes)
        return directory

    return make


def with_output(offset: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[OUTPUT] = arrays[EMBEDDING].copy()
        arrays[OUTPUT][-1, -1] += offset

    return change


@pytest.mark.parametrize("raw", [DENSE, MOE, FLAT])
def test_a_good_directory_is_opened(write: Write, raw: dict[str, Any]) -> None:
    config, found = open_model(write(raw))
    assert config == ErnieConfig.from_json(raw)
    assert set(found) == {spec.name for spec in parameter_specs(config)}


@pytest.mark.parametrize("tied", [{"tie_word_embeddings": True}, {}, {"tie_word_embeddings": None}])
def test_an_output_matrix_of_its_own_beside_a_tied_embedding(write: Write, tied: dict[str, Any]) -> None:
    verb = "says" if tied else "means"
    with pytest.raises(CheckpointError) as caught:
        open_model(write(change=with_output(1e-3), name="other", **tied))
    for words in (f"config.json {verb} tie_word_embeddings true", "is not equal to", "model-00001-of-00001"):
        assert words in str(caught.value)
    assert '"tie_word_embeddings": false' in str(caught.value)
    config, found = open_model(write(change=with_output(0.0), name="same", **tied))
    assert OUTPUT in found and config.tie_word_embeddings


def test_untied_as_asked_for(write: Write) -> None:
    directory = write(change=with_output(1.0), tie_word_embeddings=False)
    config, _ = open_model(directory)
    assert not config.tie_word_embeddings
    assert OUTPUT in {spec.name for spec in parameter_specs(config)}
    with pytest.raises(CheckpointError, match=r'lm_head\.weight .*\n.*"tie_word_embeddings": true'):
        open_model(write(name="none", tie_word_embeddings=False))


def test_equal_values_of_another_element_type_are_equal(write: Write, tmp_path: Path) -> None:
    def rounded(arrays: Arrays) -> None:
        narrow = element_types.float32_to_bfloat16(arrays[EMBEDDING])
        arrays[EMBEDDING] = element_types.bfloat16_to_float32(narrow)

    directory = write(change=rounded)
    embedding = hub.read_array(hub.read_index(directory)[EMBEDDING])
    (directory / hub.INDEX_FILE).unlink()
    spec = TensorSpec(OUTPUT, "BF16", embedding.shape)
    head = directory / "model-head.safetensors"
    hub.write_safetensors(head, [spec], lambda _: element_types.float32_to_bfloat16(embedding))
    open_model(directory)
    hub.write_safetensors(head, [spec], lambda _: element_types.float32_to_bfloat16(embedding * 1.5))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \(model-head\.safetensors\) is not equal"):
        open_model(directory)
    smaller = TensorSpec(OUTPUT, "F32", (4, 16))
    hub.write_safetensors(head, [smaller], lambda _: np.zeros((4, 16), np.float32))
    with pytest.raises(CheckpointError, match="is not equal"):
        open_model(directory)


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00001.safetensors", "tokenizer.json", hub.INDEX_FILE]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "Git LFS pointer, not the file: run `git lfs pull` in"),
        (POINTER.replace(b"\n", b"\r\n"), "Git LFS pointer"),
        (POINTER.replace(b"git-lfs", b"hawser"), "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page, not the file"),
    ],
)
def test_files_that_were_not_downloaded(write: Write, name: str, content: bytes, words: str) -> None:
    directory = write()
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_model(directory)
    assert f"{name}: is" in str(caught.value) and words in str(caught.value)


def test_all_pointers_of_a_clone_without_lfs_are_named_at_once(write: Write) -> None:
    directory = write(shard_bytes=2000)
    shards = sorted(directory.glob("model-*"))
    assert len(shards) > 5
    for file in [*shards, directory / "tokenizer.json"]:
        file.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=rf"{len(shards) + 1} files were not downloaded \(.* more\)"):
        open_model(directory)


def test_a_large_file_that_begins_like_a_pointer_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(POINTER + b"x" * 2000)
    refuse_undownloaded(tmp_path)


def test_a_release_in_pickles_is_named(write: Write) -> None:
    old = write(name="old")
    for file in old.glob("model*"):
        file.unlink()
    (old / "model_state.pdparams").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"Paddle's pickles \(model_state\.pdparams\).* such as baidu/"):
        open_model(old)


@pytest.mark.parametrize("edit", [lambda array: array[:-1].copy(), lambda array: array.T.copy()])
def test_one_misshapen_tensor_is_no_other_layout(
    write: Write, edit: Callable[[np.ndarray], np.ndarray]
) -> None:
    def change(arrays: Arrays) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        arrays[name] = edit(arrays[name])

    with pytest.raises(CheckpointError, match="1 tensors have another shape"):
        open_model(write(change=change))


@pytest.mark.parametrize("index", [True, False])
def test_unfinished_downloads_are_named(write: Write, index: bool) -> None:
    directory = write(shard_bytes=4000)
    shards = sorted(directory.glob("model-*"))
    if not index:
        (directory / hub.INDEX_FILE).unlink()
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name}.*download the model again"):
        open_model(directory)
    cache = directory / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "abc.incomplete").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a download has not ended \(abc\.incomplete\)"):
        open_model(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_weights_of_other_formats_are_named(write: Write, name: str) -> None:
    directory = write()
    for file in directory.glob("model*"):
        file.unlink()
    (directory / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"holds no weights .*{name} is of another format"):
        open_model(directory)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\0" * 40, "empty"),
        (b'{"a": ', "config.json:1: not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_config_that_was_cut_off_is_named(write: Write, content: bytes, words: str) -> None:
    directory = write()
    (directory / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_model(directory)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]},
        [],
    ],
)
def test_headers_that_say_nonsense_are_damaged(tmp_path: Path, entry: Any) -> None:
    header = json.dumps({"a": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(CheckpointError, match="damaged"):
        hub.read_header(file)


def test_code_that_a_model_carries_or_names_is_listed(tmp_path: Path) -> None:
    assert remote_code_note(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "here.C"}}))
    assert remote_code_note(tmp_path) is None
    (tmp_path / "b.py").write_text("")
    (tmp_path / "a.py").write_text("")
    assert remote_code_note(tmp_path) == (
        "the model has the Python files a.py, b.py, of the base model: engines run this code with "
        "--trust-remote-code, so read it first"
    )
    other = {"auto_map": {"AutoTokenizer": [None, "them/model--tokenization.T"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(other))
    assert "a.py, b.py and code of other repositories (them/model--tokenization.T), of" in str(
        remote_code_note(tmp_path)
    )
