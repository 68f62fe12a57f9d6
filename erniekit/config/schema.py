"""The schema of a run's configuration: every section, field, unit, default and range.

The models are frozen, refuse unknown keys and do not convert types (an integer is accepted for a number).
Relations between fields are rules: each returns what is wrong and the keys that it is about, so that
`erniekit.config.load` can name the line of each.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

CONFLICT = "conflict"
"""The pydantic error type under which broken rules are reported; `ctx["conflicts"]` is a list of Conflict."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1)]
TextList = Annotated[list[Text], BeforeValidator(_as_list)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no conversion of types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The checkpoint to start from."""

    path: Text = Field(
        description="Local directory of the checkpoint in Hub layout. Relative to the working directory."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Compute dtype. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    freeze: TextList = Field(
        [],
        description="Parts that are not trained: vision, resampler, language, router, "
        "or fnmatch patterns over parameter names.",
    )


class LoraConfig(Section):
    """Low-rank adapters in place of training every weight."""

    enabled: bool = Field(False, description="Train adapters only; the weights of the checkpoint stay.")
    rank: Positive = Field(8, description="Rank of each adapter.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The adapter's output is scaled by alpha / rank. null: 2 * rank."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability of dropping an element of an adapter's input."
    )
    targets: Annotated[TextList, Field(min_length=1)] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Modules that get an adapter: the last part of a module's name, "
        "or an fnmatch pattern over the full name.",
    )
    train_router: bool = Field(False, description="Also train the routers of the experts.")


class DataConfig(Section):
    """The conversations, and how they become packed rows of tokens."""

    train: Annotated[TextList, Field(min_length=1)] = Field(
        description="Training files (JSON lines, or one JSON array). Relative to the working directory."
    )
    eval: TextList = Field([], description="Held-out files; their loss is reported, never trained on.")
    format: Literal["auto", "messages", "erniekit"] = Field(
        "auto", description="Format of the files. auto: told from the keys of each file's first sample."
    )
    template: Literal["auto", "ernie", "ernie_vl", "ernie_vl_thinking"] = Field(
        "auto", description="Chat template. auto: told from the checkpoint."
    )
    max_length: Positive = Field(8192, description="Tokens in a packed row: the micro-batch.")
    shuffle: bool = Field(True, description="Draw the samples of each epoch in a new, seeded order.")
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="A sample that cannot be used stops the run (raise) or is counted (skip)."
    )
    max_errors: NotNegative = Field(
        100, description="With on_error skip: more skipped samples than this stop the run."
    )
    min_pixels: Positive | None = Field(
        None, description="Pixels to which a smaller picture is enlarged. null: the checkpoint's."
    )
    max_pixels: Positive | None = Field(
        None, description="Pixels to which a larger picture is reduced. null: the checkpoint's."
    )
    workers: NotNegative = Field(
        2, description="Threads that decode pictures ahead of training. 0: decode when needed."
    )


class LossConfig(Section):
    """The token loss."""

    chunk_tokens: Positive = Field(1024, description="Loss tokens whose logits exist at one time.")


class ParameterGroup(Section):
    """Settings of their own for the parameters whose names match."""

    match: Text = Field(
        description="fnmatch pattern over parameter names; the first group that matches wins."
    )
    learning_rate_ratio: float = Field(1.0, ge=0, description="Factor on the learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay of the group. null: optimizer.weight_decay."
    )


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(1e-5, gt=0, description="Learning rate at the top of the schedule.")
    weight_decay: float = Field(
        0.1, ge=0, description="Decoupled weight decay. Norms, biases and 1-D parameters never decay."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients, per step.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the mean of squared gradients, per step.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the denominator of the update.")
    max_grad_norm: float = Field(1.0, ge=0, description="Global gradient norm to clip to. 0: no clipping.")
    groups: list[ParameterGroup] = Field([], description="Parameters with settings of their own.")


class ScheduleConfig(Section):
    """The learning rate over the run."""

    type: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Shape after warm-up. wsd: constant, then a fall by 1 - sqrt (decay_ratio)."
    )
    warmup_steps: NotNegative = Field(0, description="Steps of linear warm-up.")
    warmup_ratio: Share = Field(0.0, description="Warm-up as a share of all steps, where warmup_steps is 0.")
    min_learning_rate: float = Field(0.0, ge=0, description="Learning rate at the end of the schedule.")
    decay_ratio: float = Field(
        0.1, gt=0, le=1, description="wsd: the share of all steps that falls, at the end."
    )


class TrainConfig(Section):
    """Length, order and place of the run."""

    output_dir: Text = Field(description="Directory of the run. Relative to the working directory.")
    epochs: Positive = Field(1, description="Passes over the training data.")
    max_steps: Positive | None = Field(
        None, description="Optimizer steps; where set, epochs is not used. null: as epochs says."
    )
    rows_per_step: Positive = Field(
        1, description="Packed rows summed into one optimizer step (gradient accumulation)."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of data order, adapters and dropout.")
    recompute: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    eval_every: Positive | None = Field(
        None, description="Steps between evaluations on data.eval. null: only at the end."
    )


class ParallelConfig(Section):
    """Where the run computes."""

    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where there is one.")
    threads: Positive | None = Field(None, description="CPU threads. null: one for each usable core.")


class CheckpointConfig(Section):
    """What is kept of the run while it goes on."""

    save_every: Positive | None = Field(
        None, description="Steps between checkpoints. null: only at the end and on an interrupt."
    )
    keep: Positive = Field(2, description="Newest complete checkpoints that are kept.")


class LogConfig(Section):
    """What the run reports."""

    every: Positive = Field(1, description="Steps between log lines.")
    tensorboard: bool = Field(True, description="Also write TensorBoard files in the run's directory.")


class Conflict(NamedTuple):
    """Settings that exclude each other: the dotted keys, the one to change first, and a sentence."""

    keys: tuple[str, ...]
    message: str


class Config(Section):
    """A whole run. Made by `erniekit.config.load_config`, or in Python with the same checks."""

    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        conflicts = [conflict for rule in _RULES for conflict in rule(self)]
        if conflicts:
            text = "; ".join(f"{conflict.keys[0]}: {conflict.message}" for conflict in conflicts)
            raise PydanticCustomError(CONFLICT, "{text}", {"text": text, "conflicts": conflicts})
        return self


def _lora_is_off(config: Config) -> Iterator[Conflict]:
    # A value equal to the default does nothing, and is what a saved, fully resolved configuration contains.
    if config.lora.enabled:
        return
    for name, field in LoraConfig.model_fields.items():
        if getattr(config.lora, name) != field.default:
            yield Conflict(
                (f"lora.{name}", "lora.enabled"),
                "has no effect while lora.enabled is false; remove it, or set lora.enabled: true",
            )


def _eval_has_data(config: Config) -> Iterator[Conflict]:
    if config.train.eval_every is not None and not config.data.eval:
        yield Conflict(("train.eval_every", "data.eval"), "needs held-out files in data.eval, which is empty")


def _one_warmup(config: Config) -> Iterator[Conflict]:
    if config.schedule.warmup_steps and config.schedule.warmup_ratio:
        yield Conflict(
            ("schedule.warmup_ratio", "schedule.warmup_steps"),
            "cannot be set together with schedule.warmup_steps; keep one of them",
        )


def _warmup_fits(config: Config) -> Iterator[Conflict]:
    steps, warmup = config.train.max_steps, config.schedule.warmup_steps
    if steps is not None and warmup > steps:
        yield Conflict(
            ("schedule.warmup_steps", "train.max_steps"),
            f"{warmup} steps of warm-up do not fit into train.max_steps, which is {steps}",
        )


def _learning_rate_falls(config: Config) -> Iterator[Conflict]:
    low, high = config.schedule.min_learning_rate, config.optimizer.learning_rate
    if low > high:
        yield Conflict(
            ("schedule.min_learning_rate", "optimizer.learning_rate"),
            f"{low:g} is above optimizer.learning_rate, which is {high:g}",
        )


def _pixels_in_order(config: Config) -> Iterator[Conflict]:
    low, high = config.data.min_pixels, config.data.max_pixels
    if low is not None and high is not None and low > high:
        yield Conflict(
            ("data.min_pixels", "data.max_pixels"), f"{low} is above data.max_pixels, which is {high}"
        )


def _dtype_has_kernels(config: Config) -> Iterator[Conflict]:
    if config.parallel.device == "cpu" and config.model.dtype == "bfloat16":
        yield Conflict(
            ("model.dtype", "parallel.device"),
            "bfloat16 cannot be computed with parallel.device cpu (Paddle has no such kernels); "
            "use float32 or auto",
        )


_RULES: tuple[Callable[[Config], Iterator[Conflict]], ...] = (
    _lora_is_off,
    _eval_has_data,
    _one_warmup,
    _warmup_fits,
    _learning_rate_falls,
    _pixels_in_order,
    _dtype_has_kernels,
)
