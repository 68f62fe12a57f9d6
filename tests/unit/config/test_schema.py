"""The schema: descriptions, immutability, and a dump that reads back to an equal configuration."""

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from erniekit.config import Config, choices, dump_config, load_config
from erniekit.config.hints import KNOWN_KEYS, OTHER_NAMES
from erniekit.data.chat.families import TEMPLATES

REQUIRED: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": ["a"]}, "train": {"output_dir": "out"}}


def test_every_field_is_described() -> None:
    assert len(KNOWN_KEYS) > 40
    for key, field in KNOWN_KEYS.items():
        assert field.description and field.description.endswith((".", ")")), key


def test_every_template_is_a_choice() -> None:
    assert get_args(choices.TemplateName) == ("auto", *TEMPLATES)


def test_other_names_map_to_keys_and_are_not_keys() -> None:
    assert set(OTHER_NAMES.values()) <= set(KNOWN_KEYS)
    ours = {key.split(".")[1] for key in KNOWN_KEYS}
    clashes = {name for name in OTHER_NAMES if name in ours and OTHER_NAMES[name].split(".")[1] != name}
    assert not clashes


def test_a_configuration_is_frozen() -> None:
    config = Config.model_validate(REQUIRED)
    with pytest.raises(ValidationError):
        config.train.epochs = 2  # type: ignore[misc]


def test_rules_hold_in_python_too() -> None:
    with pytest.raises(ValidationError, match=r"train\.eval_every: needs data\.eval"):
        Config.model_validate(REQUIRED | {"train": {"output_dir": "out", "eval_every": 3}})


def test_dump_holds_every_key_in_order(tmp_path: Path) -> None:
    text = dump_config(Config.model_validate(REQUIRED))
    sections = [line.partition(":")[0] for line in text.splitlines() if not line.startswith((" ", "-"))]
    assert sections == list(Config.model_fields)
    for key in KNOWN_KEYS:
        assert f"  {key.split('.')[1]}:" in text


def test_dump_without_defaults_holds_what_differs(tmp_path: Path) -> None:
    lora = {"enabled": True, "rank": 8}
    config = Config.model_validate(REQUIRED | {"lora": lora, "data": {"train": ["a$b"]}})
    text = dump_config(config, defaults=False)
    assert text == (
        "model:\n  path: m\nlora:\n  enabled: true\ndata:\n  train:\n  - path: a$$b\ntrain:\n  output_dir: out\n"
    )
    (tmp_path / "run.yaml").write_text(text)
    assert load_config(tmp_path / "run.yaml") == config


TEXTS = st.one_of(
    st.sampled_from(
        ["1e5", "010", "08", "yes", "null", "~", "1_000", "0x1", "2024-01-01", "1:30", ".5", " a ", "#"]
    ),
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12),
)
# Missing variables and users are errors; see tests/unit/test_paths.py.
PATHS = TEXTS.filter(
    lambda text: not text.startswith("~") and "$" not in text and "\0" not in text
) | st.sampled_from(["$$a", "${HOME}/b", "~/c"])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    path=PATHS,
    train=st.lists(PATHS, min_size=1, max_size=3),
    rate=st.floats(min_value=1e-30, max_value=1e30, allow_nan=False),
    pattern=TEXTS,
    steps=st.none() | st.integers(min_value=1, max_value=10**12),
    lora=st.booleans(),
)
@example(path="a", train=["\x85", "\u2028b"], rate=1.0, pattern="*", steps=None, lora=False)
def test_dump_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    path: str,
    train: list[str],
    rate: float,
    pattern: str,
    steps: int | None,
    lora: bool,
) -> None:
    config = Config.model_validate(
        {
            "model": {"path": path, "freeze": [pattern]},
            "data": {"train": train},
            "train": {"output_dir": "out", "max_steps": steps},
            "lora": {"enabled": lora, "rank": 16 if lora else 8},
            "optimizer": {
                "learning_rate": rate,
                "groups": [
                    {"match": pattern, "weight_decay": rate},
                    {"match": "*", "learning_rate_ratio": 0.01},
                ],
            },
        }
    )
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
