"""Write docs/metrics.md from the glossary in erniekit/train/metric_names.py.

    python -m tools.docs.metrics

A test compares the page with the glossary, and tests of runs compare the glossary with what they log.
"""

from __future__ import annotations

from pathlib import Path

from erniekit.train.metric_names import GROUPS, MetricGroup

TARGET = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
INTRODUCTION = """# Metrics
<!-- Written by tools/docs/metrics.py from erniekit/train/metric_names.py. -->

A run writes its metrics, under the names below, to

- `log.jsonl` in the run's directory: one JSON object per line, with `step`, `time` (seconds since 1970) and, for
  training metrics, `epoch` (epochs done, as a fraction). A resumed run drops the lines after its checkpoint, so no step
  is there twice. Lines with an `event`, such as `loss_spike`, describe what happened instead.
- TensorBoard (`log.tensorboard`): `tensorboard --logdir RUN/tensorboard`. The tab Custom Scalars has the charts by
  subject, with `train/loss` first. The tab Text has the settings and the first training samples with their trained
  tokens in bold. With `eval.samples`, the tab Images has answers under their images, and the tab Text all of them.
  Chinese characters in Images need a font such as Noto Sans CJK on the machine.
- `report.html` in the run's directory (`log.report`), at the end and after an interrupt: one page with curves, answers,
  data, settings and the next commands.
- Weights & Biases and SwanLab, see below.

Losses, rewards and log-probabilities use natural logarithms: their unit is the nat. A share is a number from 0 to 1.
All processes of a run log the same sums over all processes.
"""
TRACKERS = """
## Weights & Biases and SwanLab
`log.wandb` and `log.swanlab` are `true`, the name of a project, or a section with the keys in
[configuration.md](configuration.md#log):

```yaml
log:
  wandb: {project: my-project, name: first-run, mode: offline}
  swanlab: my-project
```

Their packages are not installed with erniekit: `pip install wandb` or `pip install swanlab`. The command says so before
it loads anything. Log in with the commands of the services (`wandb login`, `swanlab login`). With `mode: offline`,
files are written to the run's directory, and `wandb sync` or `swanlab sync` sends them later. `trackers.json` in the
run's directory holds the id of the run at each service, so that a resumed run continues it. Steps that a resumed run
computes again are logged again: Weights & Biases shows both values at the same step.

A service that fails, at the start or later, is reported once. It gets no more metrics, and the run goes on.
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(map(_section, GROUPS)) + TRACKERS


def _section(group: MetricGroup) -> str:
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in group.metrics]
    table = "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows])
    return f"\n## {group.title}\n{group.note}\n\n{table}\n"


if __name__ == "__main__":
    main()
