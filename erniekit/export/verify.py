"""Verification that engines can load a model directory, and that Paddle computes the same as transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from erniekit.checkpoint.hub import read_index
from erniekit.checkpoint.tensor_layouts import layout_of
from erniekit.errors import CheckpointError, ErnieKitError, VerifyError
from erniekit.export.check import INSTALL_TORCH, Check
from erniekit.export.checks import check_directory
from erniekit.export.engines.options import EngineOptions
from erniekit.export.quantized import read_quantization
from erniekit.local_files import missing_model
from erniekit.models.config import ErnieConfig


@dataclass(frozen=True)
class VerifyOptions:
    """What to check besides the directory itself.

    `base`: the base model. `source`: the run or checkpoint that was exported. `transformers`: compare with
    transformers; None: if torch is installed. `data`: a file of chats; both implementations answer the first `samples`,
    with `max_new_tokens` each. `reference` and `gradients`: stored outputs, see `erniekit.export.reference`.
    `engines`: engines to compare with; transformers is compared then only if it is named or `transformers` is set.
    """

    base: Path | None = None
    source: Path | None = None
    transformers: bool | None = None
    data: Path | None = None
    samples: int = 8
    max_new_tokens: int = 64
    reference: Path | None = None
    gradients: Path | None = None
    engines: EngineOptions | None = None


def verify_model(directory: str | Path, options: VerifyOptions) -> Iterator[Check]:
    """Check a model directory, yielding each result as soon as it is known.

    Raises VerifyError for invalid options, CheckpointError if the directory does not exist.
    """
    directory = Path(directory)
    _check_options(directory, options)
    failed = False
    for check in check_directory(directory, options.base):
        failed = failed or check.status == "FAIL"
        yield check
    if failed:
        yield Check("note", "nothing was computed, because a check above failed")
        return
    quantized = read_quantization(directory) is not None
    if options.source is not None and not quantized:
        from erniekit.export.source_check import check_source

        yield from _catch(check_source(directory, options.source))
    if options.engines is not None:
        from erniekit.export.engines.verify import verify_engines

        yield from _catch(verify_engines(directory, options.engines))
        if quantized or (not options.transformers and options.data is None):
            return
    if quantized:
        yield Check(
            "note",
            "nothing was computed: compare quantized weights in an engine, with --engine transformers (where "
            "compressed-tensors is installed) or --engine vllm",
        )
        return
    if options.reference is not None:
        yield from _catch(_check_reference(directory, options.reference, options.gradients))
    if options.transformers is False:
        yield Check("note", "not compared with transformers, as requested")
    elif layout_of(read_index(directory), ErnieConfig.from_dir(directory)) == "paddle":
        yield Check(
            "note",
            "not compared with transformers, which does not read the paddle layout: verify a conversion "
            "(`erniekit convert --to hub`)",
        )
    elif not has_torch():
        yield Check("note", f"not compared with transformers: torch is not installed ({INSTALL_TORCH})")
    else:
        from erniekit.export.verify_transformers import compare_with_transformers

        yield from _catch(
            compare_with_transformers(directory, options.data, options.samples, options.max_new_tokens)
        )


def has_torch() -> bool:
    """Whether torch, which transformers' models need, is installed."""
    return find_spec("torch") is not None


def _check_options(directory: Path, options: VerifyOptions) -> None:
    if not directory.is_dir():
        raise CheckpointError(missing_model(directory))
    if options.gradients is not None and options.reference is None:
        raise VerifyError("--gradients needs --reference")
    if options.data is not None and options.transformers is False:
        raise VerifyError("--data needs the comparison with transformers, which --no-transformers disables")
    if (options.transformers or options.data is not None) and not has_torch():
        raise VerifyError(f"comparing with transformers needs torch: {INSTALL_TORCH}")


def _catch(checks: Iterator[Check]) -> Iterator[Check]:
    """Turn an error that stops a part into a failed check."""
    try:
        yield from checks
    except ErnieKitError as error:
        yield Check("FAIL", str(error))


def _check_reference(directory: Path, npz: Path, gradients: Path | None) -> Iterator[Check]:
    from erniekit.export.reference import (
        GRADIENT_TOLERANCE,
        LOGITS_TOLERANCE,
        LOSS_TOLERANCE,
        compare_with_reference,
    )

    report = compare_with_reference(directory, npz, gradients)
    compared = [(f"{npz.name}: logits differ, in norm, by", report.logits_relative, LOGITS_TOLERANCE)]
    if report.loss_relative is not None:
        compared.append((f"{npz.name}: loss differs, relative, by", report.loss_relative, LOSS_TOLERANCE))
    if report.gradient_worst is not None:
        name, error = report.gradient_worst
        text = f"{npz.name}: gradients of {len(report.names_checked)} parameters, worst {name}, differ by"
        compared.append((text, error, GRADIENT_TOLERANCE))
    for text, error, tolerance in compared:
        yield Check("ok" if error <= tolerance else "FAIL", f"{text} {error:.2g} (allowed {tolerance:g})")
