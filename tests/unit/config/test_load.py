"""Reading files, `extends` and overrides: merging, and errors with file and line."""

import os
from pathlib import Path

import pytest

from erniekit.config import Config, load_config
from erniekit.errors import ConfigError
from tests.unit.config.conftest import MINIMAL, Write, problems


def test_minimal_file_gets_defaults(write: Write) -> None:
    config = load_config(write("run.yaml", MINIMAL))
    assert config.model.path == "m"
    assert [source.path for source in config.data.train] == ["a.jsonl"]
    assert config.data.max_length == 8192
    assert config.optimizer.learning_rate == 1e-5
    assert config.lora.targets[0] == "q_proj"


def test_number_notations(write: Write) -> None:
    text = MINIMAL + "optimizer: {learning_rate: 1e-5, weight_decay: 1, epsilon: 1.E-8, beta1: .5}\n"
    optimizer = load_config(write("run.yaml", text)).optimizer
    assert optimizer.learning_rate == 1e-5
    assert optimizer.weight_decay == 1.0 and isinstance(optimizer.weight_decay, float)
    assert optimizer.epsilon == 1e-8
    assert optimizer.beta1 == 0.5


def test_text_stays_text(write: Write) -> None:
    text = "model: {path: yes}\ndata: {train: 2024-01-01, shuffle: false}\ntrain: {output_dir: '1e5'}\n"
    config = load_config(write("run.yaml", text))
    assert (config.model.path, config.data.train[0].path, config.train.output_dir) == (
        "yes",
        "2024-01-01",
        "1e5",
    )


def test_overrides_win_and_are_yaml(write: Write) -> None:
    config = load_config(
        write("run.yaml", MINIMAL + "lora: {enabled: true, rank: 4}\n"),
        [
            "optimizer.learning_rate=1e-4",
            "data.train=[a.jsonl,b.jsonl]",
            "train.max_steps=7",
            "train.max_steps=9",
            "lora={rank: 16}",
            "model.path=a=b",
            "parallel.threads=",
        ],
    )
    assert config.optimizer.learning_rate == 1e-4
    assert [source.path for source in config.data.train] == ["a.jsonl", "b.jsonl"]
    assert config.train.max_steps == 9
    assert (config.lora.enabled, config.lora.rank) == (True, 16)
    assert config.model.path == "a=b"
    assert config.parallel.threads is None


def test_an_empty_section_changes_nothing(write: Write) -> None:
    write("base.yaml", MINIMAL + "log: {every: 5}\n")
    assert load_config(write("run.yaml", "extends: base.yaml\nlog:\n  # every: 3\nlora:\n")).log.every == 5


def test_extends_merges_sections_and_replaces_lists(write: Write) -> None:
    write(
        "base/top.yaml", "data: {train: [x, y], max_length: 16}\nlog: {every: 2}\ntrain: {output_dir: out}\n"
    )
    write("base/mid.yaml", "extends: top.yaml\nlog: {every: 3, tensorboard: false}\n")
    write("other.yaml", "model: {path: other}\nlog: {every: 4}\n")
    config = load_config(
        write("runs/run.yaml", "extends: [../base/mid.yaml, ../other.yaml]\ndata: {train: [z]}\n")
    )
    assert [source.path for source in config.data.train] == ["z"]
    assert config.data.max_length == 16
    assert (config.log.every, config.log.tensorboard) == (4, False)
    assert config.model.path == "other"


def test_circular_extends(write: Write) -> None:
    write("b.yaml", "log: {every: 2}\nextends: sub/../a.yaml\n")
    assert problems(write("a.yaml", "extends: b.yaml\n")) == [
        "b.yaml:2: extends: circular reference: a.yaml -> b.yaml -> a.yaml"
    ]


def test_extends_must_name_files(write: Write) -> None:
    assert problems(write("a.yaml", MINIMAL + "extends: [3]\n")) == [
        "a.yaml:4: extends: must be a file or a list of files, got a list"
    ]
    assert problems(write("a.yaml", MINIMAL + "extends: no.yaml\n")) == [
        "a.yaml:4: extends: no such file: no.yaml; a relative path starts at the directory of the file that has it"
    ]
    assert problems(write("b.yaml", MINIMAL), "extends=a.yaml") == [
        "command line: extends: can only be set in a file"
    ]


