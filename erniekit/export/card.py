"""The model card of a pushed model: what it was made from, as far as the run and the files say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from erniekit.checkpoint.state import TrainerState
from erniekit.local_files import read_json_lines
from erniekit.models.config_keys import Family

Kind = Literal["model", "paddle", "adapter", "paddle-adapter", "gguf"]
"""What a directory holds: a model in the layout hub or transformers, or what its name says."""

# Names of libraries on the Hub. Baidu's own -Paddle releases have this one.
_LIBRARIES: dict[Kind, str] = {
    "model": "transformers",
    "paddle": "PaddlePaddle",
    "adapter": "peft",
    "paddle-adapter": "PaddlePaddle",
    "gguf": "gguf",
}
_FORMS: dict[Kind, str] = {
    "model": "",
    "paddle": " in the layout of the -Paddle releases",
    "adapter": " for PEFT",
    "paddle-adapter": " for Baidu's ERNIEKit and PaddleFormers",
    "gguf": " in GGUF, for llama.cpp",
}
_SECTIONS = ("model", "lora", "loss", "dpo", "optimizer", "train")
# Settings of the machine that trained.
_LOCAL = ("output_dir", "directory", "revision", "peak_tflops", "profile_steps")
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# The first words of licences -> their names on the Hub.
_LICENCES = (("Apache License", "apache-2.0"), ("MIT License", "mit"))
_HUB_DATA = "hub:"


@dataclass(frozen=True)
class Artifact:
    """What a card describes. model_type: that of config.json; quantized: whether weights are rounded to few bits."""

    kind: Kind
    family: Family
    model_type: str
    quantized: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether it needs its base model."""
        return self.kind in ("adapter", "paddle-adapter")

    def relation(self, trained: bool) -> str:
        """`base_model_relation` of the Hub."""
        if self.is_adapter:
            return "adapter"
        return "quantized" if not trained and (self.quantized or self.kind == "gguf") else "finetune"


@dataclass(frozen=True)
class RunFacts:
    """A run: the state of its checkpoint, and the last metrics of each name that it logged, with their steps."""

    state: TrainerState
    metrics: Mapping[str, tuple[float, int]]

    @property
    def hub_base(self) -> str | None:
        """The base model, if it is a repository of the Hub: runs record its commit."""
        return self.state.base_model if self.state.config["model"].get("revision") else None


def read_metrics(log: Path, last_step: int) -> dict[str, tuple[float, int]]:
    """The last value up to a step, and its step, of the loss and every eval metric in a run's log.jsonl.

    {} without a log.
    """
    found: dict[str, tuple[float, int]] = {}
    if log.is_file():
        for entry in read_json_lines(log):
            if entry.get("step", 0) > last_step:
                continue
            for name, value in entry.items():
                if name == "train/loss" or (name.startswith("eval/") and name != "eval/seconds"):
                    found[name] = (float(value), int(entry["step"]))
    return found


def find_licence(directories: Iterable[Path]) -> str | None:
    """The licence of a base model by its name on the Hub, from its card or its licence file; None if neither says."""
    for directory in directories:
        card = directory / "README.md"
        if card.is_file() and (front := _FRONT.match(_text(card))):
            try:
                stated = (yaml.safe_load(front[1]) or {}).get("license")
            except (yaml.YAMLError, AttributeError):
                stated = None
            if isinstance(stated, str):
                return stated
        for file in sorted(directory.glob("LICENSE*")):
            start = _text(file)[:400]
            for words, name in _LICENCES:
                if words in start:
                    return name
    return None


