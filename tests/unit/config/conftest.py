"""Configuration files for tests, and the errors that they give."""

from collections.abc import Callable
from pathlib import Path

import pytest

from erniekit.config import load_config
from erniekit.errors import ConfigError

Write = Callable[[str, str], Path]

MINIMAL = "model: {path: m}\ndata: {train: a.jsonl}\ntrain: {output_dir: out}\n"


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the heading of several problems."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    lines = str(caught.value).split("\n  ")
    if len(lines) > 1:
        assert lines[0] == f"{path}: {len(lines) - 1} problems"
        return lines[1:]
    return lines


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file to the test's directory, which is the working directory; returns its relative path."""
    monkeypatch.chdir(tmp_path)

    def _write(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write
