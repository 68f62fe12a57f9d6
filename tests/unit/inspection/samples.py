"""A conversation with tools and reasoning, and previews of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erniekit.config.choices import OnLong
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.samples import Pairs, SampleReader
from erniekit.inspection.check import CheckedFile
from erniekit.inspection.preview import Preview, preview_samples
from erniekit.inspection.select import first_records
from tests.unit.data.helpers import write_lines

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
TOOL_CHAT: dict[str, Any] = {
    "tools": TOOLS,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one plus two?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "add\nthem",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "seven"},
    ],
}


def preview_of(
    path: Path,
    records: Sequence[Any],
    encoder: Encoder,
    *,
    max_length: int = 500,
    on_long: OnLong = "error",
    pairs: Pairs = "chosen",
) -> Preview:
    """A preview of records, from a file that is written first."""
    chosen = first_records([CheckedFile(write_lines(path, records), "auto")], len(records))
    samples = preview_samples(chosen, SampleReader(encoder, max_length, on_long, pairs=pairs))
    return Preview("run.yaml", "model", encoder, max_length, on_long, samples)
