"""What the dry run prints of the configuration."""

from pathlib import Path

import pytest

from erniekit.config import Config
from erniekit.train.dry_run import dry_run_training


@pytest.mark.parametrize("show_all", [False, True])
def test_settings_that_differ_or_all(
    show_all: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.model_validate(
        {
            "model": {"path": str(tmp_path / "none")},
            "data": {"train": "none.jsonl"},
            "train": {"output_dir": "out", "epochs": 2},
            "parallel": {"device": "cpu"},
        }
    )
    dry_run_training(config, no_weights=True, show_all=show_all)
    printed = capsys.readouterr().out
    assert "  epochs: 2" in printed
    assert ("  seed: 42" in printed, "  backend: auto" in printed) == (show_all, show_all)
    assert ("--all prints them" in printed) != show_all
