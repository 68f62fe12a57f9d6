"""Training checkpoints: complete or not there, found, kept, read back and refused."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint import manifest
from erniekit.checkpoint import state as module
from erniekit.checkpoint import writer as writer_module
from erniekit.checkpoint.hub import write_safetensors
from erniekit.checkpoint.manifest import checksum_problems, read_record
from erniekit.checkpoint.optimizer_state import OptimizerState, optimizer_file, part_name
from erniekit.checkpoint.retention import outdated_checkpoints
from erniekit.checkpoint.state import (
    STATE_FILE,
    TrainerState,
    check_identity,
    file_records,
    find_checkpoints,
    fingerprint,
    model_fingerprint,
    newest_checkpoint,
    read_side_files,
    read_state,
    remove_checkpoint,
    set_aside_newer,
    write_side_files,
)
from erniekit.checkpoint.writer import FileWriter, PlannedFile
from erniekit.errors import CheckpointError
from erniekit.models.specs import TensorSpec
from tests.checkpoints import OPTIMIZER_FILE, write_checkpoint

MOMENTS = {
    "a.moment1": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.moment2": np.full((3,), 0.1, np.float32),
}


def make_state(step: int = 3) -> TrainerState:
    return TrainerState(
        step=step,
        rows=2 * step,
        tokens=100,
        loss_tokens=40,
        seed=7,
        loader={"epoch": 1, "row": 2},
        window={"steps": 0, "loss_sum": 0.1 + 0.2},
        schedule={"type": "cosine", "peak": 1e-4},
        identity={"lora.rank": 8},
        config={"train": {"seed": 7}},
        base_model="models/base",
        erniekit_version="0",
        losses=[0.1 + 0.2, 2.0],
    )


def write(run: Path, step: int = 3) -> Path:
    def weights(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"weights")

    return write_checkpoint(run, make_state(step), weights, MOMENTS)


def test_written_and_read_back(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path == tmp_path / "checkpoint-000003"
    assert read_state(path) == make_state()
    saved = OptimizerState(path)
    assert list(saved.names) == list(MOMENTS)
    for name, array in MOMENTS.items():
        for start, stop in ((0, array.size), (1, 3)):
            values, dtype = saved.read(name, array.shape, start, stop)
            assert dtype == "F32" and np.array_equal(values, array.reshape(-1)[start:stop])
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-000003"]
    records = file_records(path)
    assert set(records) == {"model.safetensors", OPTIMIZER_FILE}
    assert all(read_record(path / name) == record for name, record in records.items())


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / OPTIMIZER_FILE).rename(path / "optimizer.safetensors")
    content = json.loads((path / STATE_FILE).read_text())
    content["format"] = 1
    del content["checksum"]
    content["files"] = {
        name: (path / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors")
    }
    (path / STATE_FILE).write_text(json.dumps(content))
    assert newest_checkpoint(tmp_path) == path
    assert read_state(path) == make_state()
    assert np.array_equal(OptimizerState(path).read("a.moment1", (2, 3), 0, 6)[0], np.arange(6))
    assert checksum_problems(path, file_records(path).items()) == []


def test_damage_is_found_by_checksums(tmp_path: Path) -> None:
    path = write(tmp_path)
    records = file_records(path)
    assert checksum_problems(path, records.items()) == []
    for name in records:
        content = bytearray((path / name).read_bytes())
        content[-1] ^= 1
        (path / name).write_bytes(content)
        assert newest_checkpoint(tmp_path) == path
        assert checksum_problems(path, records.items()) == [
            f"{name} is damaged: its checksum differs from the one that was written"
        ]
        content[-1] ^= 1
        (path / name).write_bytes(content)
    (path / "model.safetensors").unlink()
    assert checksum_problems(path, records.items()) == ["model.safetensors is missing"]


def test_parts_of_tensors_are_put_together(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32)
    for rank, (start, stop) in enumerate(((0, 5), (5, 7), (7, 12))):
        spec = TensorSpec(part_name("a.moment1", start, stop), "F32", (stop - start,))
        write_safetensors(tmp_path / optimizer_file(rank, 3), [spec], lambda _: whole[start:stop])  # noqa: B023
    saved = OptimizerState(tmp_path)
    for start in range(12):
        for stop in range(start + 1, 13):
            assert np.array_equal(saved.read("a.moment1", (3, 4), start, stop)[0], whole[start:stop])
    with pytest.raises(CheckpointError, match=r"a\.moment1: 12 elements, expected shape \[3, 5\]"):
        saved.read("a.moment1", (3, 5), 0, 1)
    (tmp_path / optimizer_file(1, 3)).unlink()
    with pytest.raises(CheckpointError, match=r"a\.moment1: elements 5 to 7 are missing"):
        OptimizerState(tmp_path)


def test_a_full_disk_is_reported_and_the_arrays_are_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "write_safetensors", full)
    arrays = iter([np.zeros(2, np.float32)] * 3)
    file = PlannedFile("x.safetensors", [TensorSpec(name, "F32", (2,)) for name in "abc"])
    for in_thread in (False, True):
        writer = FileWriter(tmp_path / "aside", [file], arrays)
        writer.start() if in_thread else writer.run()
        writer.join()
        assert (
            writer.error == f"{tmp_path / 'aside'}: the checkpoint cannot be written: No space left on device"
        )
        assert next(arrays, None) is None


def test_an_error_of_the_program_in_the_thread_is_raised(tmp_path: Path) -> None:
    file = PlannedFile("x.safetensors", [TensorSpec("a", "F32", (2,))])
    writer = FileWriter(tmp_path, [file], iter([np.zeros(3, np.float32)]))
    writer.start()
    with pytest.raises(ValueError, match=r"a: got float32 \[3\]"):
        writer.join()


def test_the_same_step_may_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be killed while the one before is removed."""
    found = []
    remove = module.remove_checkpoint

    def remove_late(path: Path) -> None:
        found.append(newest_checkpoint(tmp_path))
        remove(path)

    monkeypatch.setattr(module, "remove_checkpoint", remove_late)
    write(tmp_path, 3)
    write(tmp_path, 3)
    assert found == [tmp_path / "checkpoint-000003"]
    assert list(tmp_path.iterdir()) == found


