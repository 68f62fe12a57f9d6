"""The learning rate of each step, as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from erniekit.config.choices import ScheduleType


@dataclass(frozen=True)
class Schedule:
    """Warm-up followed by a decay from `peak` towards `minimum`.

    Steps count from 0. With W warm-up steps of N:
    - warm-up (step < W): rate = peak * (step + 1) / W, so that the last warm-up step is at the peak;
    - afterwards rate = minimum + (peak - minimum) * m(t), with t = (step - W) / (N - W) in [0, 1):
      cosine m = (1 + cos(pi t)) / 2; linear m = 1 - t; constant m = 1 (`minimum` is not used);
      wsd (warm-up, stable, decay) m = 1 until the last D = round(decay_ratio * N) steps and there
      m = 1 - sqrt((step - (N - D)) / D) (Haegele et al. 2024, arXiv 2405.18392, section 4).
    Step N would be the first one at `minimum`, so no step of the run has a rate of exactly zero.
    """

    type: ScheduleType
    peak: float
    minimum: float
    total_steps: int
    warmup_steps: int = 0
    decay_ratio: float = 0.1

    @property
    def decay_steps(self) -> int:
        """The number of steps at the end in which wsd decays."""
        return round(self.decay_ratio * self.total_steps)

    def learning_rate(self, step: int) -> float:
        """The learning rate of one step, 0 <= step < total_steps."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.type == "constant":
            return self.peak
        return self.minimum + (self.peak - self.minimum) * self._multiplier(step)

    def _multiplier(self, step: int) -> float:
        if self.type == "wsd":
            decay = self.decay_steps
            past = step - (self.total_steps - decay)
            return 1.0 if past <= 0 else 1.0 - math.sqrt(min(1.0, past / decay))
        t = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return 0.5 * (1.0 + math.cos(math.pi * t)) if self.type == "cosine" else 1.0 - t

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint; Schedule(**as_dict) is equal."""
        return asdict(self)


def warmup_steps(total_steps: int, steps: int, ratio: float) -> int:
    """Warm-up in steps: `steps` unless it is 0, else `ratio` of all steps, rounded up."""
    # The small term keeps 0.1 * 30, which is 3.0000000000000004, at 3 steps.
    return steps or math.ceil(ratio * total_steps - 1e-9)
