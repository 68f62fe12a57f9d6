"""The loss on an eval set that quantizing an export costs."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from erniekit.config.choices import Dtype
from erniekit.display.text import counted
from erniekit.errors import DataError
from erniekit.evaluation.dataset import EvalDataset, find_files, make_plan
from erniekit.evaluation.evaluate import evaluate
from erniekit.export.export import ExportReport, merged_values
from erniekit.export.quantized import model_of, read_quantized_model
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.load import find_model
from erniekit.models.ernie import ErnieModel


def quantization_loss(report: ExportReport, files: Sequence[str], dtype: Dtype = "auto") -> list[list[str]]:
    """Loss and perplexity of the export before and after it was quantized, with a heading, for `format_table`.

    Each model is in memory by itself, in float32. dtype: that of the export. Raises DataError if no sample has a loss.
    """
    source = report.source
    found = find_model(source.checkpoint)
    encoder, text = found.encoder(), Detokenizer.from_checkpoint(found.directory)
    samples = EvalDataset(find_files(files, found.data), encoder, answers=False)
    plan = make_plan(samples, encoder.template, ())

    def row(name: str, model: ErnieModel) -> tuple[list[str], float]:
        overall = evaluate(model, encoder, text, samples, plan).scores.overall
        if overall.loss is None or overall.perplexity is None:
            raise DataError(f"{', '.join(files)}: no sample has a loss")
        return [name, f"{overall.loss:.4f}", f"{overall.perplexity:.4f}"], overall.loss

    before, first = row("before", model_of(source.config, merged_values(source, dtype), found.directory))
    gc.collect()
    after, last = row("after", read_quantized_model(Path(report.directory)))
    heading = [f"eval set of {counted(plan.samples, 'sample')}", "loss", "perplexity"]
    return [heading, before, after, ["difference", f"{last - first:+.4f}", ""]]
