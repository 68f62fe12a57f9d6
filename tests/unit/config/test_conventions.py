"""Conventions of shells, other trainers and other YAML readers: supported, or rejected by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from erniekit.config import Config, dump_config, load_config
from erniekit.config.choices import ALL_LINEAR
from erniekit.errors import ConfigError

Write = Callable[[str, str], Path]
MINIMAL = "model: {path: m}\ndata: {train: a.jsonl}\ntrain: {output_dir: out}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STORE", "/store")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    return str(tmp_path / "home")


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def paths_of(config: Config) -> list[str | None]:
    data = config.data
    sources = [source.path for source in (*data.train, *data.eval)]
    return [config.model.path, config.train.output_dir, data.cache_dir, *sources]


def test_every_path_of_a_file_is_expanded(write: Write, home: str) -> None:
    text = """\
model: {path: ~/base}
data:
  train: [~/a.jsonl, {path: "${STORE}/b-$$x.jsonl"}, "hub:owner/name", price$usd.jsonl]
  eval: $STORE/e.jsonl
  cache_dir: /x/${STORE}
train: {output_dir: "${HOME}/run"}
"""
    config = load_config(write("run.yaml", text))
    assert paths_of(config) == [
        f"{home}/base", f"{home}/run", "/x//store",
        f"{home}/a.jsonl", "/store/b-$x.jsonl", "hub:owner/name", "price$usd.jsonl", "/store/e.jsonl",
    ]  # fmt: skip
    # The saved configuration does not depend on the variables.
    again = load_config(write("saved.yaml", dump_config(config)))
    assert again == config


def test_every_path_of_an_override_is_expanded(write: Write, home: str) -> None:
    overrides = ["model.path=~/m", "train.output_dir=$HOME/x", "data.train=[~/a,$STORE/b]", "data.eval=~/e"]
    config = load_config(write("run.yaml", MINIMAL), [*overrides, "data.cache_dir=~/c"])
    assert paths_of(config) == [f"{home}/m", f"{home}/x", f"{home}/c", f"{home}/a", "/store/b", f"{home}/e"]


def test_a_tilde_alone_is_null_in_yaml(write: Write) -> None:
    path = write("run.yaml", MINIMAL.replace(" out", " ~"))
    assert "run.yaml:3: train.output_dir: must be a non-empty string, got null" in error(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("${NOWHERE}/x", "the environment variable NOWHERE is not set"),
        ("a/$NOWHERE/x", "the environment variable NOWHERE is not set"),
        ("${EMPTY}/x", "the environment variable EMPTY is empty"),
        ("${oc.env:HOME}", "${oc.env:HOME} is not the name of a variable"),
        ("${STORE:-/tmp}", "is not the name of a variable"),
        ("${}", "is not the name of a variable"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name is not the home directory of a user"),
    ],
)
def test_errors_of_expansion_name_the_line(write: Write, home: str, path: str, words: str) -> None:
    text = f"model: {{path: m}}\ntrain: {{output_dir: out}}\ndata:\n  train:\n  - a\n  - '{path}'\n"
    problem = error(write("run.yaml", text))
    assert problem.startswith(f"run.yaml:6: data.train[1].path: {path}: ") and words in problem
    for key in ("model.path", "train.output_dir", "data.cache_dir"):
        assert error(write("run.yaml", MINIMAL), f"{key}={path}").startswith(f"command line: {key}: {path}: ")


def test_variables_in_flow_collections_need_quotes(write: Write) -> None:
    hint = 'inside { } or [ ], quote text with ${...}: "${HOME}/x"'
    assert hint in error(write("run.yaml", "model: {path: ${HOME}/m}\n"))
    assert hint in error(write("run.yaml", MINIMAL), "data.train=[${HOME}/a]")
    assert "quote" not in error(write("run.yaml", MINIMAL), "data.train=[a")


def test_extends_is_expanded(write: Write, home: str) -> None:
    write(f"{home}/base.yaml", MINIMAL)
    assert load_config(write("run.yaml", "extends: ~/base.yaml\n")).model.path == "m"
    assert load_config(write("run.yaml", 'extends: ["${HOME}/base.yaml"]\n')).model.path == "m"
    assert "run.yaml:4: extends: ${NOWHERE}/b.yaml: the environment variable NOWHERE" in error(
        write("run.yaml", MINIMAL + 'extends: "${NOWHERE}/b.yaml"\n')
    )


def test_numbers_of_other_trainers(write: Write) -> None:
    text = """\