def test_problems_of_a_base_name_its_file(write: Write) -> None:
    write("base.yaml", "log:\n  every: 0\n  evry: 1\n")
    assert problems(write("run.yaml", "extends: base.yaml\n" + MINIMAL)) == [
        "base.yaml:2: log.every: must be a whole number above 0, got 0",
        "base.yaml:3: log.evry: unknown key; did you mean `log.every`?",
    ]
    # What the file itself says in its place is right, so the base's mistake is gone.
    assert problems(write("run.yaml", "extends: base.yaml\nlog: {every: 1}\n" + MINIMAL)) == [
        "base.yaml:3: log.evry: unknown key; did you mean `log.every`?"
    ]


def test_replaced_values_lose_their_location(write: Write) -> None:
    write("base.yaml", "optimizer:\n  groups:\n  - match: a\n")
    [problem] = problems(
        write("run.yaml", "extends: base.yaml\noptimizer: {groups: [{weight_decay: 1}]}\n" + MINIMAL)
    )
    assert problem.startswith("run.yaml:2: optimizer.groups[0].match: is required")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml: is empty; a configuration has sections such as model, data and train"),
        ("# nothing\n", "run.yaml: is empty; a configuration has sections such as model, data and train"),
        ("\n- a\n- b\n", "run.yaml:2: must be a mapping of sections, not a list"),
        ("run\n", "run.yaml:1: must be a mapping of sections, not a single value"),
        ("model:\n  path: [a\ndata: 1\n", "run.yaml:3: not valid YAML: expected ',' or ']', but got ':'"),
        (
            "model:\n\tpath: a\n",
            "run.yaml:2: not valid YAML: found character '\\t' that cannot start any token",
        ),
        ("a: 1\n---\nb: 1\n", "run.yaml:2: not valid YAML: but found another document"),
        ("a: 1\nb: \x01\n", "run.yaml:2: not valid YAML: character 1 is not allowed"),
    ],
)
def test_invalid_files(write: Write, text: str, message: str) -> None:
    assert problems(write("run.yaml", text)) == [message]


def test_aliases_do_not_multiply(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    merges = ["b0: &b0 {k: 1}"] + [
        f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 9)
    ]
    for text in (lines, merges):
        with pytest.raises(
            ConfigError, match=r"run\.yaml:\d+: the file has more than 50,000 values with its aliases"
        ):
            load_config(write("run.yaml", "\n".join(text)))


