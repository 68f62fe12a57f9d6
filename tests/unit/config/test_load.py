"""Files, `extends` and overrides: merging, and every kind of error with file and line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from erniekit.config import Config, load_config
from erniekit.errors import ConfigError

Write = Callable[[str, str], Path]

MAX_LENGTH = "Maximum number of tokens in a packed sequence, which is one micro-batch."
MINIMAL = "model: {path: m}\ndata: {train: a.jsonl}\ntrain: {output_dir: out}\n"


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the heading of several problems."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    lines = str(caught.value).split("\n  ")
    if len(lines) > 1:
        assert lines[0] == f"{path}: {len(lines) - 1} problems"
        return lines[1:]
    return lines


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
        "run.yaml:4: log: a key has half a surrogate pair, which is no text",
        "run.yaml:4: log.every: has half a surrogate pair, which is no text",
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: {epochs: abc}", 'train.epochs: must be a number above 0, got "abc"'),
        ("train: {epochs: '3'}", 'train.epochs: must be a number above 0, got "3"'),
        ("train: {epochs: true}", "train.epochs: must be a number above 0, got true"),
        ("train: {epochs: 0}", "train.epochs: must be a number above 0, got 0"),
        ("train: {epochs: null}", "train.epochs: must be a number above 0, got null"),
        ("train: {epochs: [1]}", "train.epochs: must be a number above 0, got a list"),
        ("train: {max_steps: 1.5}", "train.max_steps: must be a whole number above 0 or null, got 1.5"),
        ("train: {max_steps: 0.0}", "train.max_steps: must be a whole number above 0 or null, got 0"),
        (
            "train: {seed: .inf}",
            "train.seed: must be a whole number of at least 0 and below 4294967296, got Infinity",
        ),
        ("train: {max_steps: -1}", "train.max_steps: must be a whole number above 0 or null, got -1"),
        ("train: {recompute: maybe}", 'train.recompute: must be one of none, layers, auto, got "maybe"'),
        ("train: {recompute: 1}", "train.recompute: must be one of none, layers, auto, got 1"),
        (
            "train: {seed: -1}",
            "train.seed: must be a whole number of at least 0 and below 4294967296, got -1",
        ),
        ("optimizer: {learning_rate: fast}", 'optimizer.learning_rate: must be a number above 0, got "fast"'),
        ("optimizer: {learning_rate: 0}", "optimizer.learning_rate: must be a number above 0, got 0"),
        ("optimizer: {learning_rate: true}", "optimizer.learning_rate: must be a number above 0, got true"),
        (
            "optimizer: {weight_decay: .inf}",
            "optimizer.weight_decay: must be a number of at least 0, got Infinity",
        ),
        ("optimizer: {beta1: 1}", "optimizer.beta1: must be a number of at least 0 and below 1, got 1"),
        ("lora: {dropout: 1.0}", "lora.dropout: must be a number of at least 0 and below 1, got 1.0"),
        ("lora: {rank: 0}", "lora.rank: must be a whole number above 0, got 0"),
        ("lora: {alpha: 0}", "lora.alpha: must be a number above 0 or null, got 0"),
        (
            "lora: {targets: []}",
            "lora.targets: must be a non-empty list of strings, got an empty list",
        ),
        (
            "lora: true",
            "lora: must be a section with keys, got true; did you mean `lora.enabled`?",
        ),
        ("log: [1]", "log: must be a section with keys, got a list"),
        (
            "schedule: {type: cosin}",
            "schedule.type: must be one of cosine, linear, constant, wsd, "
            'got "cosin"; did you mean `cosine`?',
        ),
        ("schedule: {type: 3}", "schedule.type: must be one of cosine, linear, constant, wsd, got 3"),
        (
            "schedule: {warmup_ratio: 2}",
            "schedule.warmup_ratio: must be a number of at least 0 and of at most 1, got 2",
        ),
        ("data: {eval: 1}", "data.eval: must be a list of paths, got 1"),
        (
            "data: {eval: {path: a, weigth: 1}}",
            "data.eval[0].weigth: unknown key; did you mean `data.eval[0].weight`?",
        ),
        ("data: {eval: [a, 3]}", "data.eval[1]: must be a path, or a section with `path`, got 3"),
        ("data: {eval: ''}", 'data.eval[0].path: must be a non-empty string, got ""'),
        ("data: {eval: {path: a, weight: 0}}", "data.eval[0].weight: must be a number above 0, got 0"),
        (
            "optimizer: {groups: [{learning_rate_ratio: 1}]}",
            "optimizer.groups[0].match: is required: a non-empty string. "
            "fnmatch pattern over parameter names. The first matching group applies.",
        ),
        (
            "optimizer: {groups: [{match: a}, {match: b, weight_decay: x}]}",
            'optimizer.groups[1].weight_decay: must be a number of at least 0 or null, got "x"',
        ),
    ],
)
def test_invalid_values(write: Write, line: str, message: str) -> None:
    section, _, value = line.partition(": ")
    write("base.yaml", MINIMAL)
    assert problems(write("run.yaml", f"extends: base.yaml\n\n{line}\n")) == [f"run.yaml:3: {message}"]
    assert problems(Path("base.yaml"), f"{section}={value}") == [f"command line: {message}"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimizer.learnin_rate", "did you mean `optimizer.learning_rate`?"),
        ("learning_rate", "did you mean `optimizer.learning_rate`?"),
        ("train.learning_rate", "did you mean `optimizer.learning_rate`?"),
        ("learning_rte", "did you mean `optimizer.learning_rate`?"),
        ("optimiser", "did you mean `optimizer`?"),
        ("train.checkpoint", "did you mean `checkpoint`?"),
        ("rank", "did you mean `lora.rank`?"),
        ("lora_rnk", "did you mean `lora.rank`?"),
        ("train.save_every", "did you mean `checkpoint.save_every`?"),
        (
            "max_seq_len",
            f"did you mean `data.max_length`? {MAX_LENGTH}",
        ),
        (
            "data.cutoff_len",
            f"did you mean `data.max_length`? {MAX_LENGTH}",
        ),
        ("lora_rank", "did you mean `lora.rank`? Rank of each adapter."),
        (
            "optimizer.zzz",
            "allowed here: learning_rate, weight_decay, beta1, beta2, epsilon, max_grad_norm, "
            "router_learning_rate_ratio, groups",
        ),
        (
            "zzz",
            "allowed here: task, model, lora, data, loss, dpo, optimizer, schedule, train, eval, parallel, "
            "kernels, checkpoint, log",
        ),
    ],
)
def test_unknown_keys(write: Write, key: str, hint: str) -> None:
    assert problems(write("run.yaml", MINIMAL), f"{key}=1") == [f"command line: {key}: unknown key; {hint}"]


def test_unknown_key_of_a_list_item(write: Write) -> None:
    text = MINIMAL + "optimizer:\n  groups:\n  - match: a\n    learning_rate_rtio: 2\n    lr: 3\n"
    assert problems(write("run.yaml", text)) == [
        "run.yaml:7: optimizer.groups[0].learning_rate_rtio: unknown key; "
        "did you mean `optimizer.groups[0].learning_rate_ratio`?",
        "run.yaml:8: optimizer.groups[0].lr: unknown key; "
        "allowed here: match, learning_rate_ratio, weight_decay",
    ]


def test_missing_keys(write: Write) -> None:
    model, output = problems(write("run.yaml", "\nlog:\n  every: 1\ntrain:\n  epochs: 1\ndata: {train: a}\n"))
    assert model.startswith("run.yaml:1: model.path: is required: a non-empty string. Directory of the")
    assert output.startswith("run.yaml:4: train.output_dir: is required: a non-empty string. Directory")


def test_malformed_overrides(write: Write) -> None:
    path = write("run.yaml", MINIMAL)
    example = "is not KEY=VALUE, such as optimizer.learning_rate=1e-4"
    assert problems(path, "log.every") == [f"command line: 'log.every' {example}"]
    assert problems(path, "=3") == [f"command line: '=3' {example}"]
    assert problems(path, "log..every=3") == [f"command line: 'log..every=3' {example}"]
    assert problems(path, "log.every=[1") == ["command line: log.every: its value is not valid YAML: [1"]
    assert problems(path, "model.path.x=3") == [
        "command line: model.path: must be a non-empty string, got a mapping"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  eval_every: 5",
            "run.yaml:4: train.eval_every: needs data.eval, which is empty",
        ),
        (
            "eval:\n  samples: 9",
            "run.yaml:4: eval.samples: needs data.eval, which is empty",
        ),
        (
            "eval:\n  best_metric: eval/loss",
            "run.yaml:4: eval.best_metric: needs train.eval_every; without it the run is evaluated only at the end",
        ),
        (
            "train:\n  profile_steps: [4, 2]",
            "run.yaml:4: train.profile_steps: must be the first and the last step; 4 is after 2",
        ),
        (
            "eval:\n  patience: 3",
            "run.yaml:4: eval.patience: needs eval.best_metric, for example eval/loss",
        ),
        (
            "eval:\n  min_delta: 0.1",
            "run.yaml:4: eval.min_delta: has no effect unless eval.patience is set",
        ),
        (
            "lora:\n  rank: 16",
            "run.yaml:4: lora.rank: has no effect while lora.enabled is false; "
            "remove it, or set lora.enabled: true",
        ),
        (
            "lora:\n  train_router: true",
            "run.yaml:4: lora.train_router: has no effect while lora.enabled is false; "
            "remove it, or set lora.enabled: true",
        ),
        (
            "data:\n  train: [{path: a, weight: 2}]",
            "run.yaml:4: data.train: weights have no effect with data.mix concat; set data.mix: weighted",
        ),
        (
            "parallel:\n  shard: parameters",
            "run.yaml:4: parallel.shard: parameters needs train.recompute: layers; otherwise the backward pass keeps "
            "the weights of every layer",
        ),
        (
            "data:\n  stop: all_exhausted",
            "run.yaml:4: data.stop: has no effect unless data.mix is interleave",
        ),
        (
            "data:\n  streaming: true",
            "run.yaml:4: data.streaming: needs train.max_steps, because the length of a stream is unknown",
        ),
        (
            "data:\n  buffer: 10",
            "run.yaml:4: data.buffer: has no effect unless data.streaming is true",
        ),
        (
            "data:\n  allow_private_urls: true",
            "run.yaml:4: data.allow_private_urls: is only used with data.allow_urls: true",
        ),
        (
            "data:\n  video_min_frames: 9\n  video_max_frames: 8",
            "run.yaml:4: data.video_min_frames: 9 is above data.video_max_frames, which is 8",
        ),
        (
            "schedule:\n  warmup_steps: 11\ntrain:\n  max_steps: 10",
            "run.yaml:4: schedule.warmup_steps: 11 warm-up steps are more than train.max_steps, which is 10; "
            "set it to 1, or to 0 with schedule.warmup_ratio: 0.1",
        ),
        (
            "schedule:\n  min_learning_rate: 1e-3\noptimizer:\n  learning_rate: 1e-4",
            "run.yaml:4: schedule.min_learning_rate: 0.001 is above optimizer.learning_rate, which is 0.0001",
        ),
        (
            "schedule:\n  min_learning_rate: 1e-3",
            "run.yaml:4: schedule.min_learning_rate: 0.001 is above optimizer.learning_rate, which is 1e-05",
        ),
        (
            "schedule:\n  warmup_steps: 1\n  warmup_ratio: 0.1",
            "run.yaml:5: schedule.warmup_ratio: cannot be combined with schedule.warmup_steps; "
            "set one of the two to 0",
        ),
        (
            "schedule:\n  decay_ratio: 0.2",
            "run.yaml:4: schedule.decay_ratio: is only used by schedule.type wsd, not by cosine",
        ),
        (
            "data:\n  max_pixels: 100\n  min_pixels: 200",
            "run.yaml:5: data.min_pixels: 200 is above data.max_pixels, which is 100",
        ),
        (
            "lora:\n  enabled: true\nloss:\n  balance_weight: 0.1",
            "run.yaml:6: loss.balance_weight: has no effect while LoRA freezes the routers; "
            "remove it, or set lora.train_router: true",
        ),
        (
            "loss:\n  orthogonal_weight: 0.1\nlora:\n  enabled: true",
            "run.yaml:4: loss.orthogonal_weight: has no effect while LoRA freezes the routers; "
            "remove it, or set lora.train_router: true",
        ),
        (
            "optimizer:\n  router_learning_rate_ratio: 0.1\nlora:\n  enabled: true",
            "run.yaml:4: optimizer.router_learning_rate_ratio: has no effect while LoRA freezes the "
            "routers; remove it, or set lora.train_router: true",
        ),
        (
            "lora:\n  enabled: true\n  train_router: true\nloss:\n  bias_update_rate: 1e-3",
            "run.yaml:7: loss.bias_update_rate: is not available with LoRA: adapters do not store the "
            "correction bias, so it would be lost",
        ),
        (
            "model: {freeze: [router]}\nloss:\n  z_weight: 1e-3",
            "run.yaml:5: loss.z_weight: has no effect while model.freeze contains router; remove one of the two",
        ),
        (
            "checkpoint: {save_every: 50, keep_every: 70}",
            "run.yaml:3: checkpoint.keep_every: 70 keeps checkpoints that are never saved; it must be a multiple of "
            "checkpoint.save_every, which is 50",
        ),
        (
            # The default, by someone who wants adapters.
            "lora: {rank: 8}",
            "run.yaml:3: lora.rank: has no effect while lora.enabled is false; remove it, or set lora.enabled: true",
        ),
        (
            "model:\n  quantize: int4",
            "run.yaml:4: model.quantize: int4 needs adapters, since quantized weights cannot be trained; "
            "set lora.enabled: true, or model.quantize: none",
        ),
        (
            "loss:\n  orthogonal_mode: decoupled",
            "run.yaml:4: loss.orthogonal_mode: has no effect unless loss.orthogonal_weight is above 0",
        ),
        (
            "loss:\n  z_weight: -1",
            "run.yaml:4: loss.z_weight: must be a number of at least 0, got -1",
        ),
        (
            "model: {dtype: bfloat16}\nparallel: {device: cpu}",
            "run.yaml:3: model.dtype: bfloat16 is not available with parallel.device cpu, "
            "because Paddle has no bfloat16 CPU kernels; use float32 or auto",
        ),
    ],
)
def test_conflicts(write: Write, text: str, message: str) -> None:
    write("base.yaml", MINIMAL)
    assert problems(write("run.yaml", f"extends: base.yaml\n\n{text}\n")) == [message]


def test_no_eval_data(write: Write) -> None:
    assert load_config(write("run.yaml", MINIMAL), ["data.eval=null"]).data.eval == []


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("dpo: {beta: 0.2}", "dpo.beta", "set task: dpo"),
        ("data: {share_prompt: false}", "data.share_prompt", "set task: dpo"),
        ("task: dpo\ndata: {loss_on: each_turn}", "data.loss_on", "trains whole answers"),
        ("task: dpo\nloss: {normalization: token_balanced}", "loss.normalization", "mean over pairs"),
        (
            "task: dpo\ndpo: {simpo_gamma: 1}",
            "dpo.simpo_gamma",
            "only used by dpo.loss simpo, not by sigmoid",
        ),
        (
            "task: dpo\ndpo: {loss: ipo, label_smoothing: 0.1}",
            "dpo.label_smoothing",
            "sigmoid, robust or simpo, not by ipo",
        ),
        ("task: dpo\ndpo: {loss: simpo, reference: copy}", "dpo.reference", "must be auto or none"),
        ("task: dpo\ndpo: {reference: none}", "dpo.reference", "needs a reference model"),
        ("task: dpo\ndpo: {reference: cached}\ndata: {cache: false}", "dpo.reference", "data.cache"),
        (
            "task: dpo\ndpo: {reference: cached}\ndata: {streaming: true}\ntrain: {max_steps: 2}",
            "dpo.reference",
            "data.streaming",
        ),
    ],
)
def test_conflicts_of_preference_settings(write: Write, text: str, key: str, words: str) -> None:
    write("base.yaml", MINIMAL)
    (problem,) = problems(write("run.yaml", f"extends: base.yaml\n\n{text}\n"))
    assert f" {key}: " in problem and words in problem


def test_valid_preference_settings(write: Write) -> None:
    config = load_config(write("run.yaml", "task: dpo\n" + MINIMAL + "dpo: {loss: orpo, reference: none}\n"))
    assert (config.task, config.dpo.loss) == ("dpo", "orpo")
    smoothed = "task: dpo\n" + MINIMAL + "dpo: {loss: robust, label_smoothing: 0.1, reference: cached}\n"
    assert load_config(write("other.yaml", smoothed)).dpo.label_smoothing == 0.1


def test_router_losses_with_trained_routers(write: Write) -> None:
    losses = (
        "loss: {balance_weight: 0.1, z_weight: 0.1, orthogonal_weight: 0.1, orthogonal_mode: decoupled%s}\n"
    )
    lora = "lora: {enabled: true, train_router: true}\n"
    full = load_config(write("full.yaml", MINIMAL + losses % ", bias_update_rate: 1e-3"))
    assert full.loss.bias_update_rate == 1e-3
    assert load_config(write("lora.yaml", MINIMAL + lora + losses % "")).loss.balance_weight == 0.1


def test_a_conflict_names_the_location_of_its_first_key(write: Write) -> None:
    path = write("run.yaml", MINIMAL + "lora: {enabled: true, rank: 16}\n")
    assert problems(path, "lora.enabled=false") == [
        "run.yaml:4: lora.rank: has no effect while lora.enabled is false; "
        "remove it, or set lora.enabled: true"
    ]


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
        'run.yaml:2: train.epochs: must be a number above 0, got "many"',
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


EVALUATED = """\
model: {path: m}
data: {train: a.jsonl, eval: b.jsonl}
train: {output_dir: out, eval_every: 5}
eval:
  best_metric: METRIC
