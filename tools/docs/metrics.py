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
  training metrics, `epoch` (epochs done, as a fraction). A resumed run removes the lines after its checkpoint, so no
  step appears twice. Lines with an `event`, such as `loss_spike`, have no metrics.
- TensorBoard (`log.tensorboard`): `tensorboard --logdir RUN/tensorboard`. The tab Custom Scalars has the charts by
  subject, with `train/loss` first. The tab Text has the settings and the first training samples, with trained tokens in
  bold. With `eval.samples`, the tab Images shows answers below their images, and the tab Text shows all answers.
  Chinese characters in Images need a font such as Noto Sans CJK on the machine.
- `report.html` in the run's directory (`log.report`), written when the run ends or is interrupted: one page with
  curves, answers, data, settings and the next commands.
- Weights & Biases and SwanLab, see below.

Losses, rewards and log-probabilities use natural logarithms, so their unit is the nat. A share is a number from 0 to 1.
With several processes, metrics cover all of them.
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

erniekit does not install their packages: `pip install wandb` or `pip install swanlab`. Log in with `wandb login` or
`swanlab login`. With `mode: offline`, files go to the run's directory, and `wandb sync` or `swanlab sync` sends them
later. `trackers.json` in the run's directory holds the run's id at each service, so a resumed run continues there.
Steps that it computes again are logged again: Weights & Biases shows both values at the same step.

If a service fails, at the start or later, the run reports it once, stops logging to it and continues.
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
