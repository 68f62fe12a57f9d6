"""Exports of fine-tuned models in real engines, which `make engines` installs."""

import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
import typer

from erniekit.checkpoint.weights import load_model
from erniekit.cli.verify import verify
from erniekit.errors import VerifyError
from erniekit.export.engines.process import LLAMA, VLLM, Environment, find_python
from erniekit.export.export import export_model
from tests.adapters import write_adapter
from tests.models import apply_lora

REFERENCES = Path(__file__).resolve().parents[3] / "shared" / "reference_models"
FAMILIES = {"dense": "dense", "moe": "moe", "vl": "vl_hub"}

pytestmark = pytest.mark.skipif(
    not REFERENCES.is_dir(), reason="no ../shared/reference_models beside this clone"
)


def needs(environment: Environment) -> None:
    try:
        find_python(environment, None)
    except VerifyError as error:
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
