"""Write docs/configuration.md from the schema.

    python tools/docs/configuration.py

A test compares the page with the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from erniekit.config import Config

TARGET = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration
<!-- Written by tools/docs/configuration.py from erniekit/config. -->

A run is one YAML file. The tables list every key; the [glossary](glossary.md) explains the terms.

- `extends: other.yaml` (or a list of files) inherits the keys of another file. The path is relative to the file that
  extends it.
- Arguments of the form `key=value` override keys of the file:
  `erniekit train run.yaml optimizer.learning_rate=1e-4 data.train=[a.jsonl,b.jsonl]`.
- In paths, `~`, `${NAME}` and `$NAME` are expanded; `$$` is a dollar sign.
- YAML anchors and merge keys (`<<: *anchor`) work, and so do top-level keys that only define anchors.
- An unknown key is an error, and so is a key that has no effect in the run.
- `erniekit train run.yaml --dry-run --all` prints every resolved value.
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole page."""
    sections = {name: field for name, field in Config.model_fields.items() if _is_section(field.annotation)}
    alone = {name: field for name, field in Config.model_fields.items() if name not in sections}
    parts = [INTRODUCTION, f"\n{_table(alone)}"]
    seen: list[Any] = []
    for name, field in sections.items():
        section: Any = field.annotation
        parts.append(f"\n## {name}\n{_doc(section)}\n\n{_table(section.model_fields)}".replace("\\\n", "\n"))
        for key, field in section.model_fields.items():
            inner = _inner(field.annotation)
            if inner is not None:
                parts.append(f"\nKeys of `{key}`: {_doc(inner)}\n\n{_table(inner.model_fields)}")
            item = _item(field.annotation)
            # One table per type of item: data.train and data.eval share theirs.
            if item is not None and item not in seen:
                seen.append(item)
                parts.append(f"\nEach item of `{key}`: {_doc(item)}\n\n{_table(item.model_fields)}")
    return "".join(parts)


def _doc(section: Any) -> str:
    return re.sub(r"\s+", " ", section.__doc__).strip()


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _table(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, field in fields.items():
        default = (
            "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
        )
        lines.append(f"| `{key}` | {default} | {field.description}{_choices(field.annotation)} |")
    return "\n".join(lines) + "\n"


def _item(annotation: Any) -> Any:
    """The section type of a list of sections; None for other annotations."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    items = get_args(annotation) if get_origin(annotation) is list else ()
    return items[0] if items and _is_section(items[0]) else None


def _inner(annotation: Any) -> Any:
    """The section type of a section that may be null; None for other annotations, such as a list of sections."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = get_args(annotation)
    return (
        next((member for member in members if _is_section(member)), None) if type(None) in members else None
    )


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    return " One of " + ", ".join(f"`{choice}`" for choice in get_args(annotation)) + "."


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


if __name__ == "__main__":
    main()
