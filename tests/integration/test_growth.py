"""What a run holds does not grow with its steps, evaluations and checkpoints."""

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.run import run_training
from tests.integration.training_setup import chats, make_config, write_chats

Held = tuple[int, int, int]


def held(temporary: Path) -> Held:
    """Open files, threads, and temporary files."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(list(temporary.iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("streaming", [False, True])
def test_files_threads_and_temporary_files_do_not_grow(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    found: dict[int, Held] = {}
    write = MetricsWriter.write
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def observed(self: MetricsWriter, step: int, scalars: dict[str, float], **options: Any) -> None:
        write(self, step, scalars, **options)
        if "train/loss" in scalars:
            found[step] = held(temporary)

    monkeypatch.setattr(MetricsWriter, "write", observed)
    data = write_chats(tmp_path / "a.jsonl", chats(16))
    config = make_config(
        tmp_path / "run", model, data, data__eval=str(write_chats(tmp_path / "b.jsonl", chats(3, seed=5))),
        data__streaming=streaming, data__cache=False, data__workers=1, eval__samples=1, eval__max_new_tokens=2,
        train__max_steps=14, train__eval_every=2, checkpoint__save_every=2,
        **({"data__buffer": 8} if streaming else {}),
    )  # fmt: skip
    run_training(config)
    # Steps that follow an evaluation and a checkpoint, once all of a run is open; a thread may write the checkpoint.
    early, late = found[7], found[13]
    assert late[0] <= early[0] + 2 and late[1] <= early[1] + 1 and late[2] == early[2]
    assert not list(temporary.iterdir())