def model_card(
    name: str,
    artifact: Artifact,
    run: RunFacts | None,
    base: str | None,
    licence: str | None,
) -> str:
    """The text of README.md.

    name: the repository; base: the base model on the Hub, None: as the run names it.
    """
    from huggingface_hub import ModelCardData

    hub_base = base or (None if run is None else run.hub_base)
    shown_base = hub_base or (None if run is None else _shown(run.state.base_model))
    sources = [] if run is None else run.state.config["data"]["train"]
    paths = [source["path"] if isinstance(source, dict) else source for source in sources]
    datasets = [path.removeprefix(_HUB_DATA).split(":")[0] for path in paths if path.startswith(_HUB_DATA)]
    tags = ["erniekit", artifact.model_type]
    if run is not None:
        tags.append(str(run.state.config["task"]))
    if artifact.is_adapter:
        tags.append("lora")
    if artifact.kind == "gguf":
        tags.append("gguf")
    data = ModelCardData(
        base_model=hub_base,
        base_model_relation=None if hub_base is None else artifact.relation(run is not None),
        license=licence,
        library_name=_LIBRARIES[artifact.kind],
        pipeline_tag="image-text-to-text" if artifact.family == "vl" else "text-generation",
        tags=tags,
        datasets=datasets or None,
    )
    # Without a run nothing says whether the model was trained.
    kind = "An adapter" if artifact.is_adapter else "A model" if run is None else "A fine-tuned model"
    origin = "" if shown_base is None else f" from {shown_base}"
    lines = [f"# {name.partition('/')[2]}", "", f"{kind}{_FORMS[artifact.kind]}, made with erniekit{origin}."]
    if run is not None:
        lines += [
            "",
            *_training(run, artifact.is_adapter),
            "",
            *_data(run, paths),
            *_evaluation(run),
            "",
            *_configuration(run),
        ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _training(run: RunFacts, adapter: bool) -> list[str]:
    state, lora = run.state, run.state.config["lora"]
    method = "all weights"
    if lora["enabled"]:
        method = f"LoRA of rank {lora['rank']}" + ("" if adapter else ", merged")
        quantize = state.config["model"].get("quantize", "none")
        method += "" if quantize == "none" else f"; the base was in {quantize} during training"
    rows = [
        ("task", state.config["task"]),
        ("method", method),
        ("steps", f"{state.step:,}"),
        ("tokens", f"{state.tokens:,}, {state.loss_tokens:,} of them trained"),
        ("erniekit", state.erniekit_version),
    ]
    return ["## Training", "", *_table(("", ""), rows)]


def _data(run: RunFacts, paths: list[str]) -> list[str]:
    weights = [
        source.get("weight", 1.0) if isinstance(source, dict) else 1.0
        for source in run.state.config["data"]["train"]
    ]
    rows = [(_shown(path), f"{weight:g}") for path, weight in zip(paths, weights, strict=True)]
    return ["## Data", "", *_table(("source", "weight"), rows)]


def _evaluation(run: RunFacts) -> list[str]:
    if not run.metrics:
        return []
    rows = [(name, f"{value:.6g}", f"{step:,}") for name, (value, step) in sorted(run.metrics.items())]
    return [
        "",
        "## Metrics",
        "",
        "The last values that the run logged up to this checkpoint.",
        "",
        *_table(("metric", "value", "step"), rows),
    ]


def _configuration(run: RunFacts) -> list[str]:
    config = run.state.config
    kept = {name: _portable(config[name]) for name in _SECTIONS if name in config}
    if run.hub_base is not None:
        kept["model"] |= {"path": run.hub_base, "revision": config["model"]["revision"]}
    if not config["lora"]["enabled"]:
        kept["lora"] = {"enabled": False}
    if config["task"] != "dpo":
        kept.pop("dpo", None)
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    return ["## Configuration", "", "```yaml", text.rstrip(), "```"]


def _portable(value: Any) -> Any:
    """Settings without places of the machine that trained: names of files instead of their paths."""
    if isinstance(value, dict):
        return {
            key: _portable(inner) for key, inner in value.items() if key not in _LOCAL and inner is not None
        }
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    return _shown(value) if isinstance(value, str) and "/" in value else value


def _shown(path: str) -> str:
    """A data set of the Hub, or the name of a file or directory."""
    return path if path.startswith(_HUB_DATA) else Path(path.rstrip("/")).name


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
