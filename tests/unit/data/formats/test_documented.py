"""The records that docs/data.md shows are read, and nothing of them is passed over."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from erniekit.data.formats import parse_record

DATA = Path(__file__).resolve().parents[4] / "data"
RECORDS = re.findall(
    r"```json\n(.*?)```", (DATA.parent / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("text", RECORDS)
def test_a_record_of_the_document_is_read(text: str) -> None:
    found = parse_record(json.loads(text), format="auto", base_dir=DATA / "samples", sample_id="README:1")
    assert found.messages and not any(notice.startswith("key") for notice in found.notices)


def test_there_are_records() -> None:
    assert len(RECORDS) >= 14
