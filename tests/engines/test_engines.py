"""Exports of fine-tuned models in real engines, which `make engines` installs."""

import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
import typer

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.weights import load_model
from erniekit.cli.verify import verify
from erniekit.config.choices import GgufType
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.load.loader import load_row
from erniekit.errors import EngineError
from erniekit.evaluation.dataset import load_samples
from erniekit.export.calibrated import Calibration, export_calibrated
from erniekit.export.engines.process import LLAMA, LLM_COMPRESSOR, VLLM, Environment, ask, find_python
from erniekit.export.engines.prompts import make_prompts
from erniekit.export.engines.transformers_engine import transformers_answers
from erniekit.export.export import export_model
from erniekit.export.gguf import write_gguf
from erniekit.export.quantized import Quantization, read_quantized_model
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.device_batch import row_inputs
from tests.adapters import write_adapter
from tests.models import apply_lora

REFERENCES = Path(__file__).resolve().parents[3] / "shared" / "reference_models"
CHATS = Path(__file__).resolve().parents[2] / "data" / "samples" / "text.jsonl"
FAMILIES = {"dense": "dense", "moe": "moe", "vl": "vl_hub"}

pytestmark = pytest.mark.skipif(
    not REFERENCES.is_dir(), reason="no ../shared/reference_models beside this clone"
)


def needs(environment: Environment) -> None:
    try:
        find_python(environment, None)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=FAMILIES)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with an adapter on every linear layer, experts included: (adapter, export)."""
    parent = tmp_path_factory.mktemp(request.param)
    base = shutil.copytree(REFERENCES / FAMILIES[request.param], parent / "base")
    model = load_model(base)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    apply_lora(model, rank=8, alpha=16.0, dropout=0.0, targets=targets, seed=0)
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.set_value(paddle.to_tensor(rng.normal(0, 0.05, parameter.shape).astype(np.float32)))
    adapter = parent / "adapter"
    adapter.mkdir()
    write_adapter(adapter, model, base_path=str(base), rank=8, alpha=16.0, dropout=0.0)
    return adapter, export_model(adapter, parent / "export").directory


def test_vllm_answers_as_the_run(tuned: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    needs(VLLM)
    adapter, export = tuned
    verify(export, source=adapter, engine=["transformers", "vllm"], trust_remote_code=True)
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and "vLLM 0.32" in printed


def test_llama_cpp_answers_as_the_run(tuned: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    needs(LLAMA)
    adapter, export = tuned
    if "vl" in export.parent.name:
        pytest.skip("llama.cpp has no ERNIE vision-language models")
    verify(export, source=adapter, engine=["llama.cpp"])
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and "llama.cpp (0.3" in printed


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_rounded_gguf_files_answer_as_transformers(
    tuned: tuple[Path, Path], tmp_path: Path, kind: GgufType
) -> None:
    needs(LLAMA)
    export = tuned[1]
    if "vl" in export.parent.name:
        pytest.skip("llama.cpp has no ERNIE vision-language models")
    config, prompts = ErnieConfig.from_dir(export), make_prompts(make_encoder(export))
    expected = transformers_answers(export, config, prompts, None, 16)
    file = write_gguf(export, tmp_path / "model.gguf", kind).file
    found = ask(
        LLAMA,
        find_python(LLAMA, None),
        file,
        prompts,
        tokenizer=export,
        family=config.family,
        max_new_tokens=16,
    ).answers
    for name, wanted in expected.items():
        # Random weights give nearly equal probabilities: q8_0 may exchange two tokens, so its losses are compared.
        assert kind == "q8_0" or found[name].tokens == wanted.tokens
        assert abs(np.mean(found[name].prompt_logprobs) - np.mean(wanted.prompt_logprobs)) < 0.05


def test_vllm_loads_dense_models_of_4_bits(
    tuned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(VLLM)
    if "dense" not in tuned[1].parent.name:
        pytest.skip("vLLM on CPUs has no quantized experts")
    verify(
        export_model(tuned[0], tmp_path / "int4", quantization=Quantization(4, 32)).directory, engine=["vllm"]
    )
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and "vLLM 0.32" in printed


def chats_logits(model: ErnieModel, export: Path) -> np.ndarray:
    """The logits of all tokens of the chats in data/samples."""
    model.eval()
    samples = load_samples([CHATS], make_encoder(export))
    with paddle.no_grad():
        rows = [row_inputs(load_row([sample.whole], None)) for sample in samples]
        return np.concatenate([model.logits(model(row).hidden).numpy() for row in rows])


def quantized_errors(
    tuned: tuple[Path, Path], parent: Path, calibration: Calibration, quantization: Quantization
) -> tuple[float, float]:
    """How far logits are from those of the plain export, calibrated and rounded to nearest, relative by norms."""
    needs(LLM_COMPRESSOR)
    adapter, export = tuned
    if "vl" in export.parent.name:
        pytest.skip("llm-compressor is for text models")
    found = export_calibrated(adapter, parent / "calibrated", calibration, quantization)
    nearest = export_model(adapter, parent / "nearest", quantization=quantization)
    assert "llm-compressor 0.14" in found.rounding and found.warnings == nearest.warnings
    wanted = chats_logits(load_model(export), export)
    first, second = (
        np.linalg.norm(chats_logits(read_quantized_model(each.directory), export) - wanted)
        / np.linalg.norm(wanted)
        for each in (found, nearest)
    )
    return float(first), float(second)


def test_gptq_is_nearer_than_rounding_to_nearest(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    calibrated, nearest = quantized_errors(
        tuned, tmp_path, Calibration("gptq", [str(CHATS)]), Quantization(4, 32)
    )
    assert calibrated < 0.9 * nearest, (calibrated, nearest)


def test_awq_scales_what_norms_write_and_their_readers_read(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    calibrated, nearest = quantized_errors(
        tuned, tmp_path, Calibration("awq", [str(CHATS)], samples=4), Quantization(4, 32)
    )
    assert calibrated < 1.2 * nearest, (calibrated, nearest)
    before, after = (
        {
            name: read_array(info)
            for name, info in read_index(directory).items()
            if not name.endswith("_packed")
        }
        for directory in (tuned[1], tmp_path / "calibrated")
    )
    norms = [name for name in before if name.endswith("layernorm.weight")]
    assert any(np.linalg.norm(after[name] / before[name] - 1) > 0.1 for name in norms)
    # Routers stay float32, and read the same values as the experts.
    for name in (name for name in before if name.endswith("mlp.gate.weight")):
        norm = name.replace("mlp.gate", "post_attention_layernorm")
        assert np.allclose(after[name] * after[norm], before[name] * before[norm], rtol=1e-4, atol=1e-6), name
        assert not np.array_equal(after[name], before[name]), name


def test_the_fault_of_the_cpu_router_shows(
    tuned: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    needs(VLLM)
    if "moe" not in str(tuned[1]):
        pytest.skip("the fault concerns models with experts")
    with pytest.raises(typer.Exit):
        verify(tuned[1], engine=["vllm"], workarounds=False)
    printed = capsys.readouterr().out
    assert "ignores e_score_correction_bias" in printed and "log-probabilities differ by" in printed
