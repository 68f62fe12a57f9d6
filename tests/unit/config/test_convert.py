"""Configurations of ERNIEKit, LLaMA-Factory and ms-swift become configurations that load, with a report."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import Config, load_config
from erniekit.config.convert.convert import Conversion, convert, convert_file
from erniekit.config.convert.write import config_text, report_lines
from erniekit.config.hints import KNOWN_KEYS
from erniekit.config.others import erniekit
from erniekit.config.others.llamafactory import LLAMAFACTORY
from erniekit.config.others.recognize import recognize
from erniekit.config.others.swift import SWIFT
from erniekit.config.others.table import Dropped, Key, NoEquivalent, NotNeeded
from erniekit.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
OLD = Path(__file__).parent / "other_trainers"
FILES = [*sorted(OLD.glob("*.yaml")), *sorted((ROOT / "examples" / "migration").glob("*.yaml"))]
TABLES = {
    **{"text": erniekit.SFT, "vl": erniekit.VL, "dpo": erniekit.DPO, "pretrain": erniekit.PRETRAIN},
    **{"llamafactory": LLAMAFACTORY, "swift": SWIFT},
}


def loaded(conversion: Conversion, directory: Path) -> Config:
    """The configuration that the written file holds."""
    path = directory / "new.yaml"
    path.write_text(config_text(conversion, "old.yaml"), encoding="utf-8")
    return load_config(path)


def converted(values: dict[str, Any], directory: Path, gpus: int | None = None) -> Config:
    """The configuration from values of ERNIEKit."""
    found = convert(values, erniekit.variant(values), gpus)
    return loaded(found, directory)


def advice(conversion: Conversion) -> dict[str, str]:
    """What to do, by old key."""
    return {
        key: item.outcome.advice
        for item in conversion.unconverted
        for key in item.old
        if isinstance(item.outcome, NoEquivalent)
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


DATA = {"stage": "SFT", "model_name_or_path": "m", "train_dataset_path": "a.jsonl"}


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


def test_datasets_of_llamafactory_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    described = {
        "chats": {
            "file_name": "chats.json",
            "formatting": "sharegpt",
            "columns": {"messages": "turns", "images": "images"},
        },
        "faq": {"file_name": "faq.json", "columns": {"prompt": "q", "response": "a"}},
        "hub": {"hf_hub_url": "owner/name"},
        "broken": 3,
    }
    (tmp_path / "lists" / "dataset_info.json").write_text(json.dumps(described))
    values = {"stage": "sft", "dataset": "chats,faq,hub,broken", "dataset_dir": "lists"}
    conversion = convert(values, LLAMAFACTORY)
    sources = loaded(conversion, tmp_path).data.train
    assert [(source.path, source.format, source.columns) for source in sources] == [
        ("lists/chats.json", "sharegpt", {"conversations": "turns"}),
        ("lists/faq.json", "alpaca", {"instruction": "q", "output": "a"}),
        ("hub:owner/name", "alpaca", None),
        ("lists/broken.json", None, None),
    ]
    (source,) = (setting for setting in conversion.written if setting.key == "data.train")
    assert source.comment == "check: no dataset_info.json says where broken is"


SCRIPT = """\
# 2 GPUs
NPROC_PER_NODE=2 \\
CUDA_VISIBLE_DEVICES=0,1 swift rlhf --model m \\
    --rlhf_type simpo \\
    --dataset 'chats.jsonl#500' \\
              owner/name#20 \\
    --gradient_accumulation_steps $(expr 16 / $nproc) \\
    --learning_rate=1e-5 --streaming false \\
    --packing  # as before
