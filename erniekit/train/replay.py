"""Computes saved rows again, row by row and sample by sample: `erniekit replay`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import Tensor, nn

from erniekit.checkpoint.download import locate_model
from erniekit.checkpoint.resize import ModelChanges
from erniekit.checkpoint.state import find_checkpoints, read_state
from erniekit.config import Config, ParallelConfig, load_config
from erniekit.config.choices import Device
from erniekit.data.encode.limits import enlarged_limits
from erniekit.data.load.batch import PackedBatch, split
from erniekit.data.media.patches import ImageSpec
from erniekit.display.text import counted, listed
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.mesh import local_mesh
from erniekit.errors import DataError
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.sft import SftObjective
from erniekit.objectives.totals import StepTotals, count_pairs, count_rows
from erniekit.optim.clip import gradient_norm
from erniekit.runtime import configure
from erniekit.train.build import build_objective
from erniekit.train.console import PlainConsole
from erniekit.train.model import prepare_model
from erniekit.train.run_context import RunContext
from erniekit.train.run_directory import CONFIG_FILE
from erniekit.train.saved_rows import load_rows

Log = Callable[[str], None]
_NAMED = 3


@dataclass(frozen=True)
class Computed:
    """Loss (mean over the trained tokens, or the pairs) and gradient norm of a row.

    first_bad: the first module in the forward pass with an output that is not finite; None if all are finite.
    """

    loss: float
    gradient_norm: float
    first_bad: str | None

    def __str__(self) -> str:
        bad = "" if self.first_bad is None else f"; not finite from {self.first_bad} on"
        return f"loss {self.loss:.4f}, gradient norm {self.gradient_norm:.4g}{bad}"


def replay_rows(
    directory: Path, checkpoint: Path | None, *, device: Device, threads: int | None, log: Log
) -> None:
    """Compute the rows in `directory`, which a run has saved, and log the results. See `erniekit replay --help`.

    checkpoint: a checkpoint of the run; None: the newest one before the step, or the base model. Raises DataError for
    a directory without rows, and CheckpointError and ConfigError if the run's model cannot be loaded.
    """
    saved = load_rows(directory)
    run = directory.absolute().parents[1]
    if not (run / CONFIG_FILE).is_file():
        raise DataError(
            f"{directory}: the rows are not in a run's directory: there is no {run / CONFIG_FILE}"
        )
    config = _for_one_process(locate_model(load_config(run / CONFIG_FILE)), device, threads)
    log(f"step {saved.step}: {saved.reason}")
    checkpoint = checkpoint or _checkpoint_before(run, saved.step)
    log(f"weights: {_describe_weights(checkpoint, config)}")
    model, objective = _load(config, checkpoint)
    for line in _bad_parameters(model):
        log(line)
    for number, row in enumerate(saved.rows, 1):
        samples = split(row)
        log(f"row {number}, {counted(len(samples), 'sample')}: {compute(model, objective, row)}")
        for sample in samples:
            images = sum(map(len, sample.media_names))
            size = f"{counted(len(sample.input_ids), 'token')}, {sample.num_loss_tokens:,} trained"
            size += f", {counted(images, 'image')}" if images else ""
            result = compute(model, objective, sample) if sample.num_loss_tokens else "no trained tokens"
            log(f"  {sample.sample_ids[0]} ({size}): {result}")


def compute(model: ErnieModel, objective: SftObjective | DpoObjective, row: PackedBatch) -> Computed:
    """Forward and backward pass of one row as a separate step. Gradients are cleared afterwards."""
    _, loss_tokens, text, vision = count_rows([row]).tolist()
    pairs, chosen_tokens = count_pairs([row]).tolist()
    totals = StepTotals(loss_tokens, len(row.input_ids), (text, vision), pairs, chosen_tokens)
    with _watched(model) as outputs:
        output = objective(row, totals)
        watched = [(name, paddle.isfinite(tensor).all()) for name, tensor in outputs]
    output.total.backward()
    flags = paddle.stack([flag for _, flag in watched]).tolist()
    bad = [name for (name, _), is_finite in zip(watched, flags, strict=True) if not is_finite]
    trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    norm = gradient_norm(parameter.grad for parameter in trained if parameter.grad is not None)
    for parameter in trained:
        parameter.clear_gradient(False)
    return Computed(output.loss_sum.item() / (pairs or loss_tokens), norm, bad[0] if bad else None)


def _load(config: Config, checkpoint: Path | None) -> tuple[ErnieModel, SftObjective | DpoObjective]:
    """The model and the loss of a run, without dropout."""
    parallel = config.parallel
    device = configure(
        parallel.device,
        parallel.threads,
        config.train.seed,
        kernels=config.kernels.backend,
        attention=config.kernels.attention,
        deterministic=config.train.deterministic,
    )
    context = RunContext(config, device, DistributedContext(local_mesh()), PlainConsole())
    changes = ModelChanges(*enlarged_limits(config.model))
    image_spec = None
    if ErnieConfig.from_dir(config.model.directory).vision is not None:
        data = config.data
        image_spec = ImageSpec.from_checkpoint(config.model.directory, data.min_pixels, data.max_pixels)
    prepared = prepare_model(config, context.dtype, image_spec, checkpoint, _quiet, changes=changes)
    objective = build_objective(context, prepared, [])
    prepared.model.eval()
    return prepared.model, objective


@contextmanager
def _watched(model: ErnieModel) -> Iterator[list[tuple[str, Tensor]]]:
    """The output of each module of `_modules`, in the order of the forward pass."""
    outputs: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Layer, object, Tensor | tuple[Tensor, ...]], None]:
        def add(layer: nn.Layer, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs.append((name, (output[0] if isinstance(output, tuple) else output).detach()))

        return add

    handles = [layer.register_forward_post_hook(watch(name)) for name, layer in _modules(model)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _modules(model: ErnieModel) -> list[tuple[str, nn.Layer]]:
    found: list[tuple[str, nn.Layer]] = [("the embedding", model.model.embed_tokens)]
    if model.config.vision is not None:
        blocks = model.vision_model.blocks
        found += [("the patch embedding", model.vision_model.patch_embed)]
        found += [(f"vision block {number}", block) for number, block in enumerate(blocks)]
        found += [("the resampler", model.model.resampler_model)]
    found += [(f"decoder layer {number}", layer) for number, layer in enumerate(model.model.layers)]
    return [*found, ("the final norm", model.model.norm)]


def _bad_parameters(model: ErnieModel) -> list[str]:
    """A line with the weights that are not finite; empty if there are none."""
    names, flags = [], []
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            names.append(name)
            flags.append(paddle.isfinite(parameter).all())
    bad = [name for name, finite in zip(names, paddle.stack(flags).tolist(), strict=True) if not finite]
    return [f"weights that are not finite: {listed(bad, _NAMED)}"] if bad else []


def _checkpoint_before(run: Path, step: int) -> Path | None:
    found = (found.path for found in find_checkpoints(run) if found.problem is None and found.step < step)
    return next(found, None)


def _describe_weights(checkpoint: Path | None, config: Config) -> str:
    if checkpoint is None:
        return f"{config.model.path}, the base model: the run has no checkpoint before the step"
    return f"{checkpoint}, after step {read_state(checkpoint).step}"


def _for_one_process(config: Config, device: Device, threads: int | None) -> Config:
    parallel = ParallelConfig(device=device, threads=threads)
    return config.model_copy(update={"parallel": parallel})


def _quiet(line: str) -> None:
    """Ignore the description of the model, which the run has logged."""
