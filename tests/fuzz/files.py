"""Mutated data files and configurations."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from erniekit.config import load_config
from erniekit.data.files.reader import BadLine, read_records
from erniekit.data.formats import parse_record
from tests.fuzz.driver import mutated_bytes, mutated_value, put

_RECORDS: list[dict[str, object]] = [
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What?"}, {"type": "image", "image": "a.png"}],
            },
            {"role": "assistant", "content": "A digit.", "reasoning_content": "Hm.", "loss": True},
        ],
        "tools": [{"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}],
    },
    {
        "conversations": [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Ho"}],
        "images": ["a.png"],
    },
    {"instruction": "Add", "input": "1 2", "output": "3", "history": [["a", "b"]]},
    {"query": "Hi", "response": "Ho", "rejected_response": "No"},
    {"text": "Once upon a time."},
]
_ROWS = [{"instruction": f"Add {n}", "input": "1 2", "output": "3" * n} for n in range(3)]


def _table(kind: str) -> bytes:
    stream, table = io.BytesIO(), pa.Table.from_pylist(_ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, stream)
    else:
        with pyarrow.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    return stream.getvalue()


_LINES = "".join(json.dumps(record) + "\n" for record in _RECORDS).encode()
_FILES = {
    "a.jsonl": _LINES,
    "a.json": json.dumps(_RECORDS, indent=1).encode(),
    "b.json": json.dumps(_RECORDS[0], indent=1).encode() + json.dumps(_RECORDS[2], indent=1).encode(),
    "a.csv": b'instruction,input,output\nAdd,"1\n2",3\nAdd,4,""\n',
    "a.txt": "Once upon a time. Es war einmal, 很久以前。\n".encode(),
    "a.jsonl.gz": gzip.compress(_LINES),
    "a.parquet": _table("parquet"),
    "a.arrow": _table("arrow"),
}


def data_file(rng: random.Random, directory: Path) -> None:
    """A data file of any kind, and the records that can be read of it."""
    name = rng.choice(list(_FILES))
    if name == "a.jsonl" and rng.random() < 0.8:
        record: object = rng.choice(_RECORDS)
        for _ in range(rng.randint(1, 3)):
            record = mutated_value(rng, record)
        content = json.dumps(record).encode()
    else:
        content = mutated_bytes(rng, _FILES[name])
    put(directory / name, content)
    for found in read_records(directory / name):
        if isinstance(found, BadLine):
            raise found.error
        parse_record(found.value, format="auto", base_dir=directory, sample_id=found.sample_id)


_CONFIG: object = {
    "extends": "base.yaml",
    "model": {"path": "m", "freeze": ["vision"]},
    "data": {
        "train": [{"path": "a.jsonl", "weight": 2.0, "columns": {"messages": "chat"}}],
        "mix": "weighted",
    },
    "lora": {"enabled": True, "rank": 8, "targets": ["q_proj"]},
    "optimizer": {"learning_rate": 1e-4, "groups": [{"match": "norm", "weight_decay": 0.0}]},
    "train": {"output_dir": "out", "max_steps": 9},
    "log": {"every": 2, "tensorboard": False},
}
_YAML = b"""extends: [base.yaml]
defaults: &defaults {every: 2}
model:
  path: "${HOME}/m"   # a comment
data: {train: [a.jsonl, {path: b.jsonl}], max_length: 64}
log: {<<: *defaults, tensorboard: no}
train:
  output_dir: >-
    out
"""


def configuration(rng: random.Random, directory: Path) -> None:
    """A configuration that extends another one."""
    if not (directory / "base.yaml").exists():
        (directory / "base.yaml").write_text("data: {train: [x.jsonl]}\nlog: {every: 3}\n")
    if rng.random() < 0.5:
        content = mutated_bytes(rng, _YAML)
    else:
        value = _CONFIG
        for _ in range(rng.randint(1, 3)):
            value = mutated_value(rng, value)
        content = json.dumps(value).encode()
    put(directory / "run.yaml", content)
    load_config(directory / "run.yaml")
