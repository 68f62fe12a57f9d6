"""Compare the peak memory of small trainings on CPU processes with the memory plan.

    python -m tools.bench.plan_memory [--cases NAME ...] [--list]

Each case is a model with random weights, trained for a step in processes that `erniekit train` would start. Measured
is the peak of a process's resident memory, minus what it held before it built the model: the kernel's own high-water
mark, which is reset there. So the interpreter, the libraries and the data are not part of it, and load on the machine
does not change it. The plan is that of `erniekit plan` for float32 on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_MIB = 2**20
_STEPS = 1
_PORT = 29950
_RESET_PEAK = "5"  # of /proc/PID/clear_refs, see proc(5)


@dataclass(frozen=True)
class Case:
    """A training. sizes: of the model, over those of its shape; settings: of the run; documents: tokens of each."""

    name: str
    shape: str
    sizes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    length: int = 1024
    documents: int = 512
    vocab: int = 8192

    @property
    def has_images(self) -> bool:
        """Whether its data has images."""
        return self.shape == "tiny-vl"


_DENSE = (
    "hidden_size=512",
    "intermediate_size=1536",
    "num_hidden_layers=10",
    "num_attention_heads=8",
    "num_key_value_heads=2",
)
_MOE = (
    "hidden_size=512", "intermediate_size=1536", "num_hidden_layers=5", "num_attention_heads=8",
    "num_key_value_heads=2", "moe_num_experts=16", "moe_intermediate_size=384", "moe_num_shared_experts=1",
)  # fmt: skip
_VL = (
    "hidden_size=512", "intermediate_size=1536", "num_hidden_layers=5", "num_attention_heads=4",
    "num_key_value_heads=2", "moe_num_experts=[8,8]", "moe_intermediate_size=[384,128]", "moe_num_shared_experts=1",
    "vision_config.depth=4", "vision_config.hidden_size=256", "vision_config.num_heads=4",
)  # fmt: skip
_LORA = {"lora.enabled": True, "lora.rank": 16}
_LAYERS = {"train.recompute": "layers"}
CASES = (
    Case("dense/full", "tiny-dense", _DENSE),
    Case("dense/full/recompute", "tiny-dense", _DENSE, _LAYERS),
    Case("dense/lora", "tiny-dense", _DENSE, _LORA),
    Case("dense/full/rows", "tiny-dense", _DENSE, {"train.rows_per_step": 2}),
    Case("dense/long", "tiny-dense", _DENSE, _LAYERS, length=4096, documents=4096),
    Case("moe/full", "tiny-moe", _MOE),
    Case("moe/full/recompute", "tiny-moe", _MOE, _LAYERS),
    Case("moe/lora", "tiny-moe", _MOE, _LORA),
    Case("moe/qlora", "tiny-moe", _MOE, {**_LORA, "model.quantize": "int8"}),
    Case("vl/full", "tiny-vl", _VL),
    Case("vl/full/recompute", "tiny-vl", _VL, _LAYERS),
    Case("vl/lora", "tiny-vl", _VL, _LORA),
    Case("dense/full/2", "tiny-dense", _DENSE, {"train.rows_per_step": 2}, 2),
    Case("dense/full/2/optimizer", "tiny-dense", _DENSE, {"train.rows_per_step": 2, "parallel.shard": "optimizer"}, 2),
    Case("moe/full/2/expert", "tiny-moe", _MOE, {"train.rows_per_step": 2, "parallel.expert": 2}, 2),
    Case("vl/lora/2/gradients", "tiny-vl", _VL, {**_LORA, "train.rows_per_step": 2, "parallel.shard": "gradients"}, 2),
    Case(
        "dense/full/4/parameters", "tiny-dense", _DENSE,
        {**_LAYERS, "train.rows_per_step": 4, "parallel.shard": "parameters"}, 4,
    ),
    Case("dense/lora/2/context", "tiny-dense", _DENSE, {**_LORA, "parallel.context": 2}, 2),
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=[case.name for case in CASES], help="names of cases")
    parser.add_argument("--list", action="store_true", help="print the names of all cases")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _train(*arguments.child)
    if arguments.list:
        print("\n".join(case.name for case in CASES))
        return
    print("| case | processes | predicted, MiB | measured, MiB | ratio |\n|---|---|---|---|---|")
    for case in CASES:
        if case.name in arguments.cases:
            found = measure(case)
            print(
                f"| `{case.name}` | {case.processes} | {found['predicted'] / _MIB:.0f} | "
                f"{found['measured'] / _MIB:.0f} | {found['predicted'] / found['measured']:.2f} |",
                flush=True,
            )


def measure(case: Case) -> dict[str, Any]:
    """Predicted and measured bytes of the process with the highest peak."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _prepare(case, directory)
        children = [_start(case, directory, rank) for rank in range(case.processes)]
        for child in children:
            output, _ = child.communicate()
            if child.returncode:
                raise SystemExit(f"{case.name}: {output[-3000:]}")
        results = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(case.processes)]
    return max(results, key=lambda result: result["measured"])


