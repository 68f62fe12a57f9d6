"""The trainer and its hooks, on a model of one weight: totals, intervals, interrupts and errors."""

import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import paddle
import pytest
from paddle import nn

from erniekit.errors import DataError, ErnieKitError
from erniekit.evaluation.evaluator import EvaluationStopped, evaluate_loss
from erniekit.interrupt import InterruptGuard
from erniekit.objectives.totals import StepTotals
from erniekit.optim.adamw import AdamW
from erniekit.optim.schedule import Schedule
from erniekit.train.checkpointer import Checkpointer
from erniekit.train.hooks.checkpoint import CheckpointHook
from erniekit.train.hooks.evaluation import EvaluationHook
from erniekit.train.hooks.logging import LoggingHook
from erniekit.train.nonfinite import NonFinitePolicy
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import Hook, Trainer, TrainerSettings, seed_row


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

    def save_after_error(self, progress: TrainerProgress) -> None:
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


def test_the_loss_is_normalised_over_all_tokens_of_the_step() -> None:
    trainer, _, _ = make(Plain())
    metrics = trainer.train_step()
    # Rows of 3 and 1 tokens: (1 + 2 + 3 + 10) / 4, not the mean of the rows' means.
    assert metrics.loss_sum == 16.0
    assert metrics.loss_tokens == 4
    assert metrics.tokens == 8
    assert metrics.gradient_norm == 4.0
    assert trainer.progress == TrainerProgress(step=1, rows=2, tokens=8, loss_tokens=4)


def test_one_row_or_several_give_the_same_update() -> None:
    together, apart = Plain(), Plain()
    make(together, [Row((1.0, 2.0, 3.0, 10.0), "x")], rows_per_step=1)[0].train_step()
    make(apart)[0].train_step()
    assert together.weight.item() == apart.weight.item() != 1.0


def test_gradients_are_clipped_and_the_norm_is_that_before() -> None:
    trainer, _, _ = make(Plain(), max_grad_norm=0.5)
    scales = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda rate, scale: (scales.append(scale), step(rate, scale))  # type: ignore
    assert trainer.train_step().gradient_norm == 4.0
    assert scales == [0.5 / 4.0]
    assert trainer.optimizer.state_tensors()["weight.moment1"].item() == pytest.approx(0.05)
    assert trainer.model.weight.grad is None


def test_mfu_is_the_share_of_the_peak() -> None:
    trainer, log, _ = make(
        Plain(),
        [*ROWS, Row((1.0,), "")],
        rows_per_step=4,
        count_flops=lambda row: 1e9 * len(row.values),
        peak_flops=1e12,
        log_every=2,
    )
    run(trainer)
    # The row without a sample is not counted.
    assert [line["train/mfu"] for _, line in log.written] == [
        pytest.approx(6e9 / 1e12 / line["train/step_seconds"]) for _, line in log.written
    ]
    trainer, log, _ = make(Plain())
    run(trainer)
    assert not any("train/mfu" in line for _, line in log.written)


def test_epochs_end_the_run_with_a_shorter_step() -> None:
    trainer, log, saved = make(Plain(), epochs=1, total_steps=2)
    run(trainer)
    assert (trainer.progress.step, trainer.progress.rows) == (2, 3)
    assert [line["train/loss_tokens"] for _, line in log.written] == [4.0, 2.0]
    assert saved == [2]


def test_without_epochs_every_step_is_full() -> None:
    trainer, _, saved = make(Plain(), total_steps=3)
    run(trainer)
    assert (trainer.progress.step, trainer.progress.rows) == (3, 6)
    assert saved == [3]
    assert trainer.is_finished


def test_fewer_rows_than_planned_end_the_run_early() -> None:
    trainer, log, saved = make(Plain(), epochs=1, total_steps=5, log_every=4)
    run(trainer)
    assert trainer.progress.step == 2
    assert saved == [2]
    assert [step for step, _ in log.written] == [2]


