"""Run erniekit's model code on a GPU over torch, and transformers with PEFT beside it. Needs torch and Triton.

    python -m tools.gpu.rehearsal.run
    python -m tools.gpu.rehearsal.run --cases vl/text/full vl/text/experts --tokens 32768 --budget 500
    python -m tools.gpu.rehearsal.run --device cpu --tiny        a trial of the scripts

Each case runs at two depths, with random weights that are the same on both sides. Half of the time is the peer's, which
runs in a process of its own afterwards. See README.md for what the numbers are, and are not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .adapter import install
from .runner import parser, run_cases

OURS = "erniekit"
_BITS = {"none": 16, "int8": 8, "int4": 4}


def main() -> None:
    """Both sides, then a table."""
    arguments = parser(__doc__ or "")
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--kernels", default="auto", help="kernels.backend: auto, triton, paddle, plain")
    arguments.add_argument("--attention", default="auto", help="kernels.attention: auto, flashmask, flash")
    arguments.add_argument(
        "--documents",
        choices=("cudnn", "flash"),
        default="cudnn",
        help="attention of documents: cuDNN's, as the peer's on Hopper, or FlashAttention 2",
    )
    arguments.add_argument(
        "--quantize",
        choices=tuple(_BITS),
        default="none",
        help="model.quantize, with adapters; not the peer's",
    )
    arguments.add_argument("--forms", nargs="*", default=(), help="kernel=form, after --kernels")
    arguments.add_argument("--sides", choices=("both", "ours", "peer"), default="both")
    options = arguments.parse_args()
    begin, budget = time.monotonic(), options.budget
    if options.out is None:
        options.out = Path(tempfile.mkdtemp()) / "results.jsonl"
    if options.device == "gpu":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if options.sides != "peer":
        options.budget = budget / 2 if options.sides == "both" else budget
        _ours(options)
    if options.sides != "ours":
        _peer(options, budget - (time.monotonic() - begin))
    _table(options.out)


def _ours(options: argparse.Namespace) -> None:
    trial = options.device == "cpu"
    install(pretend_gpu=trial)
    from erniekit.kernels.choice import describe_forms, use_forms
    from erniekit.runtime import configure

    if trial:  # no Triton on a CPU
        configure("gpu", 1, 0, kernels="plain", attention="flashmask")
    else:
        configure("gpu", 1, 0, kernels=options.kernels, attention=options.attention)
    from .adapter.attention import use_documents
    from .ours import run

    use_documents(options.documents)
    with use_forms(**dict(form.split("=") for form in options.forms)):
        print(describe_forms("bfloat16"), flush=True)
        run_cases(OURS, partial(run, bits=_BITS[options.quantize]), options)


def _peer(options: argparse.Namespace, seconds: float) -> None:
    """In a process of its own: it needs the memory, and a Python without the adapter."""
    command = [sys.executable, "-m", "tools.gpu.rehearsal.peer", "--cases", *options.cases]
    command += [
        "--layers",
        *map(str, options.layers),
        "--budget",
        str(max(0.0, seconds)),
        "--out",
        str(options.out),
    ]
    command += ["--tokens", str(options.tokens), "--steps", str(options.steps), "--top", str(options.top)]
    command += ["--device", options.device] + ["--tiny"] * options.tiny
    command += ["--peer-masters"] * options.peer_masters
    torch.cuda.empty_cache()
    root = str(Path(__file__).parents[3])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    }
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        print(f"the peer ended with {done.returncode}", flush=True)


def _table(file: Path) -> None:
    """Both sides of every case."""
    records = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    )
    cases: dict[str, dict[str, Any]] = {}
    for record in records:
        if "full" in record:
            side = "ours" if record["side"] == OURS else "peer"
            cases.setdefault(record["case"], {})[side] = record
    names = (
        "case",
        "loss",
        "ms a layer",
        "tokens/s",
        "GiB",
        "state",
        "gradients",
        "launches",
        "waits",
        "host ms",
    )
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for case, sides in cases.items():
        ours, peer = sides.get("ours"), sides.get("peer")
        shown = [
            " / ".join("-" if record is None else form.format(pick(record)) for record in (ours, peer))
            for form, pick in (
                ("{:.4f}", lambda record: record["depths"][-1]["loss"]),
                ("{:.1f}", lambda record: record["full"]["layer_compute"]),
                ("{:.1f}", lambda record: record["full"]["layer_busy"] - record["full"]["layer_update"]),
                ("{:.0f}", lambda record: record["full"]["rate"]),
                ("{:.0f}", lambda record: record["full"]["peak"]),
                ("{:.0f}", lambda record: record["full"]["state"]),
                ("{:.0f}", lambda record: record["full"]["gradients"]),
                ("{:.0f}", lambda record: record["full"]["launches"]),
                ("{:.0f}", lambda record: record["full"]["waits"]),
                ("{:.0f}", lambda record: record["full"]["host"]),
            )
        ]
        print(f"| {case} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
