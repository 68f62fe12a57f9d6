"""The worker processes of a loader: their number, their errors and their end."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode import workers as workers_module
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.store.dataset import Dataset
from erniekit.errors import DataError
from tests.unit.data.helpers import noise, qa, write_lines
from tests.unit.data.loading import ROOM, assert_same, load, make_loader, rows_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(dataset: Dataset, workers: int) -> None:
    plain, helped = make_loader(dataset), make_loader(dataset, workers)
    for _ in range(rows_of(plain).rows_per_epoch(0) + rows_of(plain).rows_per_epoch(1) + 2):
        assert_same(plain.next_row(), helped.next_row())
    helped.close()


def test_reading_ahead_is_bounded(dataset: Dataset) -> None:
    drawn = 0

    def rows() -> Any:
        nonlocal drawn
        for row in rows_of(make_loader(dataset)).once():
            drawn += 1
            yield row

    workers = Workers(2, dataset.spec)
    for taken, _ in enumerate(workers.decode(rows(), lambda row: row), 1):
        assert drawn <= taken + 4
    workers.close()


def test_what_a_killed_worker_had_to_do_is_done_again(dataset: Dataset) -> None:
    """Also for rows of an evaluation, which come from the same processes."""
    lines: list[str] = []
    loader, expected = make_loader(dataset, 2), make_loader(dataset)
    loader._workers._log = lines.append
    for number in range(40):
        if number in (5, 20):
            pool = loader._workers._pool
            assert pool is not None
            for process in pool._processes.values():
                os.kill(process.pid, signal.SIGKILL)
        assert_same(loader.next_row(), expected.next_row())
    evaluated = loader.once(rows_of(loader).once())
    for number, row in enumerate(expected.once(rows_of(expected).once())):
        if number == 3:
            pool = loader._workers._pool
            assert pool is not None
            os.kill(next(iter(pool._processes)), signal.SIGKILL)
        assert_same(next(evaluated), row)
        assert_same(loader.next_row(), expected.next_row())
    loader.close()
    # The last of them for the rows of each.
    assert 3 <= len(lines) <= 4
    assert lines[0].startswith(
        "a worker process of the data died (killed, perhaps, because memory ran out); new"
    )


def test_a_worker_that_always_dies_is_an_error_and_not_a_hang() -> None:
    workers = Workers(1, None, log=(lines := []).append)
    results = workers._run([0, 7], str, _die_at_7, lambda number: True, lambda number: f"a.jsonl:{number}")
    assert next(results) == "0"
    with pytest.raises(DataError, match=r"died 3 times .* at a\.jsonl:7\. Fewer data\.workers \(now 1\)"):
        next(results)
    workers.close()
    assert len(lines) == 2


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workers_module, "ProcessPoolExecutor", fail)
    results = Workers(1, None)._run([0], str, str, lambda number: True, str)
    with pytest.raises(DataError, match=r"cannot be started: No space left on device.* lie in /dev/shm"):
        next(results)


def _die_at_7(number: int) -> str:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(number)


def test_a_stopped_worker_is_an_error_and_not_a_hang(dataset: Dataset) -> None:
    lines: list[str] = []
    workers = Workers(1, dataset.spec, log=lines.append)
    rows = workers.decode(rows_of(make_loader(dataset)).once(), lambda row: row)
    next(rows)
    workers._patience = 0.2
    assert workers._pool is not None
    (process,) = workers._pool._processes.values()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(
        DataError, match=rf"gives no result for .*\.jsonl:\d+.*: process {process.pid} is stopped"
    ):
        list(rows)
    workers.close()
    assert lines[-1] == f"worker processes of the data do not end and are killed: {process.pid}"
    assert not process.is_alive()


def test_a_slow_worker_is_named(dataset: Dataset) -> None:
    lines: list[str] = []
    workers = Workers(1, dataset.spec, log=lines.append, patience=0.05)
    # As for a disk that does not answer.
    rows = workers._run([10.0**6], time.sleep, time.sleep, lambda row: True, lambda row: "a.jsonl:7")
    with pytest.raises(
        DataError, match=r"no result for a\.jsonl:7 in .* it may wait for a disk or the network"
    ):
        list(rows)
    assert [line[:47] for line in lines[:2]] == ["waiting for a worker process of the data for 0 "] * 2
    workers.close()


def test_workers_end_with_a_main_process_that_is_killed(vl_checkpoint: Path, tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "p.png")
    path = write_lines(tmp_path / "a.jsonl", [qa("<image>", images=["p.png"])])
    program = f"""
from pathlib import Path
from erniekit.data.encode.encoder import make_encoder
from tests.unit.data.loading import load, make_loader

if __name__ == "__main__":
    loader = make_loader(load(make_encoder({str(vl_checkpoint)!r}), Path({str(path)!r})), workers=2)
    loader.next_row()
    print(*loader._workers._pool._processes, flush=True)
    input()
"""
    (tmp_path / "main.py").write_text(program)
    main = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])},
    )
    assert main.stdout is not None
    workers = [int(word) for word in main.stdout.readline().split()]
    assert workers
    main.kill()
    main.communicate()
    deadline = time.monotonic() + 600
    while any(_lives(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(worker) for worker in workers)


def _lives(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_text_starts_no_process(text_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa(f"q{number}") for number in range(20)])
    loader = make_loader(load(text_encoder, path, max_length=ROOM), workers=2)
    for _ in range(5):
        loader.next_row()
    assert loader._workers._pool is None


def test_errors_cross_processes_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(SampleError("f:1", "bad image", "what")))
    assert (error.sample_id, error.reason, error.detail, str(error)) == (
        "f:1",
        "bad image",
        "what",
        "f:1: what",
    )
    assert workers_module.decode_all([], None) == []
    assert ErrorBudget("skip", 3).left_out() == []


def test_memory_stays_flat_over_many_images(vl_encoder: Encoder, tmp_path: Path) -> None:
    """The bench does this with 50,000; here 3,000 of 25 KB each, 75 MB in all, of which a few rows are held."""
    for number in range(20):
        noise(112, 112, number).save(tmp_path / f"{number}.png")
    items = [qa(f"<image>{number}", images=[f"{number % 20}.png"]) for number in range(3000)]
    loader = make_loader(
        load(vl_encoder, write_lines(tmp_path / "a.jsonl", items), max_length=400), max_length=400
    )
    weights = []
    while loader.epoch == 0:
        loader.next_row()
        status = Path("/proc/self/status").read_text()
        weights.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")))
    third = len(weights) // 3
    assert len(weights) > 100
    assert max(weights[-third:]) - max(weights[:third]) < 16384  # KB; all images together are 75 MB