echo 'done
swift sft --model other
"""


def test_a_script_of_swift(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(SCRIPT)
    conversion = convert_file(path)
    config = loaded(conversion, tmp_path)
    assert (config.task, config.dpo.loss, config.dpo.simpo_gamma, config.dpo.sft_weight) == (
        "dpo",
        "simpo",
        1,
        1,
    )
    assert (config.model.path, config.optimizer.learning_rate, config.train.rows_per_step) == ("m", 1e-5, 16)
    assert [source.path for source in config.data.train] == ["chats.jsonl", "hub:owner/name"]
    (source,) = (setting for setting in conversion.written if setting.key == "data.train")
    assert source.comment.startswith("check: whole sources")
    assert advice(conversion) == {"gradient_accumulation_steps": '"$(expr 16 / $nproc)" must be a number'}
    path.write_text(
        "export NPROC_PER_NODE=8\nNPROC_PER_NODE=4 swift sft --gradient_accumulation_steps 3 --packing true"
    )
    assert loaded(convert_file(path), tmp_path).train.rows_per_step == 12
    assert loaded(convert_file(path, gpus=8), tmp_path).train.rows_per_step == 24


def test_the_keys_name_the_trainer() -> None:
    def name(values: dict[str, Any]) -> str | None:
        found = recognize(values, ("model", "data", "train"))
        return None if found is None else found.name

    common = {"model_name_or_path": "m", "stage": "sft", "learning_rate": 1}
    assert name({**common, "train_dataset_path": "a", "max_seq_len": 1}) == "ERNIEKit"
    assert name({**common, "finetuning_type": "full", "cutoff_len": 1}) == "LLaMA-Factory"
    assert name({"model": "m", "train_type": "full", "max_length": 1, "learning_rate": 1}) == "ms-swift"
    assert name({"model": {"path": "m"}, **common}) is None
    assert name({"extends": "base.yaml", **common}) is None
    assert name({"learning_rate": 1, "seed": 2}) is None
    assert name({**common, "a": 1, "b": 2, "c": 3, "d": 4}) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("old.yaml", "", "old.yaml: is empty"),
        ("old.yaml", "- a\n", "old.yaml:1: must be a mapping"),
        ("old.yaml", "a: [\n", "old.yaml:2: not valid YAML"),
        ("old.yaml", "seed: 1\nseed: 2\n", "old.yaml:2: seed: is set twice"),
        ("old.json", '{"stage": }', "old.json:1: not valid JSON"),
        ("old.json", "[1]", "old.json: must be a JSON object"),
        ("old.yaml", "model: {path: m}\n", "old.yaml: is already a configuration of erniekit"),
        ("old.yaml", "a: 1\n", "has too few keys of ERNIEKit, LLaMA-Factory, ms-swift to tell .* --from"),
        (
            "old.yaml",
            "model_name_or_path: m\neval_dataset_path: a\nmax_seq_len: 1\n",
            "is a configuration of ERNIEKit without training data",
        ),
        (
            "old.yaml",
            "stage: OCR-VL-SFT\ntrain_dataset_path: a\nmax_seq_len: 1\n",
            "PaddleOCR-VL models are not",
        ),
        (
            "old.yaml",
            "stage: kto\ndataset: a\ncutoff_len: 1\n",
            'old.yaml: stage: "kto" has no equivalent here: ',
        ),
        (
            "old.yaml",
            "rlhf_type: grpo\nmodel: m\nmax_length: 1\n",
            'rlhf_type: "grpo" has no equivalent here: ',
        ),
        (
            "old.yaml",
            "stage: tft\ntrain_dataset_path: a\nmax_seq_len: 1\n",
            "must be one of sft, vl-sft, dpo, pt",
        ),
        (
            "old.sh",
            "swift infer --model m\nmegatron sft --model m\n",
            "old.sh: has no command swift sft, pt, rlhf",
        ),
        (
            "old.yaml",
            "model_name_or_path: m\nport: 8188\nmax_num_seqs: 8\n",
            "is a configuration of ERNIEKit without training data",
        ),
    ],
)
def test_files_that_cannot_be_converted(
    name: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        convert_file(Path(name))


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        convert_file(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        convert_file(tmp_path)
    (tmp_path / "old.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        convert_file(tmp_path / "old.yaml")


def test_json_with_tabs(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{\n\t"stage": "DPO",\n\t"train_dataset_path": "a.jsonl",\n\t"max_seq_len": 64\n}')
    assert loaded(convert_file(path), tmp_path).data.max_length == 64


def test_a_file_with_few_keys_converts_with_the_name_of_the_trainer(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("cutoff_len: 64\n")
    assert loaded(convert_file(path, "llamafactory"), tmp_path).data.max_length == 64


def test_where_the_checkpoint_comes_from(tmp_path: Path) -> None:
    swift = convert({"model": "owner/name", "model_revision": "v1"}, SWIFT)
    model = loaded(swift, tmp_path).model
    assert (model.path, model.revision) == ("owner/name", "v1")
    assert not advice(convert({**DATA, "download_hub": "huggingface"}, erniekit.SFT))
    assert (
        "Hugging Face" in advice(convert({**DATA, "download_hub": "aistudio"}, erniekit.SFT))["download_hub"]
    )
