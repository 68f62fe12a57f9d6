"""What several processes of a run do with its data: one of them makes what is kept on disk, the others find it."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import Config
from erniekit.data.encode.encoder import Encoder
from erniekit.data.load.stream import StreamedRows
from erniekit.data.store import dataset as dataset_module
from erniekit.data.store import digests
from erniekit.inspection.data_files import eval_files
from erniekit.train import inputs as inputs_module
from erniekit.train.inputs import Inputs, Sources, load_inputs
from tests.integration.training_setup import chats, make_config, write_chats
from tests.unit.data.files.fake_hub import FakeHub, install


class Process:
    """One of two processes of a machine, that run one after the other. seen: whether it saw what the first made."""

    size = 2

    def __init__(self, first: "Process | None" = None) -> None:
        self.rank = 0 if first is None else 1
        self.seen: bool | None = None
        self.made: Sources | None = None
        self._first = first

    def make_once(
        self, what: str, make: Callable[[], Sources], is_here: Callable[[Sources], bool]
    ) -> Sources:
        if self._first is not None:
            assert self._first.made is not None
            self.seen = is_here(self._first.made)
            if self.seen:
                return self._first.made
        self.made = make()
        return self.made


class Work:
    """Counts what takes time: files that are read to know them, sources that are encoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        for module, name in ((digests, "_digest"), (dataset_module, "_samples"), (Encoder, "encode")):
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.done.append(name)
            return original(*arguments, **options)

        return counted

    def take(self) -> set[str]:
        found, self.done = set(self.done), []
        return found


def silent(line: str) -> None:
    pass


def both(config: Config, work: Work) -> tuple[Inputs, Inputs, set[str], Process]:
    """The inputs of both processes; what the second one has done."""
    first = Process()
    one = load_inputs(config, silent, first)
    work.take()
    second = Process(first)
    other = load_inputs(config, silent, second)
    return one, other, work.take(), second


def rows(inputs: Inputs) -> list[str]:
    found: list[str] = []
    while inputs.train.epoch == 0:
        found += inputs.train.next_row().sample_ids
    return found


def test_a_process_warns_of_its_own_data_workers(tmp_path: Path, model: Path) -> None:
    """The main process, which logs for all, knows nothing of them."""
    data = write_chats(tmp_path / "a.jsonl", chats(24))
    config = make_config(
        tmp_path / "run", model, data, data__workers=1, data__cache_dir=str(tmp_path / "cache")
    )
    logged: list[str] = []
    warned: list[str] = []
    inputs = load_inputs(config, logged.append, warn=warned.append)
    inputs.train.next_row()
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    while not warned:
        inputs.train.next_row()
    inputs.close()
    assert warned[0].startswith("a worker process of the data died")
    assert not any("died" in line for line in logged)


@pytest.mark.parametrize("cache", [True, False])
def test_the_second_process_reads_no_data_files(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    """Whether the encoded samples are kept, or go with the run."""
    work = Work(monkeypatch)
    data, held_out = write_chats(tmp_path / "a.jsonl", chats(16)), write_chats(tmp_path / "b.jsonl", chats(5))
    config = make_config(
        tmp_path / "run", model, data, data__eval=str(held_out), data__cache=cache, train__rows_per_step=2,
        data__cache_dir=str(tmp_path / "cache") if cache else None, train__max_steps=None, train__epochs=1,
    )  # fmt: skip
    one, other, done, second = both(config, work)
    assert second.seen is True
    assert done == set()
    assert sorted(rows(one) + rows(other)) == sorted(f"{data}:{number + 1}" for number in range(16))
    assert one.eval_rows is not None and other.eval_rows is not None
    seen = [name for inputs in (one, other) for row in inputs.eval_rows.once() for name in row.sample_ids]  # type: ignore[union-attr]
    assert sorted(seen) == sorted(f"{held_out}:{number + 1}" for number in range(5))
    assert isinstance(one.rows, inputs_module.StoredRows)
    store = one.rows.dataset.sources[0].store.directory
    other.close()
    one.close()
    assert store.exists() is cache


def test_samples_that_a_killed_run_left_are_removed_by_the_next(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cache they are in the directory of temporary files."""
    left = tmp_path / "tmp" / "erniekit-data-0123abcd"
    left.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(left.parent))
    data = write_chats(tmp_path / "a.jsonl", chats(8))
    inputs = load_inputs(make_config(tmp_path / "run", model, data, data__cache=False), silent)
    (directory,) = left.parent.iterdir()
    assert directory != left and any(directory.iterdir())
    inputs.close()
    assert not any(left.parent.iterdir())


def test_a_process_that_sees_another_disk_encodes_too(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same place on two machines: a store of the same name is not the same store."""
    work = Work(monkeypatch)
    data = write_chats(tmp_path / "a.jsonl", chats(8))
    cache = tmp_path / "cache"
    config = make_config(tmp_path / "run", model, data, data__cache_dir=str(cache), train__rows_per_step=2)
    first = Process()
    one = load_inputs(config, silent, first)
    cache.rename(tmp_path / "elsewhere")
    work.take()
    second = Process(first)
    load_inputs(config, silent, second).close()
    assert (second.seen, "_samples" in work.take()) == (False, True)
    # Made by itself before: found, after a look at the files, as a run of its own would.
    third = Process(first)
    load_inputs(config, silent, third).close()
    assert (third.seen, "_samples" in work.take()) == (False, False)
    one.close()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_of_the_hub_is_loaded_once_into_one_place(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, cache: bool, streaming: bool
) -> None:
    class Hub(FakeHub):
        def get_dataset_split_names(self, name: str) -> list[str]:
            return ["train", "test"]

    hub = Hub([{"query": f"Say {number}.", "response": "Yes."} for number in range(12)])
    install(monkeypatch, hub)  # type: ignore[arg-type]
    work = Work(monkeypatch)
    config = make_config(
        tmp_path / "run", model, Path("hub:a/b"), data__eval="hub:a/b", data__cache=cache,
        data__cache_dir=str(tmp_path / "cache") if cache else None, train__rows_per_step=2, train__max_steps=1,
        data__streaming=streaming, **({"data__buffer": 6} if streaming else {}),
    )  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    place = (tmp_path / "cache" if cache else tmp_path / "home" / "erniekit" / "data") / "hub"
    one, other, _, second = both(config, work)
    for inputs in (one, other):
        assert isinstance(inputs.rows, StreamedRows) is streaming
        inputs.train.next_row()
        inputs.close()
    assert second.seen is True
    assert hub.asked == [("a/b", "train"), ("a/b", "test")]
    files = sorted(place.iterdir())
    assert len(files) == 2
    # Those who look at the data, or answer chats of it, read the same file.
    assert eval_files(config.data)[0].path in files
    assert hub.asked == [("a/b", "train"), ("a/b", "test")]


def test_each_process_of_a_stream_encodes_its_share(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_chats(tmp_path / "a.jsonl", chats(64))
    config = make_config(
        tmp_path / "run", model, data, data__streaming=True, data__buffer=16, data__workers=0,
        train__max_steps=1,
    )  # fmt: skip
    work = Work(monkeypatch)
    first = Process()
    for process in (first, Process(first)):
        inputs = load_inputs(config, silent, process)
        work.done.clear()
        rows(inputs)
        assert work.done.count("encode") == 32
        inputs.close()
