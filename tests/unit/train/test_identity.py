"""What a checkpoint says of its run, also one that is older than a key."""

from pathlib import Path
from typing import Any

from erniekit.checkpoint.state import TrainerState, check_identity
from erniekit.config import Config
from erniekit.train.identity import changed_settings, saved_identity, with_defaults


def state(identity: dict[str, Any], config: dict[str, Any]) -> TrainerState:
    return TrainerState(1, 1, 1, 1, 0, {}, {}, {}, identity, config, "base", "0")


def test_keys_that_came_later_stand_as_they_stood_in_the_checkpoint() -> None:
    config = Config.model_validate(
        {"model": {"path": "m"}, "data": {"train": "x.jsonl"}, "train": {"output_dir": "r", "seed": 7}}
    ).model_dump()
    now = {"task": "sft", "data.share_prompt": True, "dpo.loss": "sigmoid", "train.seed": 7, "data.train": {}}
    older = {name: values for name, values in config.items() if name not in ("task", "dpo")}
    older["data"] = {name: value for name, value in config["data"].items() if name != "share_prompt"}
    found = saved_identity(state({"data.train": {}}, older), now)
    assert found == now
    check_identity(found, now, Path("checkpoint"))
    # What the checkpoint itself says wins; of what its configuration cannot tell nothing is made up.
    assert saved_identity(state({"task": "dpo"}, older), ["task", "model.digest"]) == {"task": "dpo"}
    assert changed_settings(with_defaults(older), config) == []


def test_recompute_was_a_boolean_once() -> None:
    sections = {"model": {"path": "m"}, "data": {"train": "x.jsonl"}, "train": {"output_dir": "r"}}
    config = Config.model_validate(sections).model_dump()
    for boolean, choice in ((True, "layers"), (False, "none")):
        saved = config | {"train": config["train"] | {"recompute": boolean}}
        now = config | {"train": config["train"] | {"recompute": choice}}
        assert Config.model_validate(saved).model_dump() == now
        assert changed_settings(with_defaults(saved), now) == []
