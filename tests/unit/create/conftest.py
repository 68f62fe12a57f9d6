"""Text for tokenizers, and one small model of each tiny shape for the session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from erniekit.create.create import create_model

TEXT = """\
The red circle is left of the blue square. The red circle is small.
Which digit is this? The number is 7. The number is 12, and the number is 2024.
What does the picture show? The picture shows a handwritten digit.
图片里是哪个数字。图片里的数字是七。
def add(a, b): return a + b
"""


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Callable[[str], Path]:
    """The directory of a tiny shape, made once."""
    root = tmp_path_factory.mktemp("tiny")

    def make(shape: str) -> Path:
        if not (root / shape).exists():
            create_model(shape, root / shape, [text_file])
        return root / shape

    return make
