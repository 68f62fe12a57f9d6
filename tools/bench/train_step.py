"""Time and profile a training step of a configuration, and the same step in transformers on torch.

    python tools/bench/train_step.py [CONFIG] [--steps 20] [--no-peer]

The default CONFIG is the quickstart's (after `make quickstart`, which creates its model). Both sides train all weights
in float32 with AdamW on the same documents: packed into one sequence in erniekit, padded to the longest document in
transformers. They take turns, so the ratio is valid even if the speed of the machine drifts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from erniekit import runtime

runtime.prepare_environment()

import numpy as np
import paddle

from erniekit.checkpoint.weights import load_model
from erniekit.config import load_config
from erniekit.data.load.batch import PackedBatch
from erniekit.kernels.cross_entropy import chunked_cross_entropy
from erniekit.models.attention import DocumentAttention
from erniekit.models.ernie import ErnieModel
from erniekit.models.rope import decoder_rotation
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import ModalityIndex
from erniekit.objectives.device_batch import row_inputs
from erniekit.objectives.sft import SftObjective
from erniekit.objectives.totals import StepTotals, count_rows
from erniekit.optim.adamw import AdamW
from erniekit.optim.clip import clip_scale, gradient_norm
from erniekit.train.inputs import load_inputs
from erniekit.vl_checkpoint import CLIP_MEAN, CLIP_STD

LEARNING_RATE = 1e-4
Step = Callable[[], None]
Side = Callable[[], Step]  # makes its model and returns its step
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "digits.yaml"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, nargs="?", default=QUICKSTART, help="a training configuration")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per side")
    parser.add_argument("--no-peer", action="store_true", help="skip torch")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    runtime.configure("cpu", config.parallel.threads, config.train.seed)
    inputs = load_inputs(config, print)
    batch = inputs.train.next_row()
    inputs.close()
    sides: dict[str, Side] = {
        "erniekit": partial(ours, Path(config.model.path), batch, config.loss.chunk_tokens)
    }
    if not arguments.no_peer:
        sides["transformers on torch"] = partial(peer, Path(config.model.path), batch)
    times = take_turns_apart(sides, arguments.steps)
    tokens = len(batch.input_ids)
    print(f"\none row of {tokens} tokens, {len(batch.sample_ids)} documents, {len(batch.grid_thw)} images")
    for name, seconds in times.items():
        print(f"{name:24}{seconds * 1e3:8.1f} ms per step{tokens / seconds:10,.0f} tokens/s")
    if len(times) == 2:
        first, second = times.values()
        print(f"{'erniekit / torch':24}{second / first:8.2f} times the tokens per second")
    model = load_model(config.model.path)
    model.train()
    print_shares(model, batch, config.loss.chunk_tokens, arguments.steps)


def ours(directory: Path, batch: PackedBatch, chunk: int) -> Step:
    """A step as `erniekit.train.trainer` takes it."""
    runtime.configure("cpu", None, seed=0)
    model = load_model(directory)
    model.train()
    return our_step(model, batch, chunk)


def our_step(model: ErnieModel, batch: PackedBatch, chunk: int) -> Step:
    """Forward, backward and update of all weights of `model`."""
    objective = SftObjective(model, chunk)
    _, loss_tokens, text, vision = count_rows([batch]).tolist()
    totals = StepTotals(loss_tokens, len(batch.input_ids), (text, vision))
    named = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    optimizer = AdamW(named)

    def step() -> None:
        objective(batch, totals).total.backward()
        update(optimizer)

    return step


def update(optimizer: AdamW) -> None:
    """Norm, clipping and AdamW."""
    optimizer.step(LEARNING_RATE, clip_scale(gradient_norm(optimizer.gradients()), 1.0))
    optimizer.clear_gradients()


def peer(directory: Path, batch: PackedBatch) -> Step:
    """The same step with transformers' model and torch's fused AdamW."""
    import torch
    import transformers

    from erniekit.export.layouts import transformers_config
    from erniekit.models.config import ErnieConfig

    torch.set_num_threads(runtime.usable_cores())
    config = transformers_config(ErnieConfig.from_dir(directory), "F32")
    model = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        directory, config=transformers.Ernie4_5_VLMoeConfig(**config), dtype=torch.float32
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    arguments = padded(batch, model.config.image_token_id)
    tensors = {name: torch.tensor(value) for name, value in arguments.items()}

    def step() -> None:
        model(**tensors).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def padded(batch: PackedBatch, image_token: int) -> dict[str, np.ndarray]:
    """A packed row as a batch padded on the right, in the names that transformers' models take."""
    bounds = list(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True))
    shape = (len(bounds), max(stop - start for start, stop in bounds))
    ids, mask, modality = (np.zeros(shape, np.int64) for _ in range(3))
    labels = np.full(shape, -100, np.int64)
    for row, (start, stop) in enumerate(bounds):
        length = stop - start
        ids[row, :length] = batch.input_ids[start:stop]
        mask[row, :length] = 1
        modality[row, :length] = batch.modality[start:stop]
        # Here labels are shifted already; transformers shifts them itself.
        labels[row, 1:length] = batch.labels[start : stop - 1]
    area = batch.patches.shape[1] // 3
    mean = np.repeat(np.array(CLIP_MEAN, np.float32), area)
    std = np.repeat(np.array(CLIP_STD, np.float32), area)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "mm_token_type_ids": (ids == image_token).astype(np.int32),
        "moe_mm_token_type_ids": modality.astype(np.int32),
        "pixel_values": (batch.patches / np.float32(255) - mean) / std,
        "image_grid_thw": batch.grid_thw.astype(np.int64),
    }


