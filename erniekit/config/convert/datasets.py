"""Datasets of LLaMA-Factory: the configuration has their names, dataset_info.json describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniekit.paths import escape_path

_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}
_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
}
"""By format: LLaMA-Factory's names of columns that have other names in ours."""


def name_sources(roles: dict[str, Any]) -> None:
    """Set the roles `paths` and `eval_paths` from the names of datasets, if a file has names.

    The role `undescribed` gets the names that are not in dataset_info.json.
    """
    directory = Path(roles.get("dataset_dir", "data"))
    described = _described(directory)
    for names, paths in (("datasets", "paths"), ("eval_datasets", "eval_paths")):
        if names in roles:
            roles[paths] = [_source(name, described.get(name), directory) for name in roles[names]]
    roles["undescribed"] = [name for name in roles.get("datasets", []) if name not in described]


def _described(directory: Path) -> dict[str, dict[str, Any]]:
    """The datasets in dataset_info.json; none without a readable file."""
    try:
        found = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def _source(name: str, entry: Mapping[str, Any] | None, directory: Path) -> dict[str, Any]:
    """A source of data.train. entry: the description of the dataset."""
    entry = entry or {}
    path = directory / str(entry.get("file_name", f"{name}.json"))
    source = {"path": f"hub:{entry['hf_hub_url']}" if "hf_hub_url" in entry else escape_path(str(path))}
    formatting = entry.get("formatting", "alpaca")
    if entry and formatting in _FORMATS:
        source["format"] = _FORMATS[formatting]
    columns = entry.get("columns")
    if isinstance(columns, dict):
        ours = _COLUMNS.get(formatting, {})
        renamed = {ours.get(key, key): column for key, column in columns.items()}
        other = {key: column for key, column in renamed.items() if key != column}
        return {**source, "columns": other} if other else source
    return source
