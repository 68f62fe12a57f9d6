"""Small models of each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from erniekit.create.create import create_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    text = parent / "text.txt"
    text.write_text("A small cat sits on the red mat and looks at two green apples.\n" * 3)
    for family in ("dense", "moe", "vl"):
        create_model(
            f"tiny-{family}",
            parent / family,
            [text],
            vocab_size=400,
            std=0.1,
            overrides=["num_hidden_layers=2"],
        )
    return {family: parent / family for family in ("dense", "moe", "vl")}
