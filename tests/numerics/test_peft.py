"""Adapter files fit PEFT: the names in their configuration, what PEFT computes with them, and what PEFT writes."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.header import read_header
from erniekit.checkpoint.hub import TensorSpec, read_array, read_index, write_safetensors
from erniekit.checkpoint.weights import load_model
from erniekit.errors import CheckpointError
from erniekit.export.adapter import export_adapter
from erniekit.export.export import export_model
from erniekit.export.paddle_adapter import export_paddle_adapter
from erniekit.generation.load import find_model
from erniekit.lora.adapters import PREFIX, read_adapter_index
from tests.adapters import write_adapter
from tests.closeness import assert_close
from tests.models import apply_lora
from tests.numerics.peft_adapters import PROJECTIONS, write

PATTERNS = ["model.layers.1.self_attn.*", "*shared_experts.*", "model.layers.0.mlp.*", "vision_model.*"]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_with_ranks_and_alphas_of_its_own(
    tmp_path: Path, models: dict[str, Path], use_rslora: bool
) -> None:
    """As PEFT writes it: a pattern for some modules, transformers' names, `target_modules` as a regular expression."""
    base = models["dense"]
    rng = np.random.default_rng(2)
    modules = {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.mlp.up_proj": 3}
    linears = load_model(base)
    shapes = {name: p.shape for name, p in linears.named_parameters()}
    arrays = {}
    for module, rank in modules.items():
        out, inner = shapes[f"{module}.weight"]
        arrays[f"{PREFIX}{module}.lora_A.weight"] = rng.normal(0, 1, (rank, inner)).astype(np.float32)
        arrays[f"{PREFIX}{module}.lora_B.weight"] = rng.normal(0, 1, (out, rank)).astype(np.float32)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    write_safetensors(adapter / "adapter_model.safetensors", specs, lambda name: arrays[name])
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 6,
        "target_modules": r"model\.layers\.\d+\.(self_attn\.q_proj|mlp\.up_proj)",
        "rank_pattern": {"up_proj": 3},
        "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 9},
        "use_rslora": use_rslora,
        "init_lora_weights": True,
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    export_model(adapter, tmp_path / "out")
    merged = dict(load_model(tmp_path / "out").named_parameters())
    loaded = find_model(adapter).load()
    for (module, rank), alpha in zip(modules.items(), (6, 9), strict=True):
        scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        down, up = (arrays[f"{PREFIX}{module}.lora_{half}.weight"] for half in "AB")
        wanted = dict(linears.named_parameters())[f"{module}.weight"].numpy() + scaling * up @ down
        found = merged[f"{module}.weight"].numpy()
        assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)
        assert dict(loaded.named_sublayers())[module].scaling == pytest.approx(scaling)


def peft_inputs(base: Path) -> dict[str, Any]:
    """A row of text for transformers, with an image if the model sees."""
    ids = np.arange(5, 45)[None]
    raw = json.loads((base / "config.json").read_text())
    inputs: dict[str, Any] = {"input_ids": ids}
    if "text_config" in raw:
        media, experts = np.zeros_like(ids), np.zeros_like(ids)
        ids[0, 10], ids[0, 15] = raw["image_start_token_id"], raw["image_end_token_id"]
        ids[0, 11:15] = raw["image_token_id"]
        media[0, 11:15] = experts[0, 10:16] = 1
        pixels = np.random.default_rng(0).standard_normal((16, 588)).astype(np.float32)
        inputs |= {"mm_token_type_ids": media, "moe_mm_token_type_ids": experts}
        inputs |= {"pixel_values": pixels, "image_grid_thw": np.array([[1, 4, 4]])}
    return inputs