def test_when_things_happen() -> None:
    evaluations: list[int] = []

    def evaluate(step: int, is_stopping: Any) -> dict[str, float]:
        evaluations.append(step)
        return {"eval/loss": 1.5}

    trainer, log, saved = make(
        Plain(), total_steps=7, log_every=3, eval_every=2, save_every=3, evaluate=evaluate, epoch=lambda: 0.25
    )
    run(trainer)
    assert [step for step, line in log.written if "train/loss" in line] == [3, 6, 7]
    assert evaluations == [2, 4, 6, 7]
    assert [step for step, line in log.written if "eval/loss" in line] == evaluations
    assert saved == [3, 6, 7]
    assert log.written[1][1]["epoch"] == 0.25
    assert log.ended == 1
    assert "step 7: eval/loss 1.5000  (0.0 s)" in log.lines


def test_the_last_step_is_saved_and_evaluated_once() -> None:
    evaluations: list[dict[str, float]] = []

    def evaluate(step: int, is_stopping: Any) -> dict[str, float]:
        evaluations.append({"eval/loss": 0.0})
        return evaluations[-1]

    trainer, _, saved = make(Plain(), eval_every=4, save_every=4, evaluate=evaluate)
    run(trainer)
    assert saved == [4]
    assert len(evaluations) == 1


def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint() -> None:
    trainer, _, saved = make(
        Plain(), evaluate=lambda step, is_stopping: pytest.fail("no evaluation after an interrupt")
    )

    def interrupt(totals: StepTotals | None) -> None:
        if trainer.progress.step == 1 and guard.requested is None:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.objective = Before(trainer.objective, interrupt)
    with InterruptGuard() as guard:
        trainer.train(guard)
    assert trainer.progress.step == 2
    assert saved == [2]
    assert guard.exit_status == 143
    assert not trainer.is_finished


