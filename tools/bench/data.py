"""Measure the data path: encoding, packing, a second start, and memory over many images.

    python tools/bench/data.py [--model DIR] [--chats FILE ...] [--images 50000] [--workers 2]

DIR is a model directory with a tokenizer; the default is the quickstart's (after `make quickstart`). Chats are read
from data/samples and the files of --chats. Encoding and transformers' apply_chat_template are timed in turns on one
core. Memory is the resident memory of this process and its workers, read ten times in an epoch of chats with one image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from erniekit.data.chat.conversation import SampleError, TextPart
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.samples import SampleReader
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.data.encode.workers import Workers
from erniekit.data.files.find import expand
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import parse_record
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.store.dataset import Dataset, Source, SourceFiles, load_source

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "runs" / "quickstart" / "model"
TURNS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="a model directory with a tokenizer")
    parser.add_argument("--chats", nargs="*", default=[], help="data files in addition to data/samples")
    parser.add_argument("--images", type=int, default=50_000, help="chats with an image; 0: none")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    arguments = parser.parse_args()
    encoder = make_encoder(arguments.model)
    files = [str(ROOT / "data" / "samples" / "text.jsonl"), *arguments.chats]
    encoding(encoder, arguments.model, files)
    with tempfile.TemporaryDirectory() as directory:
        packing(encoder, files, Path(directory))
        if arguments.images:
            images(encoder, arguments.images, arguments.workers, Path(directory))


def encoding(encoder: Encoder, model: Path, files: Sequence[str]) -> None:
    """Text chats a second, ours and transformers', on one core."""
    tokenizer = load_tokenizer(model)
    records = [
        record.value for path in expand(files) for record in read_records(path) if isinstance(record, Record)
    ]
    reader = SampleReader(encoder, 1 << 20, "error")
    chats, peers = [], []
    for value in records:
        chat = _as_peer(value)
        if chat is not None:
            chats.append(Record(value, "bench:1", 0, None))  # type: ignore[arg-type]
            peers.append(chat)
    ours, theirs = [], []
    for _ in range(TURNS):
        ours.append(_seconds(lambda: [reader.read(chat, ROOT, "auto") for chat in chats]))
        theirs.append(
            _seconds(lambda: [tokenizer.apply_chat_template(chat, tokenize=True) for chat in peers])
        )
    mine, peer = (len(chats) / statistics.median(times) for times in (ours, theirs))
    print(
        f"encoding {len(chats):,} text chats: {mine:,.0f} samples/s with labels; transformers' "
        f"apply_chat_template, ids alone: {peer:,.0f} (ratio {mine / peer:.2f})"
    )


def _as_peer(value: Any) -> list[dict[str, str]] | None:
    """A record as transformers takes it; None for one with more than plain text."""
    try:
        chat = parse_record(value, format="auto", base_dir=ROOT, sample_id="bench:1")
    except SampleError:
        return None
    plain = all(isinstance(part, TextPart) for message in chat.messages for part in message.parts)
    if not plain or chat.tools or chat.messages[0].role == "text":
        return None
    return [
        {
            "role": message.role,
            "content": "".join(part.text for part in message.parts if isinstance(part, TextPart)),
        }
        for message in chat.messages
    ]


def packing(encoder: Encoder, files: Sequence[str], directory: Path) -> None:
    """Unused positions, and the start with and without encoded samples on disk."""
    for max_length in (2048, 8192):
        first, again = (_timed_load(encoder, files, max_length, directory / "cache") for _ in range(2))
        dataset = Dataset(tuple(first[1]), encoder.media_spec, first[2])
        rows = StoredRows(dataset, _mixture(len(files)), max_length)
        tokens = int(dataset.lengths.sum())
        count = rows.rows_per_epoch(0)
        padded = 1 - tokens / (len(dataset.lengths) * max_length)
        print(
            f"rows of {max_length:,}: {len(dataset.lengths):,} documents, {tokens:,} tokens in {count:,} rows, "
            f"{1 - tokens / (count * max_length):.2%} unused; padding each: {padded:.1%}"
        )
        print(f"  first start {first[0]:.2f} s, second {again[0]:.2f} s")


def images(encoder: Encoder, count: int, workers: int, directory: Path) -> None:
    """Memory over an epoch of chats with an image each, and its speed."""
    lines = (ROOT / "data" / "digits" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    path = directory / "images.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record = json.loads(lines[number % len(lines)])
            file.write(json.dumps(record) + "\n")
    seconds, sources, budget = _timed_load(encoder, [str(path)], 8192, directory / "cache", workers)
    print(f"{count:,} chats with an image: encoded in {seconds:.1f} s, {workers} worker(s)")
    dataset = Dataset(tuple(sources), encoder.media_spec, budget)
    rows = StoredRows(dataset, _mixture(1), 8192)
    pool = Workers(workers, encoder.media_spec)
    loader = RowLoader(rows, budget, pool)
    total = rows.rows_per_epoch(0)
    began, weights = time.perf_counter(), []
    while loader.epoch == 0:
        loader.next_row()
        if loader.state["row"] % max(1, total // 10) == 0:
            weights.append(_memory())
    seconds = time.perf_counter() - began
    loader.close()
    print(f"  decoded in {total:,} rows: {count / seconds:,.0f} images/s")
    print(f"  memory of all processes, MB, by tenths of the epoch: {' '.join(f'{w:.0f}' for w in weights)}")


def _timed_load(
    encoder: Encoder, files: Sequence[str], max_length: int, cache: Path, workers: int = 0
) -> tuple[float, list[Source], ErrorBudget]:
    budget = ErrorBudget("skip", 10**9, "drop")
    reader = SampleReader(encoder, max_length, "drop")
    began = time.perf_counter()
    sources = [load_source(SourceFiles.of(file), reader, budget, cache, workers=workers) for file in files]
    return time.perf_counter() - began, sources, budget


def _mixture(sources: int) -> Mixture:
    return Mixture("concat", "first_exhausted", (1.0,) * sources, True, 0)


def _memory() -> float:
    """Resident MB of this process and its children."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            for thread in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:
            continue  # it has ended meanwhile
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total / 1024


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