"""


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("exact_match", "must be one of eval/loss, eval/rewards/accuracy, .*got exact_match; "
         "did you mean `eval/exact_match`[?]"),
        ("eval/rouge", "must be one of .*eval/call_none, got eval/rouge; did you mean `eval/rouge_l`[?]"),
        ("accuracy of the model", "must be one of .*, eval/call_none, got accuracy of the model$"),
        ("eval/rouge_l", "eval/rouge_l needs generated answers; set eval.samples, for example to 50"),
        ("eval/rewards/margin", "eval/rewards/margin is only available with task dpo; use eval/loss"),
    ],
)  # fmt: skip
def test_invalid_best_metric(write: Write, metric: str, message: str) -> None:
    (problem,) = problems(write("run.yaml", EVALUATED.replace("METRIC", metric)))
    assert re.search(f"^run.yaml:5: eval.best_metric: {message}", problem), problem


def test_names_of_metrics_are_checked(write: Write) -> None:
    text = EVALUATED.replace("METRIC", "eval/loss") + "  samples: 4\n  metrics: [auto, rouge]\n"
    (problem,) = problems(write("run.yaml", text))
    assert problem.startswith("run.yaml:7: eval.metrics[1]: must be one of auto, exact_match, ")
    assert problem.endswith('got "rouge"; did you mean `rouge_l`?')
    (problem,) = problems(write("run.yaml", text.replace("[auto, rouge]", "3")))
    assert problem == "run.yaml:7: eval.metrics: must be a non-empty list of strings, got 3"
    config = load_config(write("run.yaml", text.replace("[auto, rouge]", "anls")))
    assert config.eval.metrics == ["anls"]
