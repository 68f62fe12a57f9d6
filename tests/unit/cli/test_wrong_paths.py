"""A path of the wrong kind: every command says what is there, and what to give."""

import json
from pathlib import Path

import pytest

from erniekit.create.create import create_model
from erniekit.errors import VerifyError
from erniekit.export.reference import compare_with_reference
from tests.command import erniekit

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
MODEL = (
    "give the directory of a model, a checkpoint or a run (its train.output_dir), or a repository of the Hub"
)
NO_MODEL = "emptydir: holds no model (config.json), no adapter and no checkpoint of a run"
NO_CONFIG = "config.json: not found; a model directory holds config.json beside its weights"
EXPORT = "export it first:\n  erniekit export {} --output DIR"
RUN = "run: is a run, not a model; " + EXPORT.format("run")
ADAPTER = "adapter: holds an adapter, not a model; " + EXPORT.format("adapter")
YAML = "is a directory, not a YAML file"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paths of every kind, and a model that is whole."""
    place = tmp_path_factory.mktemp("place")
    (place / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    create_model("tiny-dense", place / "model", [place / "chats.jsonl"], overrides=["num_hidden_layers=1"])
    (place / "empty.jsonl").write_text("")
    (place / "empty.yaml").write_text("")
    (place / "old.yaml").write_text(
        "stage: SFT\nmodel_name_or_path: m\ntrain_dataset_path: a\nfine_tuning: Full\n"
    )
    (place / "old.json").write_text('{"stage": "SFT"}')
    (place / "emptydir").mkdir()
    (place / "run" / "checkpoint-000001").mkdir(parents=True)
    (place / "started").mkdir()
    for name in ("config.yaml", "log.jsonl"):
        (place / "started" / name).write_text("{}\n")
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text("{}")
    (place / "run.yaml").write_text(
        "model: {path: model}\ndata: {train: chats.jsonl, max_length: 64}\ntrain: {output_dir: out}\n"
        "parallel: {device: cpu}\n"
    )
    return place


CASES = [
    *(
        (command, path, f"{path}: {found}; {MODEL}")
        for command in ("chat PATH", "serve PATH", "export PATH --output out", "eval PATH --data chats.jsonl")
        for path, found in (
            ("chats.jsonl", "is a file"),
            ("started/log.jsonl", "is a file"),  # named as owner/name
            ("nothing", "no such directory"),
        )
    ),
    *(
        (command, path, message)
        for command in ("chat PATH", "export PATH --output out")
        for path, message in (
            ("emptydir", NO_MODEL),
            ("started", "started: the run has no checkpoint yet"),
            ("run", "run: no checkpoint of this run is complete (checkpoint-000001: "),
            ("run/best", "no best checkpoint is recorded"),
        )
    ),
    *(
        (command, path, message)
        for command in (
            "verify PATH --no-transformers",
            "train run.yaml model.path=PATH --dry-run",
            "data check chats.jsonl --model PATH",
            "data preview run.yaml model.path=PATH",
            "verify model --no-transformers --base PATH",
        )
        for path, message in (("run", RUN), ("adapter", ADAPTER), ("emptydir", f"emptydir/{NO_CONFIG}"))
    ),
    ("verify PATH --no-transformers", "chats.jsonl", "chats.jsonl: is a file, not the directory of a model"),
    ("verify PATH --no-transformers", "nothing", "nothing: no such directory"),
    ("verify PATH --no-transformers", "run/best", "run/best: is a run, not a model; export it first"),
    ("train run.yaml model.path=PATH --dry-run", "chats.jsonl", "is a file, not the directory of a model"),
    ("train run.yaml model.path=PATH --dry-run", "nothing", "nothing: no such directory"),
    ("train PATH", "chats.jsonl", "is a data file; a configuration is a YAML file, with data.train: chats.jsonl in it"),
    ("train PATH", "nothing", "nothing: no such file"),
    ("train PATH", "empty.yaml", "empty.yaml: is empty; a configuration has sections"),
    ("train PATH", "emptydir", f"emptydir: {YAML}"),
    ("train PATH", "started", f"started: {YAML}; did you mean started/config.yaml?"),
    ("data preview PATH", "chats.jsonl", "is a data file"),
    ("data preview PATH", "started", f"{YAML}; did you mean started/config.yaml?"),
    ("data check --config PATH", "emptydir", YAML),
    ("config convert PATH", "chats.jsonl", "is a data file"),
    ("config convert PATH", "run.yaml", "run.yaml: is already a configuration of erniekit"),
    ("config convert old.yaml -o PATH", "chats.jsonl/new.yaml", "chats.jsonl/new.yaml: cannot be written: "),
    ("data convert PATH out.jsonl", "empty.jsonl", "empty.jsonl: the data file has no samples"),
    ("data convert PATH out.jsonl", "emptydir", "the directory has no data files"),
    ("data check PATH", "model", "model: this is the directory of a model or a run, not of data files"),
    ("train run.yaml data.train=PATH", "run", "run: this is the directory of a model or a run, not of data files"),
    ("data check PATH", "old.json", "unknown sample format; found: \"stage\"; expected the keys \"messages\""),
    ("data convert chats.jsonl PATH", "emptydir", "emptydir: cannot be written: Is a directory"),
    ("train run.yaml train.output_dir=PATH", "chats.jsonl", "chats.jsonl is not a directory; choose another one"),
    ("init tiny-dense --tokenizer-text chats.jsonl --output PATH", "chats.jsonl/m", "m: cannot be created: "),
    ("init tiny-dense --output m --tokenizer-text PATH", "/dev/zero", "it is a pipe or a device, not a regular file"),
    ("init tiny-dense --output m --tokenizer-text PATH", "emptydir", "tokenizer text: it is a directory"),
    *(
        (command, "a" * 5000, "a" * 300 + "...: File name too long")
        for command in (
            *("chat PATH", "serve PATH", "verify PATH"),
            *("export model --output PATH", "train run.yaml model.path=PATH"),
        )
    ),
    ("chat model --tools PATH", "nothing", "nothing: cannot be read: No such file"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "path", "message"), CASES)
def test_a_wrong_path_is_named_with_what_to_give(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str, path: str, message: str
) -> None:
    monkeypatch.chdir(place)
    result = erniekit(*command.replace("PATH", path).split())
    assert result.returncode == 1
    assert message in result.stderr + result.stdout
    assert not (place / "out").exists()


@pytest.mark.parametrize("path", ["nothing", "chats.jsonl", "emptydir"])
def test_a_reference_that_is_none(place: Path, path: str) -> None:
    with pytest.raises(VerifyError) as error:
        compare_with_reference(place / "model", place / path)
    assert "pickle" not in str(error.value)
