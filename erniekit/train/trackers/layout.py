"""The charts of a run by subject: TensorBoard's tab "Custom Scalars" and RUN/report.html show them in this order."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from erniekit.config import Config
from erniekit.config.choices import ANSWER_METRICS
from erniekit.moe.config import MoeConfig
from erniekit.objectives.totals import MODALITIES


@dataclass(frozen=True)
class Chart:
    """Lines in one chart.

    patterns: regular expressions for whole names of metrics; may_be_log: the report may use a logarithmic axis.
    """

    title: str
    patterns: tuple[str, ...]
    may_be_log: bool = False

    def lines(self, names: Collection[str]) -> list[str]:
        """The metrics among `names` that are lines of the chart, in its order."""
        return [name for pattern in self.patterns for name in names if re.fullmatch(pattern, name)]


@dataclass(frozen=True)
class Category:
    """Charts of one subject. closed: folded at first."""

    title: str
    charts: tuple[Chart, ...]
    closed: bool = False


def run_layout(config: Config, moe: MoeConfig | None, *, has_mfu: bool) -> list[Category]:
    """The charts of a run, without those that would stay empty. moe: of the model; has_mfu: MFU is logged."""
    evaluates, pairs = bool(config.data.eval), config.task == "dpo"
    modalities = () if moe is None else MODALITIES[: moe.num_modalities]
    losses = ("train/loss", *(["eval/loss"] if evaluates else []))
    loss = Chart("train/loss", losses, may_be_log=True)
    norm = Chart("train/gradient_norm", ("train/gradient_norm",), may_be_log=True)
    found = [Category("Loss", (loss, norm, _chart("train/learning_rate")))]
    if evaluates and config.eval.samples:
        found.append(Category("Answers", (Chart("scores of answers", ANSWER_METRICS),)))
    if pairs:
        names = ("rewards/accuracy", "rewards/margin")
        found.append(
            Category(
                "Preference",
                (
                    *(_chart(name, *([f"eval/{name}"] if evaluates else [])) for name in names),
                    Chart("rewards", ("rewards/chosen", "rewards/rejected")),
                    Chart("log-probabilities", ("logps/chosen", "logps/rejected")),
                    _chart("loss/preference"),
                    _chart("logps/kl"),
                ),
            )
        )
    found.append(
        Category(
            "Throughput" + (" and MFU" if has_mfu else ""),
            (
                _chart("train/tokens_per_second"),
                *([_chart("train/mfu")] if has_mfu else []),
                Chart("seconds per step", ("train/step_seconds", "train/data_seconds")),
                _chart("data/unused_positions"),
            ),
        )
    )
    found.append(Category("Memory", (Chart("memory, GiB", (r"memory/\w+",)),)))
    if modalities:
        figures = ("expert_load", "router/entropy", "router/dead_experts", "router/mean_cosine")
        found.append(
            Category(
                "Routers: minimum, mean and maximum over layers",
                tuple(
                    Chart(f"{figure}, {modality}", (rf"{figure}/{modality}/(min|mean|max)",))
                    for figure in figures
                    for modality in modalities
                ),
                closed=True,
            )
        )
    return found


def _chart(name: str, *more: str) -> Chart:
    return Chart(name, (name, *more))
