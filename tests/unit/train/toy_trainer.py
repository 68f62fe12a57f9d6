"""A trainer of a model of one weight, with rows, a log and a checkpointer that tests can look into."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import paddle
from paddle import nn

from erniekit.interrupt import InterruptGuard
from erniekit.objectives.totals import StepTotals
from erniekit.optim.adamw import AdamW
from erniekit.optim.schedule import Schedule
from erniekit.train.checkpointer import Checkpointer
from erniekit.train.hooks.checkpoint import CheckpointHook
from erniekit.train.hooks.evaluation import EvaluationHook
from erniekit.train.hooks.logging import LoggingHook
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import Hook, Trainer, TrainerSettings


@dataclass(frozen=True)
class Row:
    """Stands in for a PackedBatch: the loss of each token is its value times the weight."""

    values: tuple[float, ...]
    name: str

    @property
    def input_ids(self) -> np.ndarray:
        return np.zeros(2 * len(self.values), np.int64)

    @property
    def modality(self) -> np.ndarray:
        """Half of the tokens are vision, rounded up."""
        return np.array([1, 0] * len(self.values), np.int8)

    @property
    def branches(self) -> np.ndarray:
        """No preference pairs."""
        return np.zeros((0, 2), np.int32)

    @property
    def num_loss_tokens(self) -> int:
        return len(self.values)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return (self.name,) if self.name else ()


@dataclass(frozen=True)
class Routing:
    """Stands in for a RowRouting."""

    tokens: int

    def expert_counts(self) -> dict[str, np.ndarray]:
        return {"layer_1/text": np.array([self.tokens, 0])}

    def router_sums(self) -> dict[str, float]:
        return {"z_loss/text": 0.5 * self.tokens}


@dataclass(frozen=True)
class Output:
    total: paddle.Tensor
    loss_sum: paddle.Tensor
    num_loss_tokens: int
    routing: Any = None
    pairs: Any = None


class Rows:
    """An endless source of the same rows, epoch after epoch; `epochs`: so many are wanted."""

    def __init__(self, rows: Sequence[Row], epochs: float | None) -> None:
        self.rows, self.drawn, self.epochs = rows, 0, epochs

    @property
    def is_over(self) -> bool:
        return self.epochs is not None and self.drawn / len(self.rows) >= self.epochs

    def next_row(self) -> Any:
        self.drawn += 1
        return self.rows[(self.drawn - 1) % len(self.rows)]

    def prefetch(self) -> None:
        """Nothing: the rows are in memory."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.drawn = saved["drawn"]


class Model(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.weight = self.create_parameter([1, 1], default_initializer=nn.initializer.Constant(1.0))

    def upload(self, row: Any, upload: Any) -> Any:
        return row

    def values(self, row: Any) -> paddle.Tensor:
        return nn.functional.dropout(paddle.to_tensor(row.values), 0.5, training=self.training)

    def forward(self, row: Any, totals: StepTotals | None = None) -> Output:
        loss = (self.weight * self.values(row)).sum()
        total = loss if totals is None else loss / totals.loss_tokens
        return Output(total, loss, row.num_loss_tokens, Routing(len(row.values)))


class Plain(Model):
    def values(self, row: Any) -> paddle.Tensor:
        return paddle.to_tensor(np.array(row.values, np.float32))


class Before:
    """An objective that calls a function with the totals before each row."""

    def __init__(self, objective: Any, function: Callable[[StepTotals | None], None]) -> None:
        self.objective, self.function = objective, function

    def upload(self, row: Any, upload: Any) -> Any:
        return row

    def __call__(self, row: Any, totals: StepTotals | None = None) -> Any:
        self.function(totals)
        return self.objective(row, totals)


class Log:
    """Takes the place of metrics writer and console."""

    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.lines: list[str] = []
        self.ended = 0

    def write(self, step: int, scalars: Mapping[str, float], **rest: Any) -> None:
        self.written.append((step, {**scalars, **{k: v for k, v in rest.items() if v is not None}}))

    def flush(self) -> None: ...

    def begin(self, done: int, total: int) -> None: ...

    def step(self, done: int, scalars: Mapping[str, float], epoch: float) -> None: ...

    def log(self, text: str) -> None:
        self.lines.append(text)

    def end(self) -> None:
        self.ended += 1


@dataclass(frozen=True)
class Saves:
    """Stands in for a Checkpointer."""

    steps: list[int]
    has_failed = False

    def save(self, progress: TrainerProgress, *, needed: bool = False) -> None:
        self.steps.append(progress.step)

    def before_update(self) -> None: ...

    def save_after_error(self, progress: TrainerProgress, *, is_begun: bool) -> None:
        if not is_begun:
            self.save(progress)

    def forget_lost_best(self, progress: TrainerProgress) -> None: ...

    def poll(self) -> None: ...

    def wait(self, *, needed: bool = False) -> None: ...

    def close(self) -> None: ...


ROWS = [Row((1.0, 2.0, 3.0), "a:1"), Row((10.0,), "a:2"), Row((4.0, 4.0), "b:1")]


def make(model: Model, rows: Sequence[Row] = ROWS, **changes: Any) -> tuple[Trainer, Log, list[int]]:
    """hooks: called before those for logging, evaluation and checkpoints."""
    log: Any = Log()
    saved: list[int] = []
    hooks: list[Hook] = [
        *changes.pop("hooks", ()),
        LoggingHook(
            log,
            log,
            changes.pop("log_every", 1),
            changes.pop("epoch", lambda: 0.5),
            changes.pop("peak_flops", None),
        ),
    ]
    evaluate, eval_every = changes.pop("evaluate", None), changes.pop("eval_every", None)
    if evaluate is not None:
        hooks.append(EvaluationHook(evaluate, eval_every, log, log))
    hooks.append(CheckpointHook(cast(Checkpointer, Saves(saved)), changes.pop("save_every", None), log))
    parts: Any = {
        "model": model,
        "objective": model,
        "optimizer": AdamW([("weight", model.weight)], weight_decay=0.0),
        "schedule": Schedule("constant", 0.1, 0.0, 100),
        "rows": Rows(rows, changes.pop("epochs", None)),
        "hooks": hooks,
        **{
            key: changes.pop(key)
            for key in ("count_flops", "dist", "progress", "nonfinite")
            if key in changes
        },
    }
    settings = {
        "total_steps": 4, "rows_per_step": 2, "max_length": 8, "max_grad_norm": 0.0, "seed": 1
    }  # fmt: skip
    return Trainer(settings=TrainerSettings(**{**settings, **changes}), **parts), log, saved


def run(trainer: Trainer) -> None:
    with InterruptGuard() as guard:
        trainer.train(guard)