@pytest.mark.parametrize(
    ("family", "targets", "expert_rank", "exported"),
    [
        ("dense", PROJECTIONS, None, False),
        ("dense", PATTERNS[:1], None, True),
        ("moe", PROJECTIONS, None, False),
        ("moe", PROJECTIONS, 2, False),
        ("moe", PATTERNS[:3], None, False),
        ("moe", PROJECTIONS, 2, True),
        ("moe", ["q_proj", "model.layers.1.mlp.experts.1.up_proj"], None, True),
        ("vl", PATTERNS[:3], None, False),
        ("vl", [*PROJECTIONS, "vision_model.*", "model.resampler_model.*"], 2, True),
    ],
)
def test_peft_computes_what_the_merged_model_does(
    tmp_path: Path,
    models: dict[str, Path],
    family: str,
    targets: list[str],
    expert_rank: int | None,
    exported: bool,
) -> None:
    """From a checkpoint, and with `--layout adapter`, which PEFT loads whole, and whose copy by PEFT reads back."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    import transformers

    classes = {
        "dense": transformers.Ernie4_5ForCausalLM,
        "moe": transformers.Ernie4_5_MoeForCausalLM,
        "vl": transformers.Ernie4_5_VLMoeForConditionalGeneration,
    }
    base, adapter = models[family], tmp_path / "adapter"
    chosen = [t for t in targets if family != "dense" or "shared" not in t]
    write(base, adapter, chosen, expert_rank=expert_rank)
    layout: Any = "transformers" if family == "vl" else "hub"
    export_model(adapter, tmp_path / "merged", layout=layout)
    if exported:
        report = export_adapter(adapter, tmp_path / "peft")
        assert report.adapters == sum(".lora_A." in name for name in read_adapter_index(adapter))
        adapter = tmp_path / "peft"
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(adapter))
        assert len(tokenizer) <= 400
    if family == "vl":
        export_model(base, tmp_path / "base", layout=layout)
        base = tmp_path / "base"
    inputs = {key: torch.tensor(value) for key, value in peft_inputs(base).items()}

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(**inputs).logits

    def load(directory: Path) -> Any:
        return classes[family].from_pretrained(str(directory), dtype=torch.float32)

    before, wanted = logits(load(base)), logits(load(tmp_path / "merged"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(load(base), str(adapter))
    assert not [each for each in caught if "missing adapter keys" in str(each.message)]
    found = logits(model)
    assert float((wanted - before).norm() / before.norm()) > 1e-2
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    if exported:
        model.save_pretrained(str(tmp_path / "saved"))
        export_model(tmp_path / "saved", tmp_path / "again", layout=layout, base=models[family])
        merged, again = read_index(tmp_path / "merged"), read_index(tmp_path / "again")
        assert {name: info.dtype for name, info in again.items()} == {
            name: info.dtype for name, info in merged.items()
        }
        # Its adapters of experts are stacked, with other shapes of the products than those of single experts.
        for name, info in merged.items():
            assert_close(read_array(again[name]), read_array(info), what=name)


@pytest.mark.filterwarnings("ignore:The following")
def test_an_adapter_that_peft_trained_on_stacked_experts(tmp_path: Path, models: dict[str, Path]) -> None:
    """Gate and up share lora_A, which no adapter of ours does; rsLoRA and patterns scale them."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    import transformers

    load = transformers.Ernie4_5_MoeForCausalLM.from_pretrained
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["o_proj"],
        target_parameters=targets,
        rank_pattern={"experts.down_proj": 2},
        alpha_pattern={r"experts\.gate_up_proj": 3, "o_proj": 5},
        use_rslora=True,
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(load(str(models["moe"]), dtype=torch.float32), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    export_model(tmp_path / "adapter", tmp_path / "merged", base=models["moe"])
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids).logits
        found = load(str(tmp_path / "merged"), dtype=torch.float32).eval()(input_ids=ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("family", ["dense", "moe", "vl"])
def test_the_adapter_for_paddle_gives_the_merged_weights(
    tmp_path: Path, models: dict[str, Path], family: str
) -> None:
    """W + alpha / r * lora_A @ lora_B, with one r and one alpha for all layers, as PaddleFormers computes it."""
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    if family == "vl":
        targets += ["model.resampler_model.*", "vision_model.blocks.*"]
    write(models[family], tmp_path / "adapter", targets, expert_rank=2)
    report = export_paddle_adapter(tmp_path / "adapter", tmp_path / "paddle")
    assert report.adapters == sum(".lora_A." in name for name in read_adapter_index(tmp_path / "adapter"))
    export_model(tmp_path / "adapter", tmp_path / "merged", layout="paddle")
    export_model(models[family], tmp_path / "base", layout="paddle")
    config = json.loads((tmp_path / "paddle" / "lora_config.json").read_text())
    base, merged = (read_index(tmp_path / name) for name in ("base", "merged"))
    halves = read_header(tmp_path / "paddle" / "peft_model-00001-of-00001.safetensors")
    index = json.loads((tmp_path / "paddle" / "peft_model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == halves.keys()
    scaling = config["lora_alpha"] / config["r"]
    adapted = 0
    for name, info in base.items():
        module, weight = name.removesuffix(".weight"), read_array(info)
        named = any(re.fullmatch(target, module) for target in config["target_modules"])
        assert named == (f"{module}.lora_A" in halves)
        if named:
            down, up = (read_array(halves[f"{module}.lora_{half}"]) for half in "AB")
            assert down.shape[1] == up.shape[0] == config["r"]
            weight = weight + scaling * down @ up
            adapted += 1
        wanted = read_array(merged[name])
        assert np.linalg.norm(weight - wanted) <= 1e-5 * np.linalg.norm(wanted)
    assert adapted == len(config["target_modules"])


def test_adapters_that_are_not_exported(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds a whole model, not an adapter; choose another --layout"
    ):
        export_adapter(models["moe"], tmp_path / "out")
    model = load_model(models["moe"])
    apply_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=["q_proj"], seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            parameter.stop_gradient = False
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model, base_path=str(models["moe"]), rank=2, alpha=4.0, dropout=0.0)
    with pytest.raises(
        CheckpointError, match=r"mlp\.gate\.weight was trained, too, .* export the merged model"
    ):
        export_adapter(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_peft_says_which_adapters_of_experts_it_leaves_out(tmp_path: Path, models: dict[str, Path]) -> None:
    """Of vision-language models, whose experts it cannot convert."""
    peft = pytest.importorskip("peft")
    import transformers

    config = write(models["vl"], tmp_path / "adapter", ["down_proj"], 0.1)
    assert config["target_parameters"] == ["experts.gate_up_proj", "experts.down_proj"]
    export_model(models["vl"], tmp_path / "base", layout="transformers")
    model = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(str(tmp_path / "base"))
    with pytest.warns(UserWarning, match=r"missing adapter keys.*text_moe\.experts"):
        peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))


def test_tensors_that_are_trained_whole(tmp_path: Path, models: dict[str, Path]) -> None:
    """What PEFT can load is left to it; what it cannot is listed by transformers' names, so that it stops there."""
    listed = {}
    for family in ("dense", "moe", "vl"):
        model = load_model(models[family])
        apply_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=["q_proj"], seed=0)
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "gate.weight", "gate.weight_1")):
                parameter.stop_gradient = False
        directory = tmp_path / family
        directory.mkdir()
        write_adapter(directory, model, base_path=str(models[family]), rank=2, alpha=4.0, dropout=0.0)
        listed[family] = json.loads((directory / "adapter_config.json").read_text())["modules_to_save"]
        assert "model.embed_tokens.weight" in read_adapter_index(directory)
    assert listed["dense"] is None
    assert listed["moe"] == ["model.layers.1.mlp.gate"]
    assert listed["vl"] == ["embed_tokens", "layers.1.mlp.text_moe.gate", "layers.1.mlp.vision_moe.gate"]
