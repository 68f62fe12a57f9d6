"""Converting a model directory from one layout to another, without training or adapters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from erniekit.checkpoint.download import model_directory
from erniekit.checkpoint.hub import DEFAULT_SHARD_BYTES, TensorInfo, read_array, read_index
from erniekit.checkpoint.model_files import check_tensors, refuse_undownloaded
from erniekit.checkpoint.state import check_weights
from erniekit.checkpoint.tensor_layouts import hub_index, layout_of, stored_tensors
from erniekit.config.choices import CheckpointLayout
from erniekit.display.progress import OnProgress, no_progress
from erniekit.errors import CheckpointError
from erniekit.export.config_files import main_dtype
from erniekit.export.export import write_files
from erniekit.export.layouts import DTYPE_NAMES
from erniekit.export.output import check_output, replacing
from erniekit.export.source import resolve_source
from erniekit.export.writer import WeightsWriter
from erniekit.generation.load import find_checkpoint
from erniekit.lora.adapters import is_adapter_directory
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, parameter_specs


@dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion: `nbytes` of weights in `tensors` tensors of the new layout."""

    source: Path
    before: CheckpointLayout
    directory: Path
    layout: CheckpointLayout
    tensors: int
    shards: int
    nbytes: int
    dtypes: dict[str, int]
    warnings: tuple[str, ...]


def convert_model(
    path: str | Path,
    output: str | Path,
    layout: CheckpointLayout,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: OnProgress = no_progress,
) -> ConversionReport:
    """Write a model directory, a checkpoint of all weights or a repository of the Hub in another layout to `output`.

    Every tensor keeps its values and its element type; those that training leaves out (multi-token prediction, a copy
    of tied weights) are converted, too. Of a checkpoint, chat template and processor are set as an export does it.
    `output` appears when it is complete. Raises CheckpointError if the input is an adapter, incomplete or does not fit
    its config.json, and if the output is not empty or the disk too small.
    """
    output = Path(output)
    check_output(output)
    source = find_checkpoint(model_directory(Path(path)))
    if is_adapter_directory(source):
        raise CheckpointError(
            f"{source}: it holds an adapter, not a model; `erniekit export` merges it into its base model"
        )
    refuse_undownloaded(source)
    check_weights(source)
    found = resolve_source(source)
    config = found.config
    on_disk = read_index(source)
    tensors = hub_index(on_disk, config)
    check_tensors(tensors, config, str(source))
    specs = _specs(tensors, config)
    writer = WeightsWriter(layout, stored_tensors(specs, layout, config), max_shard_bytes, progress)
    with replacing(output, writer.nbytes) as target:
        extra = any("mtp_" in spec.name for spec in specs)
        warnings = write_files(found, target, layout, main_dtype(specs), has_mtp=extra)
        shards = writer.write(target, lambda name: read_array(tensors[name]), ahead=True)
    return ConversionReport(
        source=source,
        before=layout_of(on_disk, config),
        directory=output,
        layout=layout,
        tensors=len(writer.stored),
        shards=shards,
        nbytes=writer.nbytes,
        dtypes=dict(Counter(tensor.spec.dtype for tensor in writer.stored)),
        warnings=tuple(warnings),
    )


def describe_conversion(report: ConversionReport) -> list[str]:
    """The report as lines of text."""
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(report.dtypes.items()))
    files = "1 file" if report.shards == 1 else f"{report.shards} files"
    return [
        f"converted {report.source} ({report.before} layout) to {report.directory} ({report.layout} layout)",
        f"  {report.tensors} tensors ({kinds}), {report.nbytes / 1e6:,.1f} MB in {files}",
        *(f"  note: {warning}" for warning in report.warnings),
    ]


def _specs(tensors: dict[str, TensorInfo], config: ErnieConfig) -> list[TensorSpec]:
    """The tensors of the model in the order of its layers, then those that it does not need."""
    needed = [replace(spec, dtype=tensors[spec.name].dtype) for spec in parameter_specs(config)]
    names = {spec.name for spec in needed}
    others = [TensorSpec(name, info.dtype, info.shape) for name, info in tensors.items() if name not in names]
    specs = needed + others
    odd = next((spec for spec in specs if spec.dtype not in DTYPE_NAMES), None)
    if odd is not None:
        raise CheckpointError(
            f"{tensors[odd.name].file}: {odd.name} has the element type {odd.dtype}, which config.json of a model "
            "cannot state; convert it with `erniekit export --dtype`"
        )
    return specs
