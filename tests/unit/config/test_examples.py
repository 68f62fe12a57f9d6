"""The example configurations load and match their names."""

from pathlib import Path

import pytest

from erniekit.config import load_config

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "configs"
RUNS = sorted(EXAMPLES.glob("ERNIE-*/**/*.yaml"))
NAMED_BY_THE_MODEL_CARD = [
    "ERNIE-4.5-VL-28B-A3B-Thinking/sft/run_sft_8k.yaml",
    "ERNIE-4.5-VL-28B-A3B-Thinking/sft/run_sft_lora_8k.yaml",
    "ERNIE-4.5-VL-28B-A3B-Thinking/sft_function_call/run_sft_8k.yaml",
    "ERNIE-4.5-VL-28B-A3B-Thinking/sft_function_call/run_sft_lora_8k.yaml",
]


def test_paths_of_the_model_card_exist() -> None:
    assert len(RUNS) == 51
    for name in NAMED_BY_THE_MODEL_CARD:
        assert EXAMPLES / name in RUNS


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_loads(path: Path) -> None:
    config = load_config(path)
    family = path.relative_to(EXAMPLES).parts[0]
    assert family in config.model.path and family in config.train.output_dir
    assert config.data.max_length == {"8k": 8192, "32k": 32768, "128k": 131072}[path.stem.split("_")[-1]]
    assert config.data.loss_on == ("each_turn" if "function_call" in path.parent.name else "all")
    assert config.model.quantize == ("int4" if "qlora" in path.stem else "none")
    assert config.lora.enabled == ("lora" in path.stem)
    assert config.task == path.stem.split("_")[1] == path.parent.name.split("_")[0]
    assert config.schedule.min_learning_rate == (1e-6 if config.task == "sft" else 0)
    # The rate rises and falls even for short data.
    assert (config.schedule.warmup_ratio, config.schedule.warmup_steps) == (0.1, 0)
    if config.lora.enabled:
        assert config.lora.rank == 32
    elif config.task == "dpo":
        assert config.optimizer.learning_rate == 5e-7
        assert ("vision" in config.model.freeze) == ("-VL-" in family)
    else:
        assert config.optimizer.learning_rate == 1e-5
        assert ("vision" in config.model.freeze) == ("-VL-" in family)


def test_output_directories_are_unique() -> None:
    assert len({load_config(path).train.output_dir for path in RUNS}) == len(RUNS)