def _prepare(case: Case, directory: Path) -> None:
    """Write model, data and configuration."""
    from erniekit.create.create import create_model

    text = directory / "text.jsonl"
    text.write_text("".join(json.dumps({"text": _text(500, seed)}) + "\n" for seed in range(40)))
    create_model(case.shape, directory / "model", [text], vocab_size=case.vocab, overrides=case.sizes)
    data = directory / "data.jsonl"
    samples = [
        _chat(seed, case) if case.has_images else {"text": _text(case.length * 2, seed)} for seed in range(8)
    ]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    settings = {
        "model.path": str(directory / "model"),
        "data.train": str(data),
        "data.max_length": case.length,
        "data.workers": 0,
        "data.cache": False,
        "train.output_dir": str(directory / "run"),
        "train.max_steps": _STEPS,
        "parallel.device": "cpu",
        "parallel.threads": 1,
        "log.tensorboard": False,
        **({} if case.has_images else {"data.format": "text"}),
        **case.settings,
    }
    (directory / "run.json").write_text(json.dumps({"settings": settings, "documents": case.documents}))
    (directory / "run.yaml").write_text("{}\n")


def _text(words: int, seed: int) -> str:
    import numpy as np

    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    return " ".join("".join(syllables[n] for n in rng.integers(0, len(syllables), 3)) for _ in range(words))


def _chat(seed: int, case: Case) -> dict[str, Any]:
    """An image of about half of the document's tokens, and a text."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    side = int((case.documents // 2) ** 0.5) * 28
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    question = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    answer = {"role": "assistant", "content": _text(case.documents // 5, seed)}
    return {"messages": [{"role": "user", "content": question}, answer]}


def _start(case: Case, directory: Path, rank: int) -> subprocess.Popen[str]:
    from erniekit.distributed.worker import Worker, worker_environment

    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1000000"}
    if case.processes > 1:
        worker = Worker(rank, case.processes, rank, case.processes, ("127.0.0.1", _PORT + os.getpid() % 1000))
        environment |= worker_environment(worker, None)
    arguments = [str(directory / "run.yaml"), str(directory / "run.json"), str(directory / f"{rank}.json")]
    command = [sys.executable, "-W", "ignore", "-m", "tools.bench.plan_memory", "--child", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def _train(file: str, run: str, result: str) -> None:
    """Train, and write what was predicted and measured before the first checkpoint."""
    from erniekit import runtime

    # Freed blocks go back to the system, so that what is resident is in use.
    runtime.tune_malloc = lambda: True
    runtime.prepare_environment()
    from paddle.base import core

    from erniekit.config import load_config
    from erniekit.train import build, checkpointer, model
    from erniekit.train.run import run_training

    described = json.loads(Path(run).read_text())
    overrides = [f"{key}={json.dumps(value)}" for key, value in described["settings"].items()]
    before: dict[str, int] = {}
    prepare, plan = build.prepare_model, model.plan_training
    found: dict[str, Any] = {}

    def prepared(*arguments: Any, **options: Any) -> Any:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        before["resident"] = _status("VmRSS")
        before["tensors"] = core.host_memory_stat_current_value("Allocated", 0)
        return prepare(*arguments, **options)

    def planned(*arguments: Any, **options: Any) -> Any:
        found["plan"] = plan(*arguments, **options)
        return found["plan"]

    def saved(self: Any, *_: Any, **__: Any) -> None:
        memory = found["plan"].memory
        tensors = core.host_memory_stat_peak_value("Allocated", 0) - before["tensors"]
        parts = {key: value for key, value in asdict(memory).items() if key.endswith("_bytes")}
        values = {"predicted": memory.total_bytes, "measured": _status("VmHWM") - before["resident"]}
        Path(result).write_text(json.dumps({**values, "tensors": tensors, **parts}))
        sys.stdout.flush()
        os._exit(0)

    build.prepare_model, model.plan_training = prepared, planned
    checkpointer.Checkpointer.save = saved  # type: ignore[method-assign]
    run_training(load_config(Path(file), overrides))


def _status(key: str) -> int:
    """A number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
