"""Time the start of runs on data that is already encoded, and count the records that processes of a stream encode.

    python tools/bench/start.py [--model DIR] [--files 2000] [--megabytes 2000] [--processes 8]

DIR is a model directory with a tokenizer; the default is the quickstart's (after `make quickstart`). The data are many
small files, and one large file with large records. Each start is timed in a single process; the second and third find
the encoded samples. A stream has one loader per process, which reads until its share is complete.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.samples import SampleReader
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.stream import StreamedRows
from erniekit.data.store.dataset import SourceFiles, load_source

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "runs" / "quickstart" / "model"
_SETTLE = 3.0  # seconds after which the times of files are trusted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="a model directory with a tokenizer")
    parser.add_argument("--files", type=int, default=2000, help="small files")
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the large file")
    parser.add_argument("--processes", type=int, default=8, help="processes that share a stream")
    arguments = parser.parse_args()
    encoder = make_encoder(arguments.model)
    with tempfile.TemporaryDirectory() as directory:
        many, large = Path(directory, "many"), Path(directory, "large")
        for number in range(arguments.files):
            _write(many / f"{number:05d}.jsonl", 20, 0)
        _write(large / "a.jsonl", arguments.megabytes, 1 << 20)
        time.sleep(_SETTLE)
        for name, path in ((f"{arguments.files:,} files", many), (f"{arguments.megabytes:,} MB", large)):
            starts = [_start(encoder, path, Path(directory, "cache")) for _ in range(3)]
            times = ", ".join(f"{word} {seconds:.2f} s" for word, seconds in zip(_WORDS, starts, strict=True))
            print(f"starts on {name}: {times}")
        records = arguments.files * 20
        for processes in (1, arguments.processes):
            counts = [_encoded(encoder, many, rank, processes, records) for rank in range(processes)]
            print(f"stream of {records:,} records, {processes} processes: each encodes {counts}")


_WORDS = ("first", "second", "third")


def _write(path: Path, lines: int, padding: int) -> None:
    """Chats; `padding`: bytes of a key that no format reads."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            record: dict[str, Any] = {
                "query": f"{path.name} {number}",
                "response": "yes",
                "id": "x" * padding,
            }
            file.write(json.dumps(record) + "\n")


def _start(encoder: Encoder, path: Path, cache: Path) -> float:
    began = time.perf_counter()
    reader, budget = SampleReader(encoder, 512, "error"), ErrorBudget("raise", 0)
    load_source(SourceFiles.of(str(path)), reader, budget, cache).store.close()
    return time.perf_counter() - began


def _encoded(encoder: Encoder, path: Path, rank: int, ranks: int, records: int) -> int:
    """Records that one of `ranks` processes encodes while all of them train on every record once."""
    reader, budget = SampleReader(encoder, 512, "error"), ErrorBudget("raise", 0)
    workers = Workers(0, None, reader)
    mixture = Mixture("concat", "first_exhausted", (1.0,), True, 0)
    rows = StreamedRows(
        [SourceFiles.of(str(path))], reader, mixture, budget, workers, buffer=500, rank=rank, ranks=ranks
    )
    loader = RowLoader(rows, budget, workers, rank=rank, ranks=ranks)
    trained = 0
    while trained < records // ranks:
        trained += len(loader.next_row().sample_ids)
    return rows.stats.samples


if __name__ == "__main__":
    main()
