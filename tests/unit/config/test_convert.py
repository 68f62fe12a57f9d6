"""Configurations of ERNIEKit, LLaMA-Factory and ms-swift become configurations that load, with a report."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from erniekit.config.convert.convert import convert, convert_file
from erniekit.config.convert.write import config_text, report_lines
from erniekit.config.hints import KNOWN_KEYS
from erniekit.config.others import erniekit
from erniekit.config.others.llamafactory import LLAMAFACTORY
from erniekit.config.others.swift import SWIFT
from erniekit.config.others.table import Dropped, Key, NotNeeded
from erniekit.errors import ConfigError
from tests.unit.config.conversions import DATA, advice, converted, loaded

ROOT = Path(__file__).resolve().parents[3]
OLD = Path(__file__).parent / "other_trainers"
FILES = [*sorted(OLD.glob("*.yaml")), *sorted((ROOT / "examples" / "migration").glob("*.yaml"))]
TABLES = {
    **{"text": erniekit.SFT, "vl": erniekit.VL, "dpo": erniekit.DPO, "pretrain": erniekit.PRETRAIN},
    **{"llamafactory": LLAMAFACTORY, "swift": SWIFT},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_of_a_file_is_reported_once_and_the_result_loads(path: Path, tmp_path: Path) -> None:
    conversion = convert_file(path)
    loaded(conversion, tmp_path)
    mapped = {key for setting in conversion.mapped for key in setting.old}
    others = Counter(key for item in conversion.unconverted for key in item.old)
    assert len(mapped) + len(others) == conversion.keys
    assert not mapped & others.keys()
    assert set(others.values()) <= {1}


@pytest.mark.parametrize("path", sorted(OLD.glob("*.yaml")), ids=lambda path: path.stem)
def test_written_files(path: Path) -> None:
    text = config_text(convert_file(path), path.name)
    assert text == (OLD / "converted" / path.name).read_text(encoding="utf-8")


def test_files_of_the_examples_are_recognized() -> None:
    names = {path.stem: convert_file(path).trainer for path in FILES if path.parent.name == "migration"}
    assert names == {"erniekit": "ERNIEKit", "llamafactory": "LLaMA-Factory", "swift": "ms-swift"}


def test_the_report_has_its_groups() -> None:
    report = "\n".join(report_lines(convert_file(OLD / "erniekit_vl_full.yaml")))
    mapped, rest = report.split("\n\nNot needed here:\n")
    not_needed, rest = rest.split("\n\nNo equivalent:\n")
    no_equivalent, checks = rest.split("\n\nTo check:\n")
    assert mapped.startswith("ERNIEKit: 54 keys\n\nMapped:\n")
    assert "  learning_rate -> optimizer.learning_rate = 1e-5\n" in mapped
    assert "  weight_decay -> optimizer.weight_decay = 0.1 (the default)\n" in mapped
    assert "  moe_group, tensor_parallel_degree -> parallel.expert = 4\n" in mapped
    assert "  scale_loss, amp_master_grad: " in not_needed
    assert "  offload_optim: the optimizer stays on the GPU" in no_equivalent
    assert "  train.rows_per_step: 1 x 4 accumulated x 1 data-parallel" in checks


@pytest.mark.parametrize("name", TABLES)
def test_tables_name_our_keys(name: str) -> None:
    for key, rule in TABLES[name].rules.items():
        if isinstance(rule, Key):
            assert rule.name == "task" or rule.name in KNOWN_KEYS, key
        else:
            assert isinstance(rule, Dropped)
            text = rule.outcome.why if isinstance(rule.outcome, NotNeeded) else rule.outcome.advice
            assert not text.endswith("."), key
    assert TABLES[name].defaults.keys() <= KNOWN_KEYS.keys()


@pytest.mark.parametrize("value", ["x", "", 0, -1, 1e9, 0.5, True, None, ["a"], {"a": 1}], ids=repr)
@pytest.mark.parametrize("name", ["vl", "dpo", "llamafactory", "swift"])
def test_any_value_of_any_key_is_converted_or_reported(name: str, value: Any, tmp_path: Path) -> None:
    """The same value for all keys at once: nothing raises, and the result loads."""
    trainer = TABLES[name]
    essential = {key for key, rule in trainer.rules.items() if isinstance(rule, Key) and rule.essential}
    keys = dict.fromkeys(trainer.rules.keys() - essential, value)
    conversion = convert(keys, trainer)
    loaded(conversion, tmp_path)
    reported = {key for setting in conversion.mapped for key in setting.old}
    reported |= {key for item in conversion.unconverted for key in item.old}
    assert reported == keys.keys()


def test_missing_keys_get_the_defaults_of_the_old_trainer(tmp_path: Path) -> None:
    config = converted({"train_dataset_path": "a.jsonl"}, tmp_path)
    assert config.model.path == "MODEL"
    assert config.train.output_dir == "./output"
    assert (config.lora.enabled, config.train.epochs, config.data.max_length) == (True, 3, 4096)
    assert (config.optimizer.learning_rate, config.schedule.type) == (5e-5, "linear")
    text = (tmp_path / "new.yaml").read_text()
    assert "path: MODEL  # check: the checkpoint to train\n" in text
    assert "type: linear  # the default of ERNIEKit\n" in text


@pytest.mark.parametrize(
    ("degrees", "gpus", "rows"),
    [
        ({}, None, 6),
        ({}, 8, 48),
        ({"tensor_parallel_degree": 2, "pipeline_parallel_degree": 2}, None, 6),
        ({"tensor_parallel_degree": 2, "pipeline_parallel_degree": 2}, 8, 12),
        ({"tensor_parallel_degree": 2, "sharding_parallel_degree": 4}, None, 24),
        ({"sep_parallel_degree": 4}, 8, 12),
    ],
)
def test_rows_per_step_counts_all_data_parallel_gpus(
    degrees: dict[str, Any], gpus: int | None, rows: int, tmp_path: Path
) -> None:
    values = {**DATA, "batch_size": 2, "gradient_accumulation_steps": "3", **degrees}
    assert converted(values, tmp_path, gpus).train.rows_per_step == rows


def test_gpus_that_the_degrees_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gpus 6 is not a multiple of 4"):
        converted({**DATA, "tensor_parallel_degree": 4}, tmp_path, 6)


def test_batches_without_packing_are_to_be_checked() -> None:
    values = {"stage": "sft", "dataset": "a", "cutoff_len": 512, "per_device_train_batch_size": 4}
    (rows,) = (s for s in convert(values, LLAMAFACTORY).written if s.key == "train.rows_per_step")
    assert rows.value == 4
    assert rows.comment.startswith("check: the old run had 4 samples per step, unpacked")


def test_sources_with_probabilities_and_formats(tmp_path: Path) -> None:
    values = {
        **DATA,
        "train_dataset_path": "a.jsonl, b.json,owner/name, c$x.jsonl",
        "train_dataset_prob": "0.5,0.3,0.2,0",
        "train_dataset_type": "erniekit,alpaca,chatml,alpaca",
    }
    data = converted(values, tmp_path).data
    assert [(source.path, source.weight, source.format) for source in data.train] == [
        ("a.jsonl", 0.5, "erniekit"),
        ("b.json", 0.3, "alpaca"),
        ("hub:owner/name", 0.2, "messages"),
    ]
    assert data.mix == "weighted"


def test_paths_keep_their_dollar_signs(tmp_path: Path) -> None:
    assert (
        converted({**DATA, "train_dataset_path": "$a/${b}.jsonl"}, tmp_path).data.train[0].path
        == "$a/${b}.jsonl"
    )


def test_texts_beside_chats_with_media_get_the_weights_of_the_ratio(tmp_path: Path) -> None:
    values = {
        **DATA,
        "stage": "VL-SFT",
        "train_dataset_path": "a.jsonl,b.jsonl",
        "train_dataset_prob": "1,3",
        "text_dataset_path": "t.jsonl",
        "modality_ratio": "[2,1]",
    }
    data = converted(values, tmp_path).data
    assert [(source.path, source.weight) for source in data.train] == [
        ("a.jsonl", 0.5),
        ("b.jsonl", 1.5),
        ("t.jsonl", 1.0),
    ]
    assert data.mix == "weighted"


@pytest.mark.parametrize(
    ("strategy", "mix", "stop"),
    [
        ("random", "weighted", "first_exhausted"),
        ("concat", "concat", "first_exhausted"),
        ("interleave_under", "interleave", "first_exhausted"),
        ("interleave_over", "interleave", "all_exhausted"),
    ],
)
def test_mix_strategies(strategy: str, mix: str, stop: str, tmp_path: Path) -> None:
    data = converted({**DATA, "train_dataset_path": "a,b", "mix_strategy": strategy}, tmp_path).data
    assert (data.mix, data.stop) == (mix, stop)


def test_probabilities_that_do_not_fit_the_paths(tmp_path: Path) -> None:
    values = {**DATA, "train_dataset_path": "a,b", "train_dataset_prob": "1,2,3"}
    conversion = convert(values, erniekit.SFT)
    assert [source.weight for source in loaded(conversion, tmp_path).data.train] == [1, 1]
    assert advice(conversion)["train_dataset_prob"].startswith("not one probability for each of 2 paths")
    conversion = convert({**values, "train_dataset_prob": "1,-2"}, erniekit.SFT)
    assert advice(conversion)["train_dataset_path"] == (
        "data.train: data.train[1].weight must be a number above 0, got -2.0"
    )


@pytest.mark.parametrize(
    ("values", "alpha"),
    [
        ({"lora_rank": 16}, None),
        ({"lora_rank": 16, "lora_alpha": 8}, 8),
        ({"lora_rank": 16, "lora_alpha": -1}, None),
        ({"lora_rank": 16, "lora_alpha": 8, "rslora": True}, 32),
        ({"lora_rank": 16, "rslora": True}, 16),
    ],
)
def test_the_scale_of_adapters(values: dict[str, Any], alpha: float | None, tmp_path: Path) -> None:
    lora = converted({**DATA, "fine_tuning": "LoRA", **values}, tmp_path).lora
    assert (lora.enabled, lora.rank, lora.alpha) == (True, 16, alpha)


@pytest.mark.parametrize(
    ("compute_type", "quantize"),
    [("bf16", "none"), ("wint8", "int8"), ("wint4/8", "int4"), ("nf4", "int4"), ("fp8", "none")],
)
def test_a_quantized_base(compute_type: str, quantize: str, tmp_path: Path) -> None:
    assert converted({**DATA, "compute_type": compute_type}, tmp_path).model.quantize == quantize
    full = {**DATA, "compute_type": compute_type, "fine_tuning": "Full"}
    assert converted(full, tmp_path).model.quantize == "none"


def test_full_fine_tuning_has_no_adapters(tmp_path: Path) -> None:
    values = {
        **DATA,
        "fine_tuning": "Full",
        "lora_rank": 16,
        "freeze_config": "freeze_vision, freeze_aligner",
    }
    config = converted(values, tmp_path)
    assert (config.lora.enabled, config.lora.rank) == (False, 8)
    assert config.model.freeze == ["vision", "resampler"]


def test_freezing_is_not_needed_with_lora(tmp_path: Path) -> None:
    assert not converted(
        {**DATA, "fine_tuning": "LoRA", "freeze_config": "freeze_vision"}, tmp_path
    ).model.freeze


@pytest.mark.parametrize(
    ("sharding", "level"),
    [("stage1", "optimizer"), ("stage2 offload", "gradients"), ("stage3", "parameters")],
)
def test_sharding_stages(sharding: str, level: str, tmp_path: Path) -> None:
    config = converted({**DATA, "sharding": sharding}, tmp_path)
    assert config.parallel.shard == level
    assert config.train.recompute == ("layers" if level == "parameters" else "none")


def test_settings_that_contradict_each_other_are_left_out(tmp_path: Path) -> None:
    values = {**DATA, "max_steps": 10, "warmup_steps": 100, "moe_gate_lr_ratio": 0.1, "weight_decay": -1}
    conversion = convert(values, erniekit.SFT)
    config = loaded(conversion, tmp_path)
    assert (config.schedule.warmup_steps, config.optimizer.router_learning_rate_ratio) == (0, 1)
    found = advice(conversion)
    assert found["warmup_steps"].startswith(
        "schedule.warmup_steps: 100 warm-up steps are more than train.max_steps"
    )
    assert found["moe_gate_lr_ratio"].startswith(
        "optimizer.router_learning_rate_ratio: has no effect while LoRA"
    )
    assert found["weight_decay"] == "optimizer.weight_decay: must be a number of at least 0, got -1.0"
    assert "#   schedule.warmup_steps: 100" not in (tmp_path / "new.yaml").read_text()


def test_unknown_keys_and_wrong_types_are_reported() -> None:
    conversion = convert({**DATA, "colour": "red", "max_seq_len": "long"}, erniekit.SFT)
    found = advice(conversion)
    assert found["colour"] == "this command does not know the key; look up in ERNIEKit what it does"
    assert found["max_seq_len"] == '"long" must be a number'


def test_losses_without_an_equivalent(tmp_path: Path) -> None:
    values = {**DATA, "stage": "DPO", "loss_type": "nca_pair", "reference_free": True, "pref_loss_ratio": 1.0}
    conversion = convert(values, erniekit.DPO)
    assert loaded(conversion, tmp_path).dpo.loss == "sigmoid"
    assert advice(conversion).keys() == {"loss_type", "reference_free"}
    assert converted({**DATA, "stage": "DPO", "loss_type": "or"}, tmp_path).dpo.loss == "orpo"