@pytest.mark.parametrize("depth", [60, 400])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ("{a: ", "}")])
def test_deep_values(write: Write, depth: int, begin: str, end: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:1: not valid YAML: nested more than 50 levels"):
        load_config(write("run.yaml", f"data: {begin * depth}{end * depth}\n"))
    (found,) = problems(write("run.yaml", MINIMAL), f"data.columns={begin * depth}{end * depth}")
    assert found.startswith("command line: data.columns: its value is not valid YAML: ") and len(found) < 400


def test_files_that_extend_each_other_in_many_ways(write: Write) -> None:
    """Each is read once: 2 ** 20 paths lead to the first."""
    write("a0.yaml", MINIMAL + "log: {every: 7, evry: 1}\n")
    write("b0.yaml", "train: {max_steps: 5}\n")
    for n in range(1, 21):
        for name in "ab":
            write(f"{name}{n}.yaml", f"extends: [a{n - 1}.yaml, b{n - 1}.yaml]\n")
    assert problems(write("run.yaml", "extends: [a20.yaml, b20.yaml]\n")) == [
        "a0.yaml:4: log.evry: unknown key; did you mean `log.every`?"
    ]
    write("a0.yaml", MINIMAL + "log: {every: 7}\n")
    config = load_config(Path("run.yaml"))
    assert (config.log.every, config.train.max_steps) == (7, 5)


def test_a_file_extended_twice_wins_again(write: Write) -> None:
    write("top.yaml", MINIMAL + "log: {every: 1}\n")
    write("a.yaml", "extends: top.yaml\nlog: {every: 2}\n")
    write("b.yaml", "extends: top.yaml\n")
    assert load_config(write("run.yaml", "extends: [a.yaml, b.yaml]\n")).log.every == 1


def test_a_long_chain(write: Write) -> None:
    for n in range(40):
        write(f"a{n}.yaml", f"extends: a{n + 1}.yaml\n")
    write("a40.yaml", MINIMAL)
    with pytest.raises(ConfigError, match=r"a30\.yaml: is extended by 30 files"):
        load_config(Path("a0.yaml"))


@pytest.mark.parametrize("name", ['"\\0"', '"a\\0b"'])
def test_null_characters_in_paths(write: Write, name: str) -> None:
    (found,) = problems(write("run.yaml", MINIMAL + f"extends: {name}\n"))
    assert found.startswith("run.yaml:4: extends: ") and found.endswith(": a path has no null characters")
    (found,) = problems(write("run.yaml", MINIMAL.replace("path: m", f"path: {name}")))
    assert found.startswith("run.yaml:1: model.path: ") and found.endswith(": a path has no null characters")


def test_text_that_cannot_be_printed(write: Write) -> None:
    assert problems(write("run.yaml", MINIMAL + 'log: {"\\ud800": 1, every: "\\udfff"}\n')) == [
        "run.yaml:4: log: a key has half a surrogate pair, which is not text",
        "run.yaml:4: log.every: has half a surrogate pair, which is not text",
        "run.yaml:4: log.every: must be a whole number above 0, got null",
    ]


def test_files_without_end(write: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe\.yaml: cannot be read: it is a pipe or a device"):
        load_config(Path("pipe.yaml"))
    with pytest.raises(ConfigError, match=r"has more than 262,144 bytes"):
        load_config(write("big.yaml", "#" * (256 << 10) + "\n"))


def test_only_the_first_problems_are_listed(write: Write) -> None:
    text = MINIMAL + "".join(f"k{n}: 1\n" for n in range(1000))
    with pytest.raises(ConfigError, match="100 problems"):
        load_config(write("run.yaml", text))


def test_unreadable_files(write: Write, tmp_path: Path) -> None:
    path = write("run.yaml", "")
    path.write_bytes(b"model: \xff\n")
    assert problems(path) == ["run.yaml: is not UTF-8 text (byte 7)"]
    assert problems(Path("no.yaml")) == ["no.yaml: no such file"]
    assert problems(Path(".")) == [".: is a directory, not a YAML file"]
    assert problems(path / "run.yaml") == ["run.yaml/run.yaml: cannot be read: Not a directory"]


def test_duplicate_keys(write: Write) -> None:
    assert problems(write("run.yaml", MINIMAL + "log:\n  every: 1\n  every: 2\n")) == [
        "run.yaml:6: log.every: is set twice, first on line 5"
    ]
    assert problems(write("run.yaml", MINIMAL + "log: {}\nlog: {}\n")) == [
        "run.yaml:5: log: is set twice, first on line 4"
    ]


def test_tags_and_recursive_values(write: Write) -> None:
    text = MINIMAL + (
        "optimizer:\n  groups: &loop\n  - *loop\n? [a, b]\n: 1\n"
        "log:\n  every: !!python/name:os.system x\nloss:\n  chunk_tokens: !!int abc\n"
    )
    found = problems(write("run.yaml", text))
    assert "run.yaml:5: optimizer.groups[0]: contains itself" in found
    assert "run.yaml:7: a key must be a string, not a list" in found
    assert (
        "run.yaml:10: log.every: the tag 'tag:yaml.org,2002:python/name:os.system' is not supported" in found
    )
    assert "run.yaml:12: loss.chunk_tokens: 'abc' is not a number" in found


def test_all_problems_at_once(write: Write) -> None:
    """Invalid values, unknown keys, and conflicts between valid values only."""
    text = """\
train:
  epochs: many
  output_dir: out
  eval_every: 3
lora: true
schedule:
  warmup_steps: 5
  warmup_ratio: 0.5
  min_learning_rate: 1.0
optimizer:
  learning_rate: fast
dta: 3
model: {path: m}
data: {train: a.jsonl}
"""
    assert problems(write("run.yaml", text), "log.every=0") == [
        'run.yaml:2: train.epochs: must be a number above 0 and of at most 10000, got "many"',
        "run.yaml:4: train.eval_every: needs data.eval, which is empty",
        "run.yaml:5: lora: must be a section with keys, got true; did you mean `lora.enabled`?",
        "run.yaml:8: schedule.warmup_ratio: cannot be combined with schedule.warmup_steps; "
        "set one of the two to 0",
        'run.yaml:11: optimizer.learning_rate: must be a number above 0, got "fast"',
        "run.yaml:12: dta: unknown key; did you mean `data`?",
        "command line: log.every: must be a whole number above 0, got 0",
    ]


def test_default_sections_equal_empty_ones(write: Write) -> None:
    config = load_config(write("run.yaml", MINIMAL))
    built = Config.model_validate(
        {"model": {"path": "m"}, "data": {"train": "a.jsonl"}, "train": {"output_dir": "out"}}
    )
    assert config == built
