from types import SimpleNamespace
from typing import Any

import pytest

from erniekit.config import Config
from erniekit.errors import ConfigError
from erniekit.train.distributed import check_same_model


@pytest.mark.parametrize(
    ("own", "other", "named"), [("a1", "b2", "a1, b2"), ("b2", None, "a directory, b2")], ids=["both", "one"]
)
def test_machines_with_different_commits_are_named(own: str, other: str | None, named: str) -> None:
    config = Config.model_validate(
        {
            "model": {"path": "me/model", "revision": own},
            "data": {"train": "d.jsonl"},
            "train": {"output_dir": "run"},
        }
    )

    def processes(others: list[str | None]) -> Any:
        return SimpleNamespace(all_gather_object=lambda value: [value, *others])

    check_same_model(config, processes([own]))
    with pytest.raises(ConfigError, match=rf"different commits of me/model: {named}\. Set model.revision"):
        check_same_model(config, processes([other]))