def test_newest_ignores_what_is_incomplete(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10, 11, 12, 13):
        write(tmp_path, step)
    (tmp_path / "checkpoint-000011" / STATE_FILE).unlink()
    (tmp_path / "checkpoint-000012" / OPTIMIZER_FILE).write_bytes(b"short")
    (tmp_path / "checkpoint-000013" / "model.safetensors").unlink()
    shutil.copytree(tmp_path / "checkpoint-000010", tmp_path / ".checkpoint-000099.tmp")
    (tmp_path / "checkpoint-000098").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000010"
    problems = {found.step: found.problem for found in find_checkpoints(tmp_path)}
    assert list(problems) == [13, 12, 11, 10, 2]
    assert problems[13] == "model.safetensors is missing"
    assert problems[12] is not None and problems[12].startswith(f"{OPTIMIZER_FILE} has 5 bytes instead of")
    assert problems[11] == "trainer_state.json is missing"
    assert problems[10] is None


def outdated(run: Path, keep: int, **spare: Any) -> list[str]:
    return [path.name for path in outdated_checkpoints(run, keep, **spare)]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "checkpoint-000001" / STATE_FILE).unlink()
    (tmp_path / ".checkpoint-000003.tmp").mkdir()
    older = [".checkpoint-000003.tmp", "checkpoint-000001", "checkpoint-000002"]
    assert outdated(tmp_path, 2) == older
    assert outdated(tmp_path, 1) == [*older, "checkpoint-000003"]


def test_every_nth_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 9):
        write(tmp_path, step)
    steps = [int(name[-6:]) for name in outdated(tmp_path, 1, spare=[2], keep_every=3)]
    assert steps == [1, 4, 5, 7]


def test_a_checkpoint_with_a_cut_file_replaces_none(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    file = tmp_path / "checkpoint-000003" / OPTIMIZER_FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert outdated(tmp_path, 1) == ["checkpoint-000001"]


def test_damaged_states_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = json.loads((path / STATE_FILE).read_text())
    edited = "trainer_state.json is damaged, or was edited: its checksum differs"
    for broken, message in (("{", "trainer_state.json is damaged"), ({**content, "rows": 7}, edited)):
        (path / STATE_FILE).write_text(broken if isinstance(broken, str) else json.dumps(broken))
        with pytest.raises(CheckpointError, match=message):
            read_state(path)
    # Of a version without a checksum, or without it.
    del content["checksum"]
    files = content["files"]
    for change, message in (
        ({"format": 99}, "another version of erniekit"),
        ({"unknown": 1}, "not a trainer state"),
        ({"step": 2}, "is of another checkpoint: it says step 2"),
        ({"files": {}}, "trainer_state.json lacks model.safetensors"),
        ({"files": {"model.safetensors": files["model.safetensors"]}}, "lacks optimizer-00001-of-00001"),
        ({"files": {**files, "../x": [1, "0"]}}, r"trainer_state\.json names '\.\./x'"),
        ({"rows": "6"}, "rows is '6', expected int"),
        ({"rows": True}, "rows is True, expected int"),
        ({"tokens": -1}, "tokens is -1"),
        ({"loader": []}, r"loader is \[\], expected dict"),
        ({"config": {"data": 3}}, r"config\.data is not a section"),
    ):
        (path / STATE_FILE).write_text(json.dumps({**content, **change}))
        with pytest.raises(CheckpointError, match=message):
            read_state(path)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json is missing"):
        read_state(tmp_path)


def test_a_damaged_optimizer_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path)
    size = (path / OPTIMIZER_FILE).stat().st_size
    (path / OPTIMIZER_FILE).write_bytes(b"\xff" * size)
    with pytest.raises(CheckpointError, match=OPTIMIZER_FILE):
        OptimizerState(path)


