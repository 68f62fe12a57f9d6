"""Write docs/recipes.md, the table of examples/configs with the memory that the plan expects.

    python tools/docs/recipes.py

A test compares the page with the files, and checks that every file fits the GPUs that it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from erniekit.config import load_config
from erniekit.create.shapes import released_architecture
from erniekit.models.config import ErnieConfig
from erniekit.train.memory import MemoryPlan
from erniekit.train.planner.gpus import GIB, GPUS
from erniekit.train.planner.job import Job

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "recipes.md"
CONFIGS = ROOT / "examples" / "configs"
MODELS = (
    "ERNIE-4.5-0.3B",
    "ERNIE-4.5-21B-A3B",
    "ERNIE-4.5-21B-A3B-Thinking",
    "ERNIE-4.5-VL-28B-A3B",
    "ERNIE-4.5-VL-28B-A3B-Thinking",
    "ERNIE-4.5-300B-A47B",
    "ERNIE-4.5-VL-424B-A47B",
)
_HEAD = re.compile(r"# (ERNIE-[\w.-]+): (.+), packed sequences of ([\d,]+) tokens\.\n# GPUs: (.+)\n")
_MACHINES = re.compile(r"(?:(\d+) nodes of )?(\d+) x (\d+) GB")
INTRODUCTION = """# Recipes
<!-- Written by tools/docs/recipes.py from examples/configs. -->

Every file in `examples/configs` is a short configuration that extends a file in `examples/configs/base`. Extend one
from your own file, or copy it, and set `data.train`:

```bash
erniekit train examples/configs/ERNIE-4.5-0.3B/sft/run_sft_lora_8k.yaml data.train=mine.jsonl --dry-run --no-weights
```

- **GPUs**: the smallest number that the file fits. More GPUs need no edits; their number must be a multiple of the
  file's `parallel.expert` and `parallel.context`. With fewer but larger GPUs, lower the degree: the two-GPU LoRA of
  VL-28B-A3B runs on one 141 GB GPU with `parallel.expert=1`. With `N nodes`, run the command on every node with
  `--nodes N --node-rank R --master HOST:PORT`.
- **Memory**: peak per GPU by the [memory plan](plan.md), in GiB. For vision-language models the plan assumes sequences
  of image tokens only. A run may use 92% of a GPU's memory, which is 79.1 GiB on an 80 GB card, 44.4 GiB on 48 GB and
  139.8 GiB on 141 GB. `erniekit plan FILE --gpus 8 --gpu h100-80gb` shows the parts.
- **Learning rates** come from ERNIEKit's configurations or documentation; a comment beside each says which.
- Files for sequences too long for one GPU set `parallel.context`, so several GPUs share each packed sequence.
- CPU processes test these layouts with small models. No file was run with released weights on the GPUs it names.
"""


@dataclass(frozen=True)
class Machines:
    """Nodes of GPUs of one size. size: GB of a GPU, as its name says."""

    nodes: int
    gpus: int
    size: int

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return self.nodes * self.gpus

    @property
    def bytes(self) -> int:
        """The memory of the smallest GPU of this size, which is less than the size."""
        return min(gpu.memory for gpu in GPUS if gpu.name.endswith(f"-{self.size}gb"))

    def __str__(self) -> str:
        nodes = "" if self.nodes == 1 else f"{self.nodes} nodes of "
        return f"{nodes}{self.gpus} x {self.size} GB"


@dataclass(frozen=True)
class Recipe:
    """A file of examples/configs, with what its first lines say."""

    path: Path
    model: str
    method: str
    length: int
    machines: tuple[Machines, ...]

    @property
    def name(self) -> str:
        """The path below examples/configs."""
        return self.path.relative_to(CONFIGS).as_posix()


@cache
def recipes() -> tuple[Recipe, ...]:
    """All recipes, by model in the order of `MODELS`. Raises ValueError for a file without the first two lines."""
    found = [_read(path) for path in sorted(CONFIGS.glob("ERNIE-*/*/*.yaml"))]
    return tuple(sorted(found, key=lambda recipe: (MODELS.index(recipe.model), recipe.name)))


def _read(path: Path) -> Recipe:
    head = _HEAD.match(path.read_text(encoding="utf-8"))
    machines = (
        [Machines(int(n or 1), int(g), int(s)) for n, g, s in _MACHINES.findall(head[4])] if head else []
    )
    if head is None or head[4] != ", or ".join(map(str, machines)):
        raise ValueError(f"{path}: the first lines must be the title and '# GPUs: N x SIZE GB'")
    return Recipe(path, head[1], head[2], int(head[3].replace(",", "")), tuple(machines))


def architecture_of(recipe: Recipe) -> ErnieConfig:
    """The architecture of a recipe's model, as released."""
    found = released_architecture(recipe.model)
    assert found is not None, recipe.model
    return found


def plan_memory(recipe: Recipe, machines: Machines) -> MemoryPlan:
    """The memory of one process of a recipe."""
    config, architecture = load_config(recipe.path), architecture_of(recipe)
    # Recipes of one shape often differ in names only.
    names = {"model": {"path"}, "data": {"train", "template", "loss_on"}, "train": {"output_dir"}}
    key = (repr(architecture), config.model_dump_json(exclude=names), machines)
    if key not in _PLANS:
        job = Job(config, architecture, machines.processes, machines.bytes)
        _PLANS[key] = job.plan.memory
    return _PLANS[key]


_PLANS: dict[tuple[str, str, Machines], MemoryPlan] = {}


def document() -> str:
    """The whole page."""
    return "".join([INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    for model, group in groupby(recipes(), key=lambda recipe: recipe.model):
        yield f"\n## {model}\n| configuration | method | length | GPUs | memory per GPU |\n|---|---|---|---|---|\n"
        for recipe in group:
            memory = [f"{plan_memory(recipe, m).total_bytes / GIB:.0f}" for m in recipe.machines]
            link = f"[{recipe.path.parent.name}/{recipe.path.name}](../examples/configs/{recipe.name})"
            gpus = " or ".join(map(str, recipe.machines))
            method = recipe.method[0].upper() + recipe.method[1:]
            yield f"| {link} | {method} | {recipe.length:,} | {gpus} | {' or '.join(memory)} |\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
