"""Files that are converted: which trainer they are for, scripts, and errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.config.convert.convert import convert, convert_file
from erniekit.config.others import erniekit
from erniekit.config.others.llamafactory import LLAMAFACTORY
from erniekit.config.others.recognize import recognize
from erniekit.config.others.swift import SWIFT
from erniekit.errors import ConfigError
from tests.unit.config.conversions import DATA, advice, loaded


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