def take_turns_apart(sides: dict[str, Side], count: int) -> dict[str, float]:
    """Median seconds of each side's step, every side in a process of its own, in turns of at most five steps.

    In one process, or in shorter turns, the two libraries' idle threads spin on the cores that the other needs.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, side in sides.items():
        pipes[name], far = context.Pipe()
        context.Process(target=serve, args=(far, side), daemon=True).start()
    times: dict[str, list[float]] = {name: [] for name in sides}
    steps = min(5, count)
    for turn in range(-(-count // steps) + 1):
        for name, pipe in pipes.items():
            pipe.send(steps)
            measured = pipe.recv()
            # The first turn warms up.
            times[name] += measured if turn else []
    for pipe in pipes.values():
        pipe.send(0)
    return {name: statistics.median(values) for name, values in times.items()}


def serve(pipe: Connection, side: Side) -> None:
    """Answer each number received with the seconds of that many steps, until it is 0."""
    step = side()
    while count := pipe.recv():
        pipe.send([timed(step) for _ in range(count)])


def timed(step: Step) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def take_turns(steps: dict[str, Step], count: int) -> dict[str, float]:
    """Median seconds of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    warmup = min(3, count)
    for turn in range(count + warmup):
        for name, step in steps.items():
            seconds = timed(step)
            if turn >= warmup:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def print_shares(model: ErnieModel, batch: PackedBatch, chunk: int, count: int) -> None:
    """Time each part by itself, forward and backward, on inputs of the step's size; the rest is what is left."""
    layers = list(model.model.layers)
    tokens, hidden = len(batch.input_ids), model.config.hidden_size
    x = trained(paddle.randn([tokens, hidden]))
    index = ModalityIndex(batch.modality)
    loss_rows = trained(paddle.randn([batch.num_loss_tokens, hidden]))
    labels = paddle.to_tensor(batch.labels[batch.labels != -100])
    rotation = decoder_rotation(batch.position_ids, model.config)
    attend = DocumentAttention(batch.cu_seqlens, causal=True, heads=model.config.num_attention_heads)
    mixtures = [layer.mlp for layer in layers if isinstance(layer.mlp, MoeLayer)]
    named = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    optimizer = AdamW(named)

    def attention() -> None:
        for layer in layers:
            layer.self_attn(x, rotation, attend).sum().backward()

    def experts() -> None:
        for layer in mixtures:
            layer(x, index)[0].sum().backward()

    parts: dict[str, Step] = {
        "whole step": our_step(model, batch, chunk),
        "attention": attention,
        "experts": experts,
        "head and loss": lambda: chunked_cross_entropy(
            loss_rows, model.output_weight, labels, chunk
        ).backward(),
        "optimizer": lambda: update(optimizer),
    }
    if len(batch.grid_thw):
        patches = model.upload(row_inputs(batch)).patches
        parts["vision"] = lambda: model.vision_features(patches).sum().backward()
    times = take_turns(parts, count)
    whole = times.pop("whole step")
    times["all else"] = whole - sum(times.values())
    print("share of the step (norms, residuals, dense layers and embeddings are `all else`):")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"  {name:16}{seconds / whole:7.1%}")


def trained(tensor: paddle.Tensor) -> paddle.Tensor:
    """The tensor, asking for a gradient."""
    tensor.stop_gradient = False
    return tensor


if __name__ == "__main__":
    main()
