"""Compare the memory of processes under each `parallel.shard`, full and LoRA, with the plan.

    python tools/bench/shard.py [--processes 4] [--layers 24] [--hidden 640]

A dense model with random weights is trained for two steps on short texts. The result is the peak resident memory of the
largest process, minus the peak of the same run with a model of 1/100 of the size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from erniekit.config.choices import SHARDS
from erniekit.create.create import create_model

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4, help="CPU processes")
    parser.add_argument("--layers", type=int, default=24, help="decoder layers")
    parser.add_argument("--hidden", type=int, default=640, help="hidden size; the MLP is four times as wide")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        data = directory / "chats.jsonl"
        data.write_text("".join(json.dumps(_chat(number)) + "\n" for number in range(64)))
        large = _model(directory / "large", data, arguments.hidden, arguments.layers)
        small = _model(directory / "small", data, 64, 2)
        for lora in (False, True):
            for shard in SHARDS:
                base, _ = _peak(directory, small, data, arguments.processes, shard, lora)
                peak, plan = _peak(directory, large, data, arguments.processes, shard, lora)
                method = "LoRA" if lora else "full"
                print(f"{method:4} {shard:10} {peak - base:7.2f} GiB a process; plan: {plan}", flush=True)


def _chat(number: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"What comes after {number}?"}
    return {"messages": [question, {"role": "assistant", "content": f"{number + 1} comes after it."}]}


def _model(directory: Path, text: Path, hidden: int, layers: int) -> Path:
    overrides = [f"hidden_size={hidden}", f"intermediate_size={4 * hidden}", f"num_hidden_layers={layers}"]
    create_model("tiny-dense", directory, [text], seed=0, overrides=overrides)
    return directory


def _peak(
    directory: Path, model: Path, data: Path, processes: int, shard: str, lora: bool
) -> tuple[float, str]:
    """Largest peak of a process in GiB, and the line of the plan."""
    run = directory / f"{model.name}-{shard}-{lora}"
    settings = {
        "model.path": str(model),
        "data.train": str(data),
        "data.max_length": 128,
        "data.workers": 0,
        "lora.enabled": lora,
        "train.output_dir": str(run),
        "train.max_steps": 2,
        "train.rows_per_step": processes,
        "train.recompute": "layers",
        "parallel.shard": shard,
        # A copy of the checkpoint in memory is not part of the plan.
        "checkpoint.background": False,
        "parallel.threads": 1,
    }
    (directory / "run.yaml").write_text("{}\n")
    command = [sys.executable, "-m", "erniekit", "train", str(directory / "run.yaml")]
    command += ["--devices", f"cpu:{processes}", *(f"{key}={json.dumps(v)}" for key, v in settings.items())]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    logs = [run / "log.jsonl", *(run / "logs").glob("rank-*/log.jsonl")]
    peaks = [
        json.loads(line).get("memory/peak_gib", 0.0) for log in logs for line in log.read_text().splitlines()
    ]
    plan = next(line for line in finished.stdout.splitlines() if "memory of each" in line)
    return max(peaks), plan.partition(": ")[2].partition(";")[0]


if __name__ == "__main__":
    main()