def test_identity_names_every_key_that_differs() -> None:
    saved = {"lora.rank": 8, "data.train": fingerprint([b"a"]), "data.max_length": 64}
    check_identity(saved, dict(saved), Path("run/checkpoint-000001"))
    current = {
        "lora.rank": 16,
        "data.train": fingerprint([b"b"]),
        "data.max_length": 64,
        "model.freeze": ["vision"],
    }
    with pytest.raises(CheckpointError) as caught:
        check_identity(saved, current, Path("run/checkpoint-000001"))
    text = str(caught.value)
    assert "run/checkpoint-000001: cannot be resumed" in text
    assert "  lora.rank: was 8, is now 16" in text
    assert "  data.train: the content has changed since the run began" in text
    assert '  model.freeze: was null, is now ["vision"]' in text
    assert "max_length" not in text
    with pytest.raises(CheckpointError) as caught:
        check_identity({"x" * 5000: "y" * 5000}, {}, Path("run/checkpoint-000001"))
    assert len(str(caught.value)) < 500


def test_fingerprint_depends_on_content_and_its_division() -> None:
    assert fingerprint([b"ab", b"c"]) == fingerprint([b"ab", memoryview(b"c")])
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])


def test_model_fingerprint_sees_config_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FINGERPRINT_BYTES", 8)
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(range(64)))
    before = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == before
    weights.write_bytes(bytes(range(63)) + b"\0")
    assert model_fingerprint(tmp_path) != before
    weights.write_bytes(bytes(range(64)))
    assert model_fingerprint(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert model_fingerprint(tmp_path) != before


def test_side_files_are_carried_and_weights_are_not(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    side = [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "spiece.model",
        "processing_x.py",
        "LICENSE.txt",
        "Roboto-Regular.ttf",
    ]
    others = [
        "model.safetensors",
        "model.safetensors.index.json",
        STATE_FILE,
        "adapter_config.json",
        "x.pdparams",
    ]
    for name in side + others:
        (source / name).write_text(name)
    write_side_files(read_side_files(source), target)
    assert sorted(file.name for file in target.iterdir()) == sorted(side)


def test_newer_checkpoints_of_a_resumed_run_are_set_aside(tmp_path: Path) -> None:
    """They are no newest checkpoints any more, and go once the run has passed them."""
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    assert [path.name for path in set_aside_newer(tmp_path, 2)] == [
        "checkpoint-000004.damaged",
        "checkpoint-000003.damaged",
    ]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000002"
    assert outdated(tmp_path, 1) == ["checkpoint-000001"]
    write(tmp_path, 3)
    assert outdated(tmp_path, 1) == ["checkpoint-000003.damaged", "checkpoint-000001", "checkpoint-000002"]
    write(tmp_path, 4)
    assert [path.name for path in set_aside_newer(tmp_path, 3)] == ["checkpoint-000004.damaged"]
    assert set_aside_newer(tmp_path, 3) == []


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write(tmp_path)

    def fail(path: Path) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(manifest, "read_record", fail)
    record = {"model.safetensors": file_records(checkpoint)["model.safetensors"]}
    problems = checksum_problems(checkpoint, record.items())
    assert problems == ["model.safetensors cannot be read: Input/output error"]


def test_a_checkpoint_that_was_moved_and_linked(tmp_path: Path) -> None:
    """The link is replaced or removed; what it leads to is not touched."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write(run, 1).rename(elsewhere)
    (run / "checkpoint-000001").symlink_to(elsewhere)
    assert newest_checkpoint(run) == run / "checkpoint-000001"
    remove_checkpoint(run / "checkpoint-000001")
    assert list(run.iterdir()) == []
    (run / "checkpoint-000001").symlink_to(elsewhere)
    assert not write(run, 1).is_symlink()
    assert file_records(elsewhere)


def test_a_checkpoint_that_is_removed_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run removes old checkpoints in the background: they are incomplete, and no error, after each look at a file."""
    write(tmp_path, 3)
    look, problems = Path.stat, []
    for left in range(30):

        def vanish(path: Path, **options: Any) -> os.stat_result:
            nonlocal left
            left -= 1
            if left < 0:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return look(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", vanish)
            problems += [found.problem for found in find_checkpoints(tmp_path)]
    assert "model.safetensors is missing" in problems
    assert problems[-1] is None, "the last ones looked to the end"
