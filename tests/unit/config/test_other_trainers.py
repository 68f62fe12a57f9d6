"""Files and keys of other trainers in our commands: one line with the conversion, and hints that are right."""

from pathlib import Path

import pytest

from erniekit.config import load_config
from erniekit.config.hints import OTHER_NAMES, meant
from erniekit.config.others.recognize import rule_of
from erniekit.errors import ConfigError

OLD = Path(__file__).parent / "other_trainers"


@pytest.mark.parametrize(
    ("name", "trainer"),
    [("erniekit_vl_full", "ERNIEKit"), ("llamafactory_dpo", "LLaMA-Factory"), ("swift_dpo", "ms-swift")],
)
def test_a_file_of_another_trainer_is_one_line_with_the_conversion(name: str, trainer: str) -> None:
    path = OLD / f"{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["lora=True"])
    assert str(caught.value) == (
        f"{path}: is a configuration of {trainer}, with other keys. "
        f"Convert it: erniekit config convert {path} -o {path.with_name(f'{name}_converted.yaml')}"
    )


def test_a_file_for_another_command_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "run_eval.yaml"
    path.write_text("model_name_or_path: m\neval_dataset_path: a.jsonl\nmax_seq_len: 64\nfine_tuning: LoRA\n")
    with pytest.raises(
        ConfigError, match=r"without training data, for another command\. `erniekit eval`, `serve`"
    ):
        load_config(path)


def test_a_base_of_another_trainer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"extends: {OLD / 'swift_dpo.yaml'}\nmodel: {{path: m}}\n")
    with pytest.raises(ConfigError, match=r"swift_dpo\.yaml: is a configuration of ms-swift"):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        (
            "modality_ratio",
            "did you mean `data.train`? Give the sources of chats with media and of text a weight",
        ),
        ("rslora", "did you mean `lora.alpha`? rsLoRA scales by alpha / sqrt(rank)"),
        ("lora_path", "it has no equivalent here: ERNIEKit's adapters have another layout"),
        ("adapters", "did you mean `lora.path`? Adapter to start from"),
        ("global_batch_size", "did you mean `train.rows_per_step`? Packed sequences per optimizer step"),
        ("total_batch_size", "did you mean `train.tokens_per_step`? Global batch size in tokens"),
        ("dropout_warmup_steps", "it has no equivalent here: only adapters have dropout (lora.dropout)"),
        ("plot_loss", "it is not needed here: report.html in the run's directory has the curves"),
        ("max_samples", "it has no equivalent here: set train.max_steps"),
        ("do_train", "it is not needed here: `erniekit train` trains"),
        ("unified_checkpoint", "it is not needed here: checkpoints are safetensors"),
        ("normalize_logps", "it has no equivalent here: dpo.length_normalize divides by the answer's length"),
        ("lr_scheduler", "did you mean `schedule.type`?"),
        ("buffer_size", "did you mean `data.buffer`?"),
        (
            "gradient_accumulation_steps",
            "did you mean `train.rows_per_step`? Packed sequences per optimizer step",
        ),
        ("stage", "did you mean `task`? sft: supervised"),
        ("micro_batch_size", "did you mean `data.max_length`?"),
        ("temperature", "did you mean `eval.temperature`?"),
        ("learning_rat", "did you mean `optimizer.learning_rate`?"),
    ],
)
def test_hints_for_keys_of_other_trainers(key: str, hint: str) -> None:
    assert meant((key,)).startswith(hint)
    assert meant(("train", key)).startswith(hint)


def test_no_name_is_in_a_table_and_in_the_list() -> None:
    assert not [name for name in OTHER_NAMES if rule_of(name) is not None]
