"""GGUF files: tensors and settings as llama.cpp reads them, and what cannot be written."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.cli.convert import convert
from erniekit.cli.export import export
from erniekit.config.choices import GgufType
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.checks import check_directory
from erniekit.export.export import export_model
from erniekit.export.gguf import convert_to_gguf, export_to_gguf, write_gguf
from erniekit.local_files import missing_model
from erniekit.models.config import ErnieConfig
from tests.unit.export.conftest import Copy, write_state
from tests.unit.export.weights import change, train_adapter

gguf = pytest.importorskip("gguf")
TOLERANCE = {"f32": 0.0, "f16": 1e-3, "q8_0": 1e-2}


def tensors(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> (type, values) of a file, the last axis the fastest, as in the Hub's tensors."""
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = (tensor.tensor_type.name, values.reshape(tensor.shape.tolist()[::-1]))
    return found


def settings(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def hub_values(directory: Path) -> dict[str, np.ndarray]:
    return {name: read_array(info) for name, info in read_index(directory).items()}


@pytest.mark.parametrize("family", ["dense", "moe"])
@pytest.mark.parametrize("kind", TOLERANCE)
def test_tensors(models: dict[str, Path], tmp_path: Path, family: str, kind: GgufType) -> None:
    report = write_gguf(models[family], tmp_path / "model.gguf", kind)
    found, hub = tensors(report.file), hub_values(models[family])
    layer, block = "model.layers.1", "blk.1"
    expected = {
        "token_embd.weight": hub["model.embed_tokens.weight"],
        "output_norm.weight": hub["model.norm.weight"],
        f"{block}.attn_norm.weight": hub[f"{layer}.input_layernorm.weight"],
        f"{block}.ffn_norm.weight": hub[f"{layer}.post_attention_layernorm.weight"],
        f"{block}.attn_output.weight": hub[f"{layer}.self_attn.o_proj.weight"],
        **{f"{block}.attn_{x}.weight": hub[f"{layer}.self_attn.{x}_proj.weight"] for x in "qkv"},
    }
    exact = {"output_norm.weight", f"{block}.attn_norm.weight", f"{block}.ffn_norm.weight"}
    for x in ("gate", "up", "down"):
        if family == "dense":
            expected[f"{block}.ffn_{x}.weight"] = hub[f"{layer}.mlp.{x}_proj.weight"]
            continue
        names = [f"{layer}.mlp.experts.{e}.{x}_proj.weight" for e in range(8)]
        expected[f"{block}.ffn_{x}_exps.weight"] = np.stack([hub[name] for name in names])
        expected[f"{block}.ffn_{x}_shexp.weight"] = hub[f"{layer}.mlp.shared_experts.{x}_proj.weight"]
        expected[f"blk.0.ffn_{x}.weight"] = hub[f"model.layers.0.mlp.{x}_proj.weight"]
    if family == "moe":
        expected[f"{block}.ffn_gate_inp.weight"] = hub[f"{layer}.mlp.gate.weight"]
        expected[f"{block}.exp_probs_b.bias"] = hub[f"{layer}.mlp.moe_statics.e_score_correction_bias"][0]
        exact |= {f"{block}.ffn_gate_inp.weight", f"{block}.exp_probs_b.bias"}
    for name, values in expected.items():
        chosen, written = found[name]
        assert written.shape == values.shape
        assert chosen == ("F32" if name in exact else kind.upper())
        error = np.linalg.norm(written - values) / max(np.linalg.norm(values), 1e-30)
        assert error <= (0 if name in exact else TOLERANCE[kind])
    assert "output.weight" not in found  # tied
    assert sum(report.types.values()) == len(found)


def test_settings(models: dict[str, Path], tmp_path: Path) -> None:
    file = write_gguf(models["moe"], tmp_path / "model.gguf", "q8_0").file
    found, config = settings(file), ErnieConfig.from_dir(models["moe"])
    assert config.moe is not None
    assert found["general.architecture"] == "ernie4_5-moe" and found["general.file_type"] == 7
    own = {name.removeprefix("ernie4_5-moe."): value for name, value in found.items()}
    width = config.moe.intermediate_sizes[0]
    assert own["expert_shared_feed_forward_length"] == width * config.moe.num_shared_experts
    assert own["expert_feed_forward_length"] == width and own["leading_dense_block_count"] == 1
    assert (own["expert_count"], own["expert_used_count"]) == (config.moe.num_experts, config.moe.top_k)
    assert own["interleave_moe_layer_step"] == 1 and own["block_count"] == 2
    assert own["attention.key_length"] == own["rope.dimension_count"] == config.head_dim
    assert (
        own["rope.freq_base"] == config.rope_theta and own["context_length"] == config.max_position_embeddings
    )
    tokenizer = json.loads((models["moe"] / "tokenizer.json").read_text())
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == config.vocab_size
    vocabulary = {token: i for token, i in tokenizer["model"]["vocab"].items() if not token.startswith("<")}
    assert all(tokens[i] == token for token, i in vocabulary.items())
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert types[added["<|end_of_sentence|>"]] == gguf.TokenType.CONTROL
    assert found["tokenizer.ggml.eot_token_id"] == added["<|end_of_sentence|>"]
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == (models["moe"] / "chat_template.jinja").read_text()


def test_a_head_that_is_not_tied(copy: Copy, tmp_path: Path) -> None:
    directory = copy("dense", tie_word_embeddings=False)
    change(
        directory, lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"] * 2})
    )
    found = tensors(write_gguf(directory, tmp_path / "model.gguf", "f32").file)
    assert np.array_equal(found["output.weight"][1], 2 * found["token_embd.weight"][1])


def test_rows_that_blocks_do_not_divide_are_f16(copy: Copy, tmp_path: Path) -> None:
    directory = copy("dense", intermediate_size=40)

    def narrow(arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if ".mlp." in name:
                arrays[name] = array[:, :40] if "down_proj" in name else array[:40]

    change(directory, narrow)
    found = tensors(write_gguf(directory, tmp_path / "model.gguf", "q8_0").file)
    assert found["blk.0.ffn_down.weight"][0] == "F16" and found["blk.0.ffn_up.weight"][0] == "Q8_0"


def test_what_llama_cpp_cannot_compute(models: dict[str, Path], copy: Copy, tmp_path: Path) -> None:
    def refused(directory: Path, kind: GgufType = "f16") -> str:
        with pytest.raises(CheckpointError) as error:
            convert_to_gguf(directory, tmp_path / "out", kind)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "no ERNIE vision-language models" in refused(models["vl"])
    sparse = copy("moe", "gap", moe_layer_start_index=0, moe_layer_end_index=0)

    def exchange(arrays: dict[str, np.ndarray]) -> None:
        moved = {name: arrays.pop(name) for name in list(arrays) if ".mlp." in name}
        for name, array in moved.items():
            arrays[name.replace(".0.mlp", ".x.mlp").replace(".1.mlp", ".0.mlp").replace(".x.", ".1.")] = array

    change(sparse, exchange)
    assert "experts in every layer" in refused(sparse)
    large = copy("dense", "large")
    embedding = "model.embed_tokens.weight"
    change(large, lambda arrays: arrays.update({embedding: arrays[embedding] * 1e7}))
    assert "model.embed_tokens.weight has values beyond 65,504" in refused(large)
    plain = copy("dense", "plain")
    (plain / "tokenizer.model").unlink()
    assert "no tokenizer.model" in refused(plain)


def test_without_the_package(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"\.\[gguf\]"):
        write_gguf(models["dense"], tmp_path / "model.gguf", "f16")


def test_the_commands(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter is merged; converting its export gives the same file."""
    train_adapter(models["moe"], tmp_path / "adapter", ["q_proj", "down_proj"])
    export(tmp_path / "adapter", tmp_path / "out", layout="gguf", gguf_type="f32")
    assert "adapters merged" in capsys.readouterr().out
    export_model(tmp_path / "adapter", tmp_path / "moe")
    convert(tmp_path / "moe", tmp_path / "converted", to="gguf", gguf_type="f32")
    assert "model-f32.gguf: 25 tensors (25 F32)" in capsys.readouterr().out
    files = [tmp_path / name / "model-f32.gguf" for name in ("out", "converted")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "converted", "moe", "out"]
    with pytest.raises(CheckpointError, match="holds an adapter"):
        convert_to_gguf(tmp_path / "adapter", tmp_path / "again", "f16")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        convert_to_gguf(tmp_path / "moe", tmp_path / "out", "f16")
    with pytest.raises(ConfigError, match="--gguf-type"):
        export(tmp_path / "moe", tmp_path / "again", layout="gguf", dtype="bfloat16")
    # Options of other layouts are not ignored.
    for options, words in (
        ({"layout": "gguf", "max_shard_size": "5GB"}, "--max-shard-size does not apply to --layout gguf"),
        (
            {"layout": "adapter", "max_shard_size": "5GB"},
            "--max-shard-size does not apply to --layout adapter",
        ),
        ({"layout": "hub", "gguf_type": "q8_0"}, "--gguf-type needs --layout gguf"),
    ):
        with pytest.raises(ConfigError, match=words):
            export(tmp_path / "moe", tmp_path / "again", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--gguf-type needs --to gguf"):
        convert(tmp_path / "moe", tmp_path / "again", to="hub", gguf_type="f16")
    with pytest.raises(ConfigError, match="--max-shard-size does not apply to --to gguf"):
        convert(tmp_path / "moe", tmp_path / "again", to="gguf", max_shard_size="5GB")
    assert not (tmp_path / "again").exists()


def test_a_checkpoint_gets_the_chat_template_of_training(
    models: dict[str, Path], copy: Copy, tmp_path: Path
) -> None:
    checkpoint = copy("dense", "checkpoint")
    write_state(checkpoint, str(models["dense"]), template="ernie_thinking")
    export_to_gguf(checkpoint, tmp_path / "exported", "f32")
    convert_to_gguf(checkpoint, tmp_path / "converted", "f32")
    convert_to_gguf(models["dense"], tmp_path / "base", "f32")
    exported, converted, base = (
        settings(tmp_path / name / "model-f32.gguf")["tokenizer.chat_template"]
        for name in ("exported", "converted", "base")
    )
    assert exported == converted != base
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "checkpoint", "converted", "exported"]


def test_the_name_of_a_model_of_the_hubs_cache(models: dict[str, Path], tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--baidu--ERNIE-4.5-0.3B-PT" / "snapshots" / "c0ffee"
    blobs = tmp_path / "hub" / "models--baidu--ERNIE-4.5-0.3B-PT" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(models["dense"], blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    export_to_gguf(snapshot, tmp_path / "out", "f32")
    assert settings(tmp_path / "out" / "model-f32.gguf")["general.name"] == "ERNIE-4.5-0.3B-PT"
    convert_to_gguf(models["dense"], tmp_path / "other", "f32")
    assert settings(tmp_path / "other" / "model-f32.gguf")["general.name"] == "dense"


def test_a_gguf_directory_is_no_model_to_verify(tmp_path: Path) -> None:
    file = tmp_path / "model-f16.gguf"
    file.write_bytes(b"GGUF")
    (check,) = check_directory(tmp_path)
    assert check.status == "FAIL" and "name the model that it was written from" in check.text
    assert "is GGUF for llama.cpp" in missing_model(file)
    with pytest.raises(CheckpointError, match="name the model that it was written from"):
        export_model(tmp_path, tmp_path / "out")


def test_an_adapter_for_paddle_is_no_model_to_verify(tmp_path: Path) -> None:
    (tmp_path / "lora_config.json").write_text("{}")
    (check,) = check_directory(tmp_path)
    assert check.status == "FAIL" and "holds an adapter for Baidu's tools" in check.text
    with pytest.raises(CheckpointError, match="name the run that it was exported from"):
        export_model(tmp_path, tmp_path / "out")