def test_a_second_signal_stops_within_the_step_and_saves_nothing() -> None:
    trainer, log, saved = make(Plain())

    def interrupt(totals: StepTotals | None) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal must stop here")

    trainer.objective = Before(trainer.objective, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    assert saved == []
    assert log.ended == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(bad: float) -> None:
    model = Plain()
    trainer, log, saved = make(model, [ROWS[0], Row((1.0, bad), "bad.jsonl:7")])
    with pytest.raises(ErnieKitError, match=r"step 1: the loss is not a finite number.*bad\.jsonl:7\."):
        run(trainer)
    assert model.weight.item() == 1.0
    assert saved == []
    assert log.ended == 1


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    model = Plain()
    trainer, _, saved = make(model)
    model.weight.register_hook(lambda gradient: gradient * math.inf)
    message = r"step 1: the gradient norm is inf, in the gradients of weight, with the samples a:1, a:2\."
    with pytest.raises(ErnieKitError, match=message):
        run(trainer)
    assert model.weight.item() == 1.0
    assert saved == []


def test_a_step_that_is_not_finite_is_skipped() -> None:
    """Weight and optimizer are those of the other steps alone; the schedule and the rows go on."""
    bad = Row((1.0, math.nan), "bad.jsonl:7")
    lines: list[str] = []
    skipping, log, _ = make(
        Plain(),
        [ROWS[0], ROWS[1], bad, ROWS[2], ROWS[2], ROWS[0]],
        total_steps=3,
        nonfinite=NonFinitePolicy("skip", log=lines.append),
    )
    run(skipping)
    without, expected, _ = make(Plain(), [ROWS[0], ROWS[1], ROWS[2], ROWS[0]], total_steps=2)
    run(without)
    for trainer in (skipping, without):
        assert trainer.optimizer.steps_done == 2
    states = [trainer.optimizer.state_tensors() for trainer in (skipping, without)]
    assert all(states[0][name].item() == states[1][name].item() for name in states[1])
    assert skipping.model.weight.item() == without.model.weight.item() != 1.0
    progress = skipping.progress
    assert (progress.step, progress.rows, progress.skipped_steps, progress.skipped_in_row) == (3, 6, 1, 0)
    assert lines == ["step 2 is skipped: the loss is not a finite number in the samples bad.jsonl:7"]
    first, second, third = (line for _, line in log.written)
    assert "train/loss" not in second and second["train/skipped_steps"] == third["train/skipped_steps"] == 1
    same = ("train/loss", "train/gradient_norm")
    assert [[line[key] for key in same] for line in (first, third)] == [
        [line[key] for key in same] for _, line in expected.written
    ]


def test_infinities_of_both_signs_are_not_finite() -> None:
    trainer, _, _ = make(Plain(), [Row((math.inf,), "a:1"), Row((-math.inf,), "a:2")])
    with pytest.raises(ErnieKitError, match="not a finite number in the samples a:1, a:2"):
        trainer.train_step()


def test_hooks_do_not_see_the_update_of_a_skipped_step() -> None:
    class Updates(Hook):
        number = 0

        def after_optimizer_step(self, *arguments: object) -> dict[str, float]:
            self.number += 1
            return {}

    updates = Updates()
    rows = [ROWS[0], Row((math.inf,), "bad.jsonl:7"), ROWS[1]]
    policy = NonFinitePolicy("skip", log=lambda line: None)
    trainer, _, _ = make(
        Plain(), rows, hooks=[updates], rows_per_step=1, total_steps=3, log_every=3, nonfinite=policy
    )
    run(trainer)
    assert updates.number == 2


def test_a_run_that_does_not_recover_stops() -> None:
    lines: list[str] = []
    policy = NonFinitePolicy("skip", log=lines.append)
    rows = [ROWS[0], *[Row((math.nan,), f"bad.jsonl:{number}") for number in range(20)]]
    trainer, _, saved = make(Plain(), rows, rows_per_step=1, total_steps=20, nonfinite=policy)
    with pytest.raises(
        ErnieKitError, match=r"step 11: .*bad\.jsonl:9.*it is step 10 in a row that is not finite"
    ):
        run(trainer)
    assert len(lines) == 9 and saved == []
    assert trainer.optimizer.steps_done == 1


def test_many_samples_are_named_in_part() -> None:
    rows = [Row((math.nan,), f"f:{number}") for number in range(20)]
    trainer, _, _ = make(Plain(), rows, rows_per_step=20)
    with pytest.raises(ErnieKitError, match="f:0, f:1, f:2, f:3, f:4, f:5, f:6, f:7 and 12 more"):
        trainer.train_step()


def test_a_step_without_loss_is_passed_over() -> None:
    empty = Row((), "")
    trainer, _, _ = make(Plain(), [*ROWS[:2], empty, empty, *ROWS[:2]], total_steps=2)
    assert [trainer.train_step().loss_tokens for _ in range(2)] == [4, 4]
    assert trainer.rows.drawn == 6
    assert trainer.progress == TrainerProgress(step=2, rows=4, tokens=16, loss_tokens=8)


def test_rows_without_loss_alone_are_an_error() -> None:
    trainer, _, _ = make(Plain(), [Row((), "")])
    with pytest.raises(DataError, match="none of the last 1000 steps has a trained token"):
        trainer.train_step()


def test_dropout_depends_on_the_row_number_alone() -> None:
    rows = [Row(tuple(float(k) for k in range(1, 40)), "a")] * 3
    whole, _, _ = make(Model(), rows, total_steps=6)
    losses = [whole.train_step().loss_sum for _ in range(6)]
    assert len(set(losses)) == 6

    first, _, _ = make(Model(), rows)
    assert [first.train_step().loss_sum for _ in range(3)] == losses[:3]
    state = {name: tensor.numpy().copy() for name, tensor in first.optimizer.state_tensors().items()}
    paddle.seed(12345)
    model = Model()
    model.weight.set_value(first.model.weight.numpy())
    second, _, _ = make(model, rows, progress=first.progress)
    second.optimizer.load_state(3, state, state.__getitem__)
    assert [second.train_step().loss_sum for _ in range(3)] == losses[3:]


def test_row_seeds_differ_and_repeat() -> None:
    def draw(seed: int, row: int, part: int) -> float:
        seed_row(seed, row, part)
        return float(paddle.rand([1]).item())

    keys = [(seed, row, part) for seed in (0, 1) for row in (0, 1, 2) for part in (0, 1)]
    drawn = {key: draw(*key) for key in keys}
    assert len(set(drawn.values())) == 12
    assert all(draw(*key) == value for key, value in drawn.items())


def test_evaluation_is_without_dropout_and_leaves_training_on() -> None:
    model = Model()
    model.train()
    assert evaluate_loss(model, model, ROWS) == pytest.approx(24 / 6)  # type: ignore[arg-type]
    assert model.training
    assert model.weight.grad is None


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    trainer, log, saved = make(Plain(), total_steps=2, progress=TrainerProgress(step=2, rows=4))
    run(trainer)
    assert saved == []
    assert log.written == []


@pytest.mark.parametrize("place", ["rows", "forward", "hook", "update"])
def test_an_error_ends_the_run_with_a_checkpoint_of_the_last_whole_step(place: str) -> None:
    """And the rows of the step that failed are the next ones; not where the update may be applied in part."""
    model = Plain()
    trainer, _, saved = make(model, total_steps=9)
    step = trainer.train_step

    def fail(*arguments: Any, **options: Any) -> Any:
        raise DataError("cannot be read")

    def train_step() -> Any:
        if trainer.progress.step == 2 and place == "rows":
            next_row = trainer.rows.next_row
            trainer.rows.next_row = lambda: (next_row(), setattr(trainer.rows, "next_row", fail))[0]  # type: ignore
        if trainer.progress.step == 2 and place == "forward":
            trainer.objective = Before(model, fail)
        if trainer.progress.step == 2 and place == "update":
            trainer.optimizer.step = fail  # type: ignore[method-assign]
        metrics = step()
        if trainer.progress.step == 2 and place == "hook":
            fail()
        return metrics

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(DataError, match="cannot be read"):
        run(trainer)
    assert saved == ([] if place == "update" else [2])
    assert place == "update" or trainer.rows.state_dict() == {"drawn": 4}


def test_an_error_before_the_first_step_saves_nothing() -> None:
    trainer, _, saved = make(Plain(), [])
    with pytest.raises(ZeroDivisionError):
        run(trainer)
    assert saved == []


def test_a_resumed_run_that_fails_at_its_start_writes_no_checkpoint_again() -> None:
    def fail(step: int, is_stopping: Any) -> dict[str, float]:
        raise DataError("cannot be read")

    progress = TrainerProgress(step=2, pending_evaluation=True)
    trainer, _, saved = make(Plain(), total_steps=5, eval_every=2, evaluate=fail, progress=progress)
    with pytest.raises(DataError):
        run(trainer)
    assert saved == []


def test_an_evaluation_that_is_interrupted_is_left_for_the_resumed_run() -> None:
    def stopped(step: int, is_stopping: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopping()
        raise EvaluationStopped

    trainer, log, saved = make(Plain(), total_steps=5, eval_every=2, evaluate=stopped)
    run(trainer)
    assert (trainer.progress.step, saved, trainer.progress.pending_evaluation) == (2, [2], True)
    assert log.lines == ["step 2: the evaluation is left for the resumed run"]
    steps = []

    def evaluate(step: int, is_stopping: Any) -> dict[str, float]:
        steps.append(step)
        return {"eval/loss": 1.0}

    again, _, _ = make(Plain(), total_steps=5, eval_every=2, evaluate=evaluate, progress=trainer.progress)
    run(again)
    assert steps == [2, 4, 5]
    assert not again.progress.pending_evaluation