model: {path: m}
data: {train: a, shuffle: no, max_length: 1e3}
train: {output_dir: o, epochs: 3.0, max_steps: 100.0, seed: 7.0, recompute: "True"}
log: {tensorboard: off}
checkpoint: {save_every: 5e2}
"""
    config = load_config(write("run.yaml", text))
    assert (config.train.epochs, config.train.max_steps, config.train.seed) == (3, 100, 7)
    assert (config.data.max_length, config.checkpoint.save_every) == (1000, 500)
    assert isinstance(config.data.max_length, int)
    assert (config.data.shuffle, config.train.recompute, config.log.tensorboard) == (False, "layers", False)
    assert load_config(write("run.yaml", text), ["train.epochs=1.5"]).train.epochs == 1.5


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("all", list(ALL_LINEAR)),
        ("all-linear", list(ALL_LINEAR)),
        ('[all, "*.spatial_linear.*"]', [*ALL_LINEAR, "*.spatial_linear.*"]),
        ("'q_proj,v_proj'", ["q_proj", "v_proj"]),
        ("'q_proj, all'", ["q_proj", *(name for name in ALL_LINEAR if name != "q_proj")]),
        ("o_proj", ["o_proj"]),
    ],
)
def test_targets_of_other_trainers(write: Write, written: str, meant: list[str]) -> None:
    config = load_config(write("run.yaml", MINIMAL + f"lora: {{enabled: true, targets: {written}}}\n"))
    assert config.lora.targets == meant


def test_invalid_targets(write: Write) -> None:
    path = write("run.yaml", MINIMAL + "lora: {enabled: true, targets: [all, 3]}\n")
    assert "lora.targets[7]: must be a non-empty string, got 3" in error(path)
    assert "must be a non-empty string" in error(path, "lora.targets='q_proj,,v_proj'")


MERGED = """\
defaults: &defaults
  seed: 7
  epochs: 2
rates:
  slow: &slow {learning_rate: 1e-6, weight_decay: 0.2}
  decay: &decay
    weight_decay: 0.3
    <<: *slow
    beta1: 0.8
length: &length 512
model: {path: m}
data: {train: a, max_length: *length}
train:
  seed: 9
  <<: *defaults
  output_dir: out
optimizer:
  <<: [*decay, *slow]
"""


def test_merge_keys(write: Write) -> None:
    config = load_config(write("run.yaml", MERGED))
    # An explicit key wins, wherever it is; in a list of anchors the first wins.
    assert (config.train.seed, config.train.epochs, config.train.output_dir) == (9, 2, "out")
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.learning_rate, optimizer.beta1) == (0.3, 1e-6, 0.8)
    assert config.data.max_length == 512


def test_merge_keys_in_lists_and_at_the_top(write: Write) -> None:
    text = """\
all: &all
  model: {path: m}
  data: {train: [&source {path: a, format: text}, {<<: *source, path: b}]}
<<: *all
train: {output_dir: out}
"""
    config = load_config(write("run.yaml", text))
    assert [(source.path, source.format) for source in config.data.train] == [("a", "text"), ("b", "text")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log:\n  <<: {evry: 1}\n", "run.yaml:5: log.evry: unknown key; did you mean `log.every`?"),
        (
            "x: &x\n  every: zero\nlog:\n  <<: *x\n",
            'run.yaml:5: log.every: must be a whole number above 0, got "zero"',
        ),
        ("log:\n  <<: *x\n", "run.yaml:5: not valid YAML: found undefined alias 'x'"),
        ("log:\n  <<: 3\n", "run.yaml:5: log.<<: must be a mapping or a list of mappings"),
        ("log: &x\n  <<: *x\n", "run.yaml:4: log: contains itself"),
        (
            "x: &x {every: 1}\nlog:\n  <<: *x\n  <<: *x\n",
            "run.yaml:7: log.<<: is set twice, first on line 6",
        ),
        ("x: &x {every: 1}\n", "run.yaml:4: x: unknown key"),
        ('log: {"<<": 1}\n', "run.yaml:4: log.<<: unknown key"),
    ],
)
def test_invalid_merge_keys(write: Write, text: str, message: str) -> None:
    assert message in error(write("run.yaml", MINIMAL + text))
